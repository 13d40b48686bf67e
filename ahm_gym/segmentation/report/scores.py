"""The scores of a segmenter in tables: by class, and case by case."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from ahm_gym.pages.page import Table
from ahm_gym.pages.text import NOTHING, decimals
from ahm_gym.segmentation.intervals import Interval, mean_interval
from ahm_gym.segmentation.metrics import METRICS, mean
from ahm_gym.segmentation.report.charts import case_chart
from ahm_gym.segmentation.report.verdict import class_names

MAX_ROWS: int = 500
"""Largest number of cases or patients in a table."""


def scores_section(results: dict[str, Any]) -> dict[str, Any]:
    """The section of the scores."""
    names, titles = class_names(results), metric_names(results)
    metrics = [name for name in METRICS if results["cases"] and name in results["cases"][0]]
    intervals = {metric: class_intervals(results, metric) for metric in metrics}
    rows = []
    for index, row in results["per_class"].items():
        entries = [with_interval(row[metric], intervals[metric][index], metric) for metric in metrics]
        rows.append([names[index], *entries, *_counts(row)])
    overall = results.get("intervals", {})
    if len(rows) > 1:
        entries = [with_interval(results[metric], overall.get(metric), metric) for metric in metrics]
        rows.append(["all classes", *entries, *_counts(results)])
    counted = ["missed", "false alarms"]
    columns = ["class", *(titles[metric] for metric in metrics), *counted]
    scores = case_dice(results)
    chart = case_chart(scores, results["dice"], overall.get("dice")) if scores else Markup()
    return {
        "table": Table("Means over cases [95 % interval over patients]", columns, rows),
        "chart": chart,
        "cases": _case_table(results, names),
        "unit": results["hd95_unit"],
        "diagonal": results.get("missed_distance") == "diagonal",
        "tolerance": titles["nsd"],
        "fixed": None if results.get("fixed_map_dice") is None else decimals(results["fixed_map_dice"]),
    }


def metric_names(results: dict[str, Any]) -> dict[str, str]:
    """The names of the metrics with their units."""
    unit, tolerance = results["hd95_unit"], results.get("surface_tolerance", 1.0)
    within = f"{tolerance:g} {unit.removesuffix('s') if tolerance == 1 else unit}"
    return {
        "dice": "Dice", "iou": "IoU", "hd95": f"HD95 in {unit}",
        "nsd": f"surface Dice within {within}",
    }  # fmt: skip


def owners_of(results: dict[str, Any]) -> list[str]:
    """The patient of every case."""
    patients = results.get("patients", {})
    return [patients.get(entry["case"], entry["case"]) for entry in results["cases"]]


def class_intervals(results: dict[str, Any], metric: str) -> dict[str, Interval | None]:
    """The 95 % interval over patients of every class."""
    values = np.array([entry[metric] for entry in results["cases"]], dtype=float)
    owners = owners_of(results)
    return {index: mean_interval(values[:, [int(index) - 1]], owners) for index in results["per_class"]}


def _counts(row: dict[str, Any]) -> list[str]:
    return [str(row.get(name, NOTHING)) for name in ("missed", "false_alarms")]


def with_interval(value: float | None, interval: Interval | None, metric: str) -> str:
    """A score with its interval in brackets."""
    places = 2 if metric == "hd95" else 3
    if value is None or interval is None:
        return decimals(value, places)
    return f"{decimals(value, places)} [{decimals(interval[0], places)}, {decimals(interval[1], places)}]"


def case_dice(results: dict[str, Any]) -> dict[str, float]:
    """The mean Dice over classes of every case that has one."""
    found = {entry["case"]: mean([v for v in entry["dice"] if v is not None]) for entry in results["cases"]}
    return {case: value for case, value in found.items() if value is not None}


def _case_table(results: dict[str, Any], names: dict[str, str]) -> Table:
    """The Dice of every class and case, the worst first; cases without a score last."""
    scores = case_dice(results)
    entries = sorted(results["cases"], key=lambda entry: scores.get(entry["case"], 2.0))
    rows = [
        [
            entry["case"],
            *(decimals(value) for value in entry["dice"]),
            "; ".join(notes_on(entry, results)) or NOTHING,
        ]
        for entry in entries[:MAX_ROWS]
    ]
    more = f", the worst {MAX_ROWS} of {len(entries)}" if len(entries) > MAX_ROWS else ""
    return Table(f"Dice of every case{more}", ["case", *names.values(), "what is missing"], rows)


def notes_on(entry: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """What is missed or falsely found in a case, or not there, class by class."""
    notes = []
    for place, (index, name) in enumerate(class_names(results).items()):
        if int(index) in results.get("absent_classes", ()):
            continue
        for key, words in (("missed", "missed"), ("false_alarms", "found where there is none")):
            number = entry.get(key, [0] * (place + 1))[place]
            if number:
                times = f" in {number} images" if number > 1 else ""
                notes.append(f"{name} {words}{times}")
        if entry["dice"][place] is None:
            notes.append(f"no {name} in the label, and none found")
    return notes

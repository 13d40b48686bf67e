"""The sections of the report of a segmenter: what the templates show, made from the files of a run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex

from ahm_gym.pages.page import Section, Table
from ahm_gym.pages.text import NOTHING, decimals, duration, plural, signed
from ahm_gym.segmentation.case_pictures import read_case_pictures
from ahm_gym.segmentation.comparison import NONE, Comparison, Difference
from ahm_gym.segmentation.intervals import Interval, mean_interval
from ahm_gym.segmentation.metrics import METRICS, mean
from ahm_gym.segmentation.overlays import colour_of
from ahm_gym.segmentation.report.charts import case_chart, curve_chart, pair_chart, points_of
from ahm_gym.segmentation.report.verdict import (
    cares,
    class_names,
    found_in_data,
    headline,
    joined,
    place_of,
    sentence,
)

MAX_ROWS: int = 500
"""Largest number of cases or patients in a table."""
MAX_NAMES: int = 200
"""Largest number of labelled images whose names are listed."""
NOT_RECORDED: str = "not recorded"


def title_of(results: dict[str, Any], folder: Path) -> str:
    """The title of the page."""
    what = "Segmentation" if "draw" in results else "Evaluation"
    return f"{what}: {folder.resolve().name}"


def lead_of(results: dict[str, Any]) -> str:
    """The line below the title: which segmenter, which labels, which images."""
    config = results.get("config", {})
    if "draw" not in results:
        runs = config.get("run", "")
        names = [Path(run).name for run in ([runs] if isinstance(runs, str) else runs)]
        return f"{joined(names)} on {place_of(results)}"
    encoder = config.get("encoder", NONE)
    start = "from scratch" if encoder == NONE else f"encoder {Path(encoder).name}"
    parts = [f"{config.get('model')}, {start}", plural(len(results["draw"]["images"]), "labelled image")]
    return " · ".join([*parts, f"{config.get('steps'):,} updates", f"scored on {place_of(results)}"])


def sections_of(
    results: dict[str, Any],
    comparison: Comparison | None,
    folder: Path,
    made: dict[str, Any],
    logged: Sequence[list[dict[str, Any]]],
) -> list[Section]:
    """The sections in order.

    Args:
        results: the content of `results.json`.
        comparison: with another segmenter, if there is one.
        folder: folder of the run or the evaluation, for its pictures.
        made: the content of `provenance.json`, empty if there is none.
        logged: the logged rows of the run, and of the other one if it is known.
    """
    verdict = {"headline": headline(results, comparison), "cares": cares(results, comparison)}
    return [
        Section("verdict", "What it comes to", verdict),
        Section("scores", "Scores", _scores(results)),
        Section("comparison", "Compared", None if comparison is None else _comparison(results, comparison)),
        Section("cases", "The worst and the best cases", _cases(results, folder)),
        Section("labels", "Labelled images", _labels(results)),
        Section("training", "Training", _training(results, comparison, logged)),
        Section("provenance", "How it was made", _provenance(results, made)),
    ]


def tone(entry: str) -> str:
    """The CSS class of an entry of a table that tells a difference beyond chance."""
    return next((word for word in ("better", "worse") if entry.endswith(f" {word}")), "")


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


def _scores(results: dict[str, Any]) -> dict[str, Any]:
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


def _comparison(results: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    this, other = names_of(comparison)
    names, titles = class_names(results), metric_names(results)
    metrics = list(comparison.scores)
    rows = [
        [names[index], *(difference_text(found.get(metric), metric) for metric in metrics)]
        for index, found in comparison.per_class.items()
    ]
    if len(rows) > 1:
        rows.append(["mean", *(difference_text(comparison.scores[metric], metric) for metric in metrics)])
    means = [
        [name, *(decimals(one.get(metric), 2 if metric == "hd95" else 3) for metric in metrics)]
        for name, one in ((this, results), (other, comparison.other))
    ]
    better = sum(pair.this > pair.other for pair in comparison.pairs)
    drawn = results.get("draw")
    return {
        "this": this,
        "other": other,
        "scratch": comparison.name == NONE,
        "means": Table("Means of both", ["", *(titles[metric] for metric in metrics)], means),
        "differences": Table(
            f"{this} minus {other} [95 % interval over patients]",
            ["class", *(titles[metric] for metric in metrics)],
            rows,
        ),
        "chart": pair_chart(comparison.pairs, this, other) if comparison.pairs else Markup(),
        "counted": f"{this} is ahead in {better} of {len(comparison.pairs)} patients",
        "same": _same(results, drawn),
        "pairs": Table(
            "Dice of every patient by both" + _first(len(comparison.pairs)),
            ["patient", other, this, "difference"],
            [
                [pair.patient, decimals(pair.other), decimals(pair.this), signed(pair.this - pair.other)]
                for pair in comparison.pairs[:MAX_ROWS]
            ],
        ),
        "settings": [
            [key.replace("_", " "), str(own), str(others)]
            for key, (own, others) in comparison.settings.items()
        ],
    }


def _first(number: int) -> str:
    return f", the first {MAX_ROWS} of {number}" if number > MAX_ROWS else ""


def _same(results: dict[str, Any], drawn: dict[str, Any] | None) -> str:
    """What both have in common."""
    cases = f"Both were scored on the same {plural(results['num_cases'], 'case')}"
    if drawn is None:
        return f"{cases}."
    return f"{cases}, and trained with the same {plural(len(drawn['images']), 'labelled image')}."


def names_of(comparison: Comparison) -> tuple[str, str]:
    """What this segmenter and the other one are called in tables and charts."""
    return ("pretrained", "from scratch") if comparison.name == NONE else ("this run", comparison.name)


def difference_text(difference: Difference | None, metric: str) -> str:
    """A difference with its interval; a word says if it is beyond chance."""
    if difference is None:
        return NOTHING
    places = 2 if metric == "hd95" else 3
    said = signed(difference.mean, places)
    if difference.interval is not None:
        low, high = (signed(bound, places) for bound in difference.interval)
        said += f" [{low}, {high}]"
    if difference.may_be_chance:
        return said
    return f"{said} {'better' if (difference.mean > 0) == (metric != 'hd95') else 'worse'}"


def _cases(results: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The pictures; of earlier versions the one with all cases."""
    entries = {entry["case"]: entry for entry in results["cases"]}
    names = class_names(results)
    shown = [
        {
            "kind": row["kind"],
            "case": row["case"],
            "score": f"Dice {decimals(case_dice(results).get(row['case']))}",
            "image": _image_told(row),
            "classes": ", ".join(
                f"{name} {decimals(value)}"
                for name, value in zip(names.values(), entries[row["case"]]["dice"], strict=True)
                if value is not None
            )
            if len(names) > 1
            else "",
            "notes": [*_empty(row), *map(sentence, notes_on(entries[row["case"]], results))],
            "source": picture(row["path"]),
        }
        for row in read_case_pictures(folder)
        if row["case"] in entries
    ]
    whole = next(
        (path for path in (folder / "figures" / "overlays.png", folder / "overlays.png") if path.is_file()),
        None,
    )
    if not shown and whole is None:
        return None
    number = len(names) + 1
    legend = [(name, to_hex(colour_of(int(index), number))) for index, name in names.items()]
    return {"legend": legend, "cases": shown, "whole": None if shown or whole is None else picture(whole)}


def _image_told(row: dict[str, Any]) -> str:
    """Which image of a case of several is shown, and its own Dice."""
    if row["images"] == 1:
        return ""
    return f"shown: {row['image']}, 1 of {row['images']} images, Dice {decimals(row['dice'])}"


def _empty(row: dict[str, Any]) -> list[str]:
    found = []
    if not row["labelled"]:
        found.append("The label of the shown image is empty.")
    if not row["found"]:
        found.append("Nothing was found in the shown image.")
    return found


def picture(path: Path) -> Markup:
    """A PNG as the address of an image inside the page."""
    return Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())


def _labels(results: dict[str, Any]) -> dict[str, Any] | None:
    draw = results.get("draw")
    if draw is None:
        return None
    shares, names = draw["class_shares"], class_names(results)
    rows = [[name, f"{shares.get(index, 0.0):.2%}"] for index, name in names.items()]
    empty = round(draw["empty_share"] * len(draw["images"]))
    images = plural(len(draw["images"]), "labelled training image")
    without = "none of them" if not empty else f"{empty} of them"
    of = (
        f" of {plural(len(draw['patients']), 'patient')}"
        if len(draw["patients"]) < len(draw["images"])
        else ""
    )
    swapped = joined(draw["swapped_in"]) if draw["swapped_in"] else ""
    return {
        "summary": f"{images}{of}, {without} without a structure.",
        "swapped": f"So that every class is there, {swapped} took the place of others." if swapped else "",
        "table": Table("Share of the pixels of all drawn labels", ["class", "share"], rows),
        "patients": _listed(draw["patients"]),
        "images": _listed(draw["images"]),
        "data": _data(results),
    }


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more, which results.json lists" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _data(results: dict[str, Any]) -> str:
    found = found_in_data(results)
    if "patients" not in found:
        return ""
    return (
        f"The data has {plural(found['patients'], 'patient')}, found {found['rule']} ({found['certainty']})."
    )


def _training(
    results: dict[str, Any], comparison: Comparison | None, logged: Sequence[list[dict[str, Any]]]
) -> dict[str, Any] | None:
    if not logged or not logged[0]:
        return None
    runs = names_of(comparison) if comparison is not None and len(logged) > 1 else ("this run",)
    best, select = results.get("best"), results.get("config", {}).get("select", "last")
    marked = best["step"] if best is not None else None
    charts = {}
    for metric, name in (("loss", "Training loss"), ("val/dice", "Dice on validation images")):
        curves = {run: points_of(rows, metric) for run, rows in zip(runs, logged, strict=False)}
        chart = curve_chart(name, curves, marked if metric == "val/dice" else None)
        if chart:
            charts[name] = chart
    if best is None:
        chosen = "The run was not validated; the segmenter after the last update is the one that was scored."
    else:
        chosen = (
            f"The best Dice on validation images is {best['dice']:.3f}, at update {best['step']:,} (dashed). "
        )
        chosen += f"Scored is the segmenter of the {'last update' if select == 'last' else 'best score'}."
    return {"charts": charts, "chosen": chosen, "runs": runs if len(runs) > 1 else ()}


def _provenance(results: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    config = results.get("config", {})
    versions = made.get("versions", config.get("versions")) or {}
    facts = {
        "finished": made.get("finished"),
        "took": duration(made["seconds"]) if made.get("seconds") else None,
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()) or None,
        "code": made.get("commit"),
        "hardware": made.get("hardware"),
        "seed": config.get("seed"),
        "data": config.get("data", config.get("scans")),
        "digest of the data": config.get("data_digest"),
        "encoder": config.get("encoder"),
    }
    settings = [
        [key, str(value)]
        for key, value in config.items()
        if key not in ("versions", "data_digest") and value is not None
    ]
    return {
        "command": made.get("command") or "called from Python, or not recorded",
        "facts": {
            name: NOT_RECORDED if value is None else str(value)
            for name, value in facts.items()
            if value is not None or name in ("finished", "versions", "digest of the data")
        },
        "settings": Table("All settings", ["setting", "value"], settings),
    }

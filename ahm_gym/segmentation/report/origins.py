"""Where a segmenter comes from: its labels, its training, and everything that was set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ahm_gym.pages.page import Table
from ahm_gym.pages.text import duration, plural
from ahm_gym.segmentation.comparison import Comparison
from ahm_gym.segmentation.report.charts import curve_chart, points_of
from ahm_gym.segmentation.report.compared import names_of
from ahm_gym.segmentation.report.verdict import class_names, found_in_data, joined

MAX_NAMES: int = 200
"""Largest number of labelled images whose names are listed."""
NOT_RECORDED: str = "not recorded"


def labels_section(results: dict[str, Any]) -> dict[str, Any] | None:
    """The section of the labels that were drawn; None for an evaluation."""
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


def training_section(
    results: dict[str, Any], comparison: Comparison | None, logged: Sequence[list[dict[str, Any]]]
) -> dict[str, Any] | None:
    """The section of the curves; None for a run without logged rows."""
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


def provenance_section(results: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """The section of the command, the versions and all settings."""
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

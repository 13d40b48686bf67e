"""Two segmenters side by side: their means, and the differences patient by patient."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ahm_gym.pages.page import Table
from ahm_gym.pages.text import NOTHING, decimals, plural, signed
from ahm_gym.segmentation.comparison import NONE, Comparison, Difference
from ahm_gym.segmentation.report.charts import pair_chart
from ahm_gym.segmentation.report.scores import MAX_ROWS, metric_names
from ahm_gym.segmentation.report.verdict import class_names


def comparison_section(results: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    """The section of the comparison."""
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


def tone(entry: str) -> str:
    """The CSS class of an entry of a table that tells a difference beyond chance."""
    return next((word for word in ("better", "worse") if entry.endswith(f" {word}")), "")

"""The title of the report of a segmenter, and its sections in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahm_gym.pages.page import Section
from ahm_gym.pages.text import plural
from ahm_gym.segmentation.comparison import NONE, Comparison
from ahm_gym.segmentation.report.compared import comparison_section
from ahm_gym.segmentation.report.origins import labels_section, provenance_section, training_section
from ahm_gym.segmentation.report.pictured import cases_section
from ahm_gym.segmentation.report.scores import scores_section
from ahm_gym.segmentation.report.verdict import cares, headline, joined, place_of


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
        Section("scores", "Scores", scores_section(results)),
        Section(
            "comparison", "Compared", None if comparison is None else comparison_section(results, comparison)
        ),
        Section("cases", "The worst and the best cases", cases_section(results, folder)),
        Section("labels", "Labelled images", labels_section(results)),
        Section("training", "Training", training_section(results, comparison, logged)),
        Section("provenance", "How it was made", provenance_section(results, made)),
    ]

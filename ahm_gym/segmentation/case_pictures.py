"""Pictures of the worst and the best cases, one file each and without words, for a page that tells the rest."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ahm_gym.data import ImageDataset, Sample
from ahm_gym.data.ignored import in_structure
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.evaluation import Segment, group_cases, label_of, own_dice, segment, views_of
from ahm_gym.segmentation.metrics import mean
from ahm_gym.segmentation.overlays import Overlay, draw_row

FOLDER: str = "figures/cases"
LIST_FILE: str = "cases.json"
NUM_WORST: int = 4
NUM_BEST: int = 2
WIDTH: float = 6.4
"""Inches of a picture of image, label and prediction."""


def worst_and_best(results: dict[str, Any]) -> list[tuple[str, str]]:
    """The cases to show as (worst or best, name), the worst first, then the best; of few cases none is shown twice."""
    ranked = sorted(
        (score, entry["case"])
        for entry in results["cases"]
        if (score := mean([value for value in entry["dice"] if value is not None])) is not None
    )
    half = min(NUM_WORST, (len(ranked) + 1) // 2)
    worst = [("worst", name) for _, name in ranked[:half]]
    best = [("best", name) for _, name in ranked[half:][-NUM_BEST:]]
    return worst + best[::-1]


def write_case_pictures(
    segmenter: Segment,
    dataset: ImageDataset,
    results: dict[str, Any],
    folder: Path,
    *,
    native_resolution: bool = False,
) -> None:
    """Draws the cases of `worst_and_best` into `figures/cases`, and lists them there with the image that is shown.

    A whole volume is shown in three planes, below each other, which the list names in `planes`.

    Args:
        segmenter: as given to `evaluate`.
        dataset: as given to `evaluate`.
        results: what `evaluate` returned, and the `split` of the dataset.
        folder: folder of the run or the evaluation.
        native_resolution: as given to `evaluate`.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    members = group_cases(dataset, results["split"])
    classes = set(dataset.class_names) - set(results["absent_classes"])
    rows = []
    for number, (kind, case) in enumerate(worst_and_best(results), start=1):
        sample, prediction = _shown(segmenter, dataset, members[case], native_resolution)
        label = label_of(sample)
        views = views_of(sample, prediction, case)
        picture = io.BytesIO()
        _draw([view.overlay for view in views], dataset.num_classes).savefig(
            picture, format="png", transparent=True
        )
        write_atomically(place / f"{number}.png", picture.getvalue())
        rows.append(
            {
                "file": f"{number}.png",
                "kind": kind,
                "case": case,
                "image": sample.id,
                "images": len(members[case]),
                "planes": [view.caption for view in views] if len(views) > 1 else [],
                "dice": own_dice(prediction, label, classes),
                "labelled": bool(in_structure(label).any()),
                "found": bool((prediction > 0).any()),
            }
        )
    write_atomically(place / LIST_FILE, json.dumps(rows, indent=2) + "\n")


def _shown(
    segmenter: Segment, dataset: ImageDataset, members: list[int], native_resolution: bool
) -> tuple[Sample, Int[Tensor, "*S0"]]:
    """The image of a case with the largest label, and what was found in it; without labels, where most was found."""
    sizes = [int(in_structure(label_of(dataset.sample(index))).sum()) for index in members]
    if max(sizes):
        return segment(segmenter, dataset, members[sizes.index(max(sizes))], native_resolution)
    found = [segment(segmenter, dataset, index, native_resolution) for index in members]
    return max(found, key=lambda one: int((one[1] > 0).sum()))


def _draw(overlays: Sequence[Overlay], num_classes: int) -> Figure:
    """The image, with the outlines of the label, and with those of the prediction, side by side; one row a plane."""
    shares = [one.shape[0] * one.aspect / one.shape[1] for one in overlays]
    figure = Figure(figsize=(WIDTH, max(WIDTH / 3 * sum(shares), 0.6)), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(overlays), 3, squeeze=False, height_ratios=shares)
    for row, overlay in zip(axes, overlays, strict=True):
        draw_row(row, overlay, num_classes)
        for axis in row:
            axis.axis("off")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.02, hspace=0.02)
    return figure


def read_case_pictures(folder: Path) -> list[dict[str, Any]]:
    """The rows of the list, each with its `path`, without those whose file is gone; empty for earlier versions."""
    place = folder / FOLDER
    if not (place / LIST_FILE).is_file():
        return []
    rows = json.loads((place / LIST_FILE).read_text(encoding="utf-8"))
    return [row | {"path": place / row["file"]} for row in rows if (place / row["file"]).is_file()]

"""Dice, IoU and Hausdorff distance of predicted label maps, for each case."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Int
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from torch import Tensor

METRICS: tuple[str, ...] = ("dice", "iou", "hd95")

Value = float | None
"""A score; None if it is undefined."""


@dataclass(frozen=True)
class ScoredImage:
    """A predicted label map and the true one."""

    prediction: Int[Tensor, "H W"]
    label: Int[Tensor, "H W"]
    spacing: tuple[float, float] | None
    """Size of a pixel (row, column) in the unit of the distances; None measures them in pixels."""


@dataclass(frozen=True)
class CaseScores:
    """Scores of one patient or volume, with one value for each foreground class."""

    case: str
    images: int
    """Number of images of the case."""
    dice: list[Value]
    """0 to 1, over all pixels of the case; None if label and prediction are both empty."""
    iou: list[Value]
    """0 to 1, over all pixels of the case; None if label and prediction are both empty."""
    hd95: list[Value]
    """The larger of the two directed 95th percentiles of the distance between the outlines, as the mean over the
    images; None if label or prediction is empty in every image."""


def score_case(case: str, images: Sequence[ScoredImage], num_classes: int) -> CaseScores:
    """The scores of one case; the background (class 0) is left out."""
    prediction = torch.cat([image.prediction.flatten() for image in images])
    label = torch.cat([image.label.flatten() for image in images])
    dice: list[Value] = []
    iou: list[Value] = []
    hd95: list[Value] = []
    for index in range(1, num_classes):
        found, true = (prediction == index)[None, None], (label == index)[None, None]
        defined = bool(found.any() or true.any())
        dice.append(float(compute_dice(found, true, ignore_empty=False)) if defined else None)
        iou.append(float(compute_iou(found, true, ignore_empty=False)) if defined else None)
        distances = [distance for image in images if (distance := _distance(image, index)) is not None]
        hd95.append(mean(distances))
    return CaseScores(case, len(images), dice, iou, hd95)


def leave_out_absent(cases: Sequence[CaseScores], present: Collection[int]) -> list[CaseScores]:
    """The same scores, with None for the classes that occur in no label.

    Pixels that are falsely predicted as such a class already lower the scores of the true classes; a single one would
    also add a Dice of 0 for the absent class.
    """

    def known(values: list[Value]) -> list[Value]:
        return [value if index in present else None for index, value in enumerate(values, start=1)]

    return [replace(case, **{metric: known(getattr(case, metric)) for metric in METRICS}) for case in cases]


def summarise(cases: Sequence[CaseScores], num_classes: int) -> dict[str, Any]:
    """Means over the cases for every class, and over the classes; undefined values are left out and counted.

    The keys are `dice`, `iou` and `hd95` (None if no case defines them), `per_class` with the same for every class,
    `undefined` with the counts, `num_cases`, and `cases` with one entry for each case.
    """
    summary: dict[str, Any] = {}
    per_class: dict[str, dict[str, Value]] = {str(index): {} for index in range(1, num_classes)}
    undefined = {}
    for metric in METRICS:
        rows = [getattr(case, metric) for case in cases]
        for index, scores in per_class.items():
            values = [row[int(index) - 1] for row in rows]
            scores[metric] = mean([value for value in values if value is not None])
        known = [scores[metric] for scores in per_class.values() if scores[metric] is not None]
        summary[metric] = mean(known)
        undefined[metric] = sum(value is None for row in rows for value in row)
    entries = [vars(case) for case in cases]
    return summary | {
        "per_class": per_class,
        "undefined": undefined,
        "num_cases": len(cases),
        "cases": entries,
    }


def mean(values: Sequence[Value]) -> Value:
    """The mean of the values; None if there are none."""
    return math.fsum(value for value in values if value is not None) / len(values) if values else None


def _distance(image: ScoredImage, index: int) -> Value:
    found, true = (image.prediction == index)[None, None], (image.label == index)[None, None]
    if not found.any() or not true.any():
        return None
    spacing = list(image.spacing or (1.0, 1.0))
    with warnings.catch_warnings():
        # MONAI itself passes an argument that it deprecated.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(
            found, true, include_background=True, percentile=95, spacing=spacing
        )
    return float(distance)

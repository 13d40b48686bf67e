"""Dice, IoU, Hausdorff distance and surface Dice of predicted label maps, for each case."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Bool, Integer
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.surface_dice import compute_surface_dice
from torch import Tensor

from ahm_gym.data.ignored import is_counted

METRICS: tuple[str, ...] = ("dice", "iou", "hd95", "nsd")
COUNTS: tuple[str, ...] = ("missed", "false_alarms")
MISSED_DISTANCES: tuple[str, ...] = ("diagonal", "leave-out")

Value = float | None
"""A score; None if it is undefined."""


@dataclass(frozen=True)
class ScoredImage:
    """A predicted label map and the true one, of an image or of the stacked slices of a volume."""

    prediction: Integer[Tensor, "*size"]
    label: Integer[Tensor, "*size"]
    """Where it is `IGNORED`, neither label nor prediction counts, as in nnU-Net."""
    spacing: tuple[float, ...] | None
    """Size of a pixel (row, column) or voxel (row, column, slice) in the unit of the distances; None measures them
    in pixels."""
    num_slices: int | None = None
    """Number of slices of the whole volume, if slices at its ends are left out. It only affects the diagonal."""

    def masks(self, index: int) -> tuple[Bool[Tensor, "*size"], Bool[Tensor, "*size"]]:
        """Where a class is found, and where it is true."""
        return (self.prediction == index) & is_counted(self.label), self.label == index

    @property
    def voxel(self) -> tuple[float, ...]:
        """The spacing, or ones."""
        return self.spacing or (1.0,) * self.label.ndim

    @property
    def diagonal(self) -> float:
        """The largest distance that can occur, in the unit of the distances."""
        size = list(self.label.shape)
        if self.num_slices is not None:
            size[-1] = self.num_slices
        return math.hypot(*(number * side for number, side in zip(size, self.voxel, strict=True)))


@dataclass(frozen=True)
class CaseScores:
    """Scores of one patient or volume, with one value for each foreground class."""

    case: str
    images: int
    """Number of images of the case; of a volume, the slices."""
    dice: list[Value]
    """0 to 1, over all pixels of the case; None if label and prediction are both empty."""
    iou: list[Value]
    """0 to 1, over all pixels of the case; None if label and prediction are both empty."""
    hd95: list[Value]
    """The larger of the two directed 95th percentiles of the distance between the surfaces: in 3-D for a volume,
    and the mean over the images otherwise. Where only one of label and prediction is empty, it is the diagonal or
    left out; None if nothing is left."""
    nsd: list[Value]
    """Normalised surface Dice, 0 to 1: the share of both surfaces that is within the tolerance of the other one
    (Nikolov et al. 2021). 0 where only one of label and prediction is empty; else as for `hd95`."""
    missed: list[int]
    """Number of images or volumes in which the structure is there and nothing is found."""
    false_alarms: list[int]
    """Number of images or volumes in which the structure is found and is not there."""


@dataclass(frozen=True)
class Surface:
    """How well the surfaces of a structure agree in one image or volume."""

    hd95: Value
    nsd: Value
    missed: bool = False
    false_alarm: bool = False


def score_case(
    case: str,
    images: Sequence[ScoredImage],
    num_classes: int,
    *,
    num_images: int | None = None,
    surface_tolerance: float = 1.0,
    missed_distance: str = "diagonal",
) -> CaseScores:
    """The scores of one case; the background (class 0) is left out.

    Args:
        case: name of the case.
        images: its images, or its volumes.
        num_classes: number of classes, with the background.
        num_images: number of images of the case, if some are stacked.
        surface_tolerance: distance up to which two surfaces agree, in the unit of the spacing.
        missed_distance: one of `MISSED_DISTANCES`: `hd95` of an image or volume in which only one of label and
            prediction has the structure.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (*METRICS, *COUNTS)}
    for index in range(1, num_classes):
        masks = [around(*image.masks(index)) for image in images]
        found, true = (
            torch.cat([one.flatten() for one in side])[None, None] for side in zip(*masks, strict=True)
        )
        defined = bool(found.any() or true.any())
        columns["dice"].append(float(compute_dice(found, true, ignore_empty=False)) if defined else None)
        columns["iou"].append(float(compute_iou(found, true, ignore_empty=False)) if defined else None)
        surfaces = [
            compare_surfaces(*pair, image, surface_tolerance, missed_distance)
            for pair, image in zip(masks, images, strict=True)
        ]
        for name in ("hd95", "nsd"):
            values = [getattr(surface, name) for surface in surfaces]
            columns[name].append(mean([value for value in values if value is not None]))
        columns["missed"].append(sum(surface.missed for surface in surfaces))
        columns["false_alarms"].append(sum(surface.false_alarm for surface in surfaces))
    return CaseScores(case, len(images) if num_images is None else num_images, **columns)


def around(
    found: Bool[Tensor, "*size"], true: Bool[Tensor, "*size"]
) -> tuple[Bool[Tensor, "*box"], Bool[Tensor, "*box"]]:
    """Both masks in the smallest box around both structures, with a margin of one pixel; empty if there are none.

    No score depends on what lies outside, and MONAI needs many times the memory of a mask.
    """
    either = found | true
    for axis in range(either.ndim):
        inside = either.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0]
        if not len(inside):
            empty = torch.zeros((0,) * either.ndim, dtype=torch.bool)
            return empty, empty
        first = max(int(inside[0]) - 1, 0)
        length = min(int(inside[-1]) + 2, either.shape[axis]) - first
        either, found, true = (mask.narrow(axis, first, length) for mask in (either, found, true))
    return found, true


def compare_surfaces(
    found: Bool[Tensor, "*box"],
    true: Bool[Tensor, "*box"],
    image: ScoredImage,
    surface_tolerance: float,
    missed_distance: str,
) -> Surface:
    """The distance of the surfaces of a structure in one image or volume, from its masks; see `around`."""
    if not found.any() or not true.any():
        missed, false_alarm = bool(true.any()), bool(found.any())
        if not missed and not false_alarm:
            return Surface(None, None)
        distance = image.diagonal if missed_distance == "diagonal" else None
        return Surface(distance, 0.0, missed, false_alarm)
    masks = found[None, None], true[None, None]
    options: dict[str, Any] = {"include_background": True, "spacing": list(image.voxel)}
    with warnings.catch_warnings():
        # MONAI itself passes an argument that it deprecated.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(*masks, percentile=95, **options)
        share = compute_surface_dice(*masks, class_thresholds=[surface_tolerance], **options)
    return Surface(float(distance), float(share))


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

    The keys are `dice`, `iou`, `hd95` and `nsd` (None if no case defines them), the sums `missed` and `false_alarms`,
    `per_class` with the same for every class, `undefined` with the counts, `num_cases`, and `cases` with one entry for
    each case.
    """
    summary: dict[str, Any] = {}
    per_class: dict[str, dict[str, Any]] = {str(index): {} for index in range(1, num_classes)}
    undefined = {}
    for metric in METRICS:
        rows = [getattr(case, metric) for case in cases]
        for index, scores in per_class.items():
            values = [row[int(index) - 1] for row in rows]
            scores[metric] = mean([value for value in values if value is not None])
        known = [scores[metric] for scores in per_class.values() if scores[metric] is not None]
        summary[metric] = mean(known)
        undefined[metric] = sum(value is None for row in rows for value in row)
    for name in COUNTS:
        for index, scores in per_class.items():
            scores[name] = sum(getattr(case, name)[int(index) - 1] for case in cases)
        summary[name] = sum(scores[name] for scores in per_class.values())
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

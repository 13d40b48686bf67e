"""What segmenting is worth without a look at the image: one map for all images, the mean of the training labels."""

from __future__ import annotations

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ahm_gym.data import ImageDataset, Sample
from ahm_gym.data.ignored import areas
from ahm_gym.data.sample import Split
from ahm_gym.model.patches import pooled
from ahm_gym.segmentation.evaluation import group_cases
from ahm_gym.segmentation.parts import resized_in_parts
from ahm_gym.segmentation.validation import dice_of

SIDES: dict[int, int] = {2: 64, 3: 32}
"""Length of each axis of the map, which is resized to each image or volume, by the number of axes."""
MAX_LABELS: dict[int, int] = {2: 100, 3: 20}
"""Largest number of labels that are averaged."""
THRESHOLDS: tuple[float, ...] = (0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of foreground from which a pixel is foreground; the one that segments the labels themselves best is taken."""


class FixedMap:
    """One label map for images of any size.

    Args:
        shares: share of each class at every pixel.
        threshold: share of foreground from which a pixel has the most frequent foreground class.
    """

    def __init__(self, shares: Float[Tensor, "K *S"], threshold: float) -> None:
        self.shares: Float[Tensor, "K *S"] = shares
        self.threshold: float = threshold
        self._last: Int[Tensor, "..."] = torch.zeros(0, 0, dtype=torch.int64)

    def __call__(self, sample: Sample, size: tuple[int, ...]) -> Int[Tensor, "*S0"]:
        """The class of every pixel, whatever the sample shows."""
        if tuple(self._last.shape) != size:
            whole = self.shares[None]
            is_image = len(size) == 2
            parts = (
                [functional.interpolate(whole, size, mode="bilinear")]
                if is_image
                else resized_in_parts(whole, size)
            )
            self._last = torch.cat([self._classes(part[0]) for part in parts])
        return self._last

    def _classes(self, shares: Float[Tensor, "K *S"]) -> Int[Tensor, "*S"]:
        return (1 + shares[1:].argmax(dim=0)) * (1 - shares[0] >= self.threshold)


def mean_map(dataset: ImageDataset, indices: list[int]) -> FixedMap:
    """The map of some labelled images, at the threshold that segments these best."""
    axes = len(dataset.size_of(indices[0]))
    kept, size = indices[: MAX_LABELS[axes]], (SIDES[axes],) * axes
    total = torch.zeros(dataset.num_classes, *size)
    cases: dict[str, list[int]] = {}
    for index in kept:
        label = dataset.label(index)
        assert label is not None, "only labelled images are drawn"
        known = areas(label, dataset.num_classes)[:-1]
        total += pooled(known[None], size)[0]
        cases.setdefault(dataset.case_of(index), []).append(index)
    shares = total / total.sum(dim=0).clamp(min=1e-6)
    maps = [FixedMap(shares, threshold) for threshold in THRESHOLDS]
    return max(maps, key=lambda one: dice_of(one, dataset, cases.values()) or 0.0)


def fixed_map_dice(dataset: ImageDataset, indices: list[int], split: Split) -> float | None:
    """The mean Dice on a split, 0 to 1, of the mean map of these labelled images; None if no label has a class."""
    return dice_of(mean_map(dataset, indices), dataset, group_cases(dataset, split).values())

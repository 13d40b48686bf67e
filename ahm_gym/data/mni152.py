"""The default data: axial slices of the MNI152 template, which comes with nilearn, with tissue labels."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ahm_gym.data.sample import SPLITS, Record, Split

MIN_BRAIN_SHARE = 0.35
"""Slices with less than this share of the largest slice's brain area are left out."""
MIN_TISSUE = 0.3
"""A voxel is background if the probabilities of grey and of white matter are not above this."""
GAP = 4
"""Number of slices left out between two splits, because neighbouring slices are nearly the same."""


class Mni152Source:
    """T1-weighted slices, 1 mm, with the classes background, grey matter and white matter.

    The template is one averaged, left-right symmetric brain. It serves to try out a program, and results on it
    are no evidence. From bottom to top, the slabs of slices are for training, validation and testing.
    """

    name: str = "mni152"
    num_images: int | None = None

    def fingerprint(self) -> list[Any]:
        return [importlib.metadata.version("nilearn"), MIN_BRAIN_SHARE, MIN_TISSUE, GAP]

    def records(self) -> Iterator[Record]:
        # Importing nilearn takes a second, and it is not needed once the slices are in the cache.
        from nilearn import datasets

        template, grey, white = (
            np.asarray(load(resolution=1).dataobj, dtype=np.float32)
            for load in (
                datasets.load_mni152_template,
                datasets.load_mni152_gm_template,
                datasets.load_mni152_wm_template,
            )
        )
        rows, columns, slices = np.nonzero(template > 0)
        box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        area = np.bincount(slices, minlength=template.shape[2])
        chosen = np.flatnonzero(area >= MIN_BRAIN_SHARE * area.max()).tolist()
        for split, slab in split_slabs(chosen).items():
            for index in slab:
                place = (*box, index)
                name = f"mni152_z{index:03d}"
                label = tissue_classes(grey[place], white[place])
                # Rotated so that the front of the head points up.
                image, label = np.rot90(template[place]), np.rot90(label)
                yield Record(image, label, name, self.name, name, split=split, spacing=(1.0, 1.0))


def split_slabs(slices: list[int]) -> dict[Split, list[int]]:
    """Neighbouring slices for train, val and test (70/10/20), with a gap between the splits."""
    usable = len(slices) - 2 * GAP
    num_val, num_test = round(0.1 * usable), round(0.2 * usable)
    num_train = usable - num_val - num_test
    starts = (0, num_train + GAP, num_train + num_val + 2 * GAP)
    lengths = (num_train, num_val, num_test)
    return {split: slices[a : a + n] for split, a, n in zip(SPLITS, starts, lengths, strict=True)}


def tissue_classes(
    grey: Float[np.ndarray, "H W"], white: Float[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W"]:
    """Classes 0 background, 1 grey matter, 2 white matter: the likelier tissue if it is likely enough."""
    tissue = np.where(white > grey, 2, 1)
    return np.where(np.maximum(grey, white) > MIN_TISSUE, tissue, 0).astype(np.uint8)

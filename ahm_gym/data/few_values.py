"""Tells labels from images by their pixels: labels hold few different whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped

from ahm_gym.data.formats import Pixels, kind_of, read_pixels
from ahm_gym.data.processing import packed
from ahm_gym.data.scaling import FOREGROUND, ROUNDING
from ahm_gym.errors import InputError

FEW_VALUES = 16
"""A file with at most so many values may be a label, if that of its image has more than twice as many."""
SAMPLE = 5
"""Number of files that are read to know many."""
LOSSY: tuple[str, ...] = (".jpg", ".jpeg", ".webp")
BLACK_AND_WHITE = 0.8
"""Smallest share of the pixels of a mask in a lossy format that are nearly black or white."""
FLAT = 0.6
"""Smallest share of neighbours in a label that are equal, without those of which both are background."""
COARSE = 64
"""A volume is first looked at with so many voxels along each axis."""


T = TypeVar("T")


def a_few(items: Sequence[T]) -> list[T]:
    """A few items, evenly spread, with the first one."""
    return list(items[:: max(1, -(-len(items) // SAMPLE))])


def count_values(path: Path) -> int:
    """The number of different values of an image, or of a part of it if it is large; 0 if it cannot be read."""
    try:
        return len(np.unique(_thinned(read_pixels(path).array)))
    except (InputError, OSError):
        return 0


def count_label_values(path: Path) -> int | None:
    """The number of different values, or colours, of a file read as a label; None if it is none.

    It is none if it cannot be read, has values that are negative or not whole, or more than `FEW_VALUES`.
    """
    try:
        if kind_of(path) in LOSSY and not _is_black_and_white(read_pixels(path).array):
            return None
        values = _classes(read_pixels(path, is_label=True))
    except (InputError, OSError):  # such as a JPEG with grey areas
        return None
    if values is None or len(np.unique(_thinned(values))) > FEW_VALUES:
        return None
    found = np.unique(values)
    whole = np.abs(found - np.rint(found)).max() <= ROUNDING if found.dtype.kind == "f" else True
    return len(found) if whole and found[0] >= 0 and len(found) <= FEW_VALUES else None


def is_flat(path: Path) -> bool:
    """Whether a file has whole numbers in flat areas, as labels have: most neighbours in them are equal."""
    try:
        array = read_pixels(path).array
    except (InputError, OSError):
        return False
    if array.ndim > 2 and not (array == array[..., :1]).all():
        array = array[:, :, array.shape[2] // 2]
    array = array[:, :, 0] if array.ndim == 3 else array
    if array.ndim != 2 or array.dtype.kind not in "bui" or array.min() < 0:
        return False
    one, other = array[:, 1:], array[:, :-1]
    values, numbers = np.unique(array, return_counts=True)
    background = values[numbers.argmax()]
    shown = (one != background) | (other != background)
    return bool(shown.any() and (one == other)[shown].mean() > FLAT)


def _is_black_and_white(array: Shaped[np.ndarray, "..."]) -> bool:
    """Whether nearly all pixels are near 0 or `FOREGROUND`, as those of a mask in a lossy format are."""
    return bool((np.minimum(array, FOREGROUND - array) < FOREGROUND // 8).mean() > BLACK_AND_WHITE)


def _classes(pixels: Pixels) -> Shaped[np.ndarray, "..."] | None:
    """One value for each pixel or voxel; None for several channels that are no colours."""
    array = pixels.array
    if array.ndim == 2 + pixels.is_volume:
        return array
    if (array == array[..., :1]).all():
        return array[..., 0]
    coloured = not pixels.is_volume and array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    return packed(array) if coloured else None


def _thinned(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Every so many of the voxels of a volume; a picture as it is."""
    steps = (max(1, length // COARSE) if array.ndim > 2 else 1 for length in array.shape)
    return array[tuple(slice(None, None, step) for step in steps)]

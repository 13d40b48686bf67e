"""The content of a file, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from ahm_gym.data.formats.grids import Grid

FourthAxis = Literal["channels", "time"]
SLICED = "sliced in"
"""How the note on the plane of the slices begins."""
MAX_MODALITIES = 8
"""A fourth axis that is longer, and of which nothing is stated, is time."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """The content of one file."""

    array: np.ndarray
    """(H, W) or (H, W, C); for a volume (H, W, slices), (H, W, slices, C), or (H, W, slices, T)."""
    is_volume: bool = False
    spacing: tuple[float, ...] | None = None
    """Millimetres per pixel (row, column), or per voxel (row, column, slice)."""
    patient: str | None = None
    """The patient, if the file names one."""
    grid: Grid | None = None
    """Where the voxels lie, if the format can state it."""
    fourth: FourthAxis = "channels"
    """What the last axis of a volume with four axes is."""
    fourth_is_sure: bool = True
    """Whether the file states that; otherwise it follows from the length of the axis."""
    uneven: str = ""
    """Why the slices do not make one even grid, as the end of a sentence about the file; empty if they do."""
    notes: tuple[str, ...] = ()
    """What was decided while reading, as ends of a sentence about the file."""


def on_grid(
    array: np.ndarray,
    affine: np.ndarray,
    *,
    stated: bool,
    scale: float | None = 1.0,
    fourth: FourthAxis = "channels",
    fourth_is_sure: bool = True,
    known_spacing: bool = True,
) -> Pixels:
    """The content of a file whose axes are given by an affine, turned to the common orientation.

    Args:
        array: (X, Y), (X, Y, Z) or (X, Y, Z, C or T) in the file's axes.
        affine: from indices to millimetres.
        stated: whether the file states its orientation.
        scale: millimetres per unit of the file, by which the affine was multiplied; None if the file states no unit.
        fourth: what the fourth axis is.
        fourth_is_sure: whether the file states that.
        known_spacing: whether the file states its spacing.
    """
    volume = array.ndim > 2
    if not volume:
        array = array[:, :, None]
    shape = (array.shape[0], array.shape[1], array.shape[2])
    grid = Grid.of(affine, shape, stated=stated, scale=scale, flat=not volume)
    arranged = grid.arrange(array)
    notes = []
    if volume:
        notes.append(f"{SLICED} the {grid.plane} plane, by their spacing")
        if not stated:
            notes.append("without a stated orientation, so that the axes are taken in the usual order")
    if arranged.ndim > 3 and not (fourth_is_sure and fourth == "channels"):
        sure = (
            "as the header states"
            if fourth_is_sure
            else f"by its length (more than {MAX_MODALITIES} is time)"
        )
        notes.append(f"with a fourth axis that is read as {fourth}, {sure}")
    return Pixels(
        arranged if volume else arranged[:, :, 0],
        is_volume=volume,
        spacing=None if not known_spacing else grid.spacing if volume else grid.spacing[:2],
        grid=grid,
        fourth=fourth,
        fourth_is_sure=fourth_is_sure,
        notes=tuple(notes),
    )


def guess_fourth(length: int) -> FourthAxis:
    """What a fourth axis of this length is, if the file does not state it."""
    return "time" if length > MAX_MODALITIES else "channels"


def fill_outside(array: np.ndarray) -> np.ndarray | None:
    """Replaces NaN outside the body by the minimum; None if there is no NaN, or one inside the body.

    NaN is outside the body where it is connected to the border of the volume, as brain extraction and defacing
    leave it.
    """
    if array.dtype.kind != "f":
        return None
    missing = np.isnan(array)
    if not missing.any() or missing.all():
        return None
    anywhere = missing.any(axis=-1) if array.ndim > 3 else missing
    found: Any = ndimage.label(anywhere)
    parts, count = found
    border = np.ones(parts.shape, bool)
    border[1:-1, 1:-1, 1:-1] = False
    if parts.shape[2] <= 2:  # the first and last slice are not the border of the body
        border[1:-1, 1:-1] = False
    if len(np.setdiff1d(np.unique(parts[border]), [0])) < count:
        return None
    return np.where(missing, np.nanmin(array), array)

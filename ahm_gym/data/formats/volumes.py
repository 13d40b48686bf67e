"""Reads a volume whole, with its axes towards right, anterior and superior (RAS)."""

from __future__ import annotations

import dataclasses

import numpy as np

from ahm_gym.data.formats.grids import Grid
from ahm_gym.data.formats.pixels import SLICED, Pixels
from ahm_gym.errors import InputError

RAS: tuple[str, str, str] = ("R", "A", "S")
MAX_SHEAR: float = 1.0
"""Degrees by which the angle between two axes may differ from a right one."""


def as_volume(pixels: Pixels, origin: str) -> Pixels:
    """A volume with its axes towards right, anterior and superior; as they are if the file does not say how it lies.

    Args:
        pixels: what a file or a series holds.
        origin: the file, for messages.

    Raises:
        InputError: if it is a flat image, its slices are not evenly spaced, or its axes are not at right angles.
    """
    if not pixels.is_volume:
        raise InputError(
            f"{origin} is a flat image: expected a volume, because volumes are read whole here; remove it."
        )
    if pixels.uneven:
        raise InputError(
            f"{origin} {pixels.uneven}: expected a volume with evenly spaced slices on a straight line; restore or "
            "resample it, remove it, or train on slices, without `volumes`."
        )
    notes = [note for note in pixels.notes if not note.startswith(SLICED)]
    if pixels.grid is None:
        note = "read whole, with the axes of the file, which does not say how it lies in the body"
        return dataclasses.replace(pixels, notes=(note, *notes))
    check_angles(pixels.grid, origin)
    grid = dataclasses.replace(pixels.grid, sides=RAS)
    return dataclasses.replace(
        pixels,
        array=grid.arrange(pixels.grid.restore(pixels.array)),
        spacing=None if pixels.spacing is None else grid.spacing,
        grid=grid,
        notes=tuple(notes),
    )


def check_angles(grid: Grid, origin: str) -> None:
    """Raises InputError if the axes of a grid are not at right angles."""
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosines > np.sin(np.radians(MAX_SHEAR)):
        raise InputError(
            f"{origin} has axes that meet at {90 - np.degrees(np.arcsin(min(cosines, 1.0))):.1f} degrees: expected "
            "right angles; resample it, or train on slices, without `volumes`."
        )

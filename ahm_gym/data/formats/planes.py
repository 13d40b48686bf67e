"""Turns a volume so that its slices lie in the plane that was asked for."""

from __future__ import annotations

import dataclasses

from ahm_gym.data.formats.grids import PLANES, Grid
from ahm_gym.data.formats.pixels import SLICED, Pixels
from ahm_gym.errors import InputError


def in_plane(pixels: Pixels, plane: str | None, origin: str) -> Pixels:
    """A volume with its slices in a plane; an image, or no plane, changes nothing.

    Args:
        pixels: what a file holds.
        plane: axial, coronal or sagittal; None: as it is.
        origin: the file, for messages.

    Raises:
        InputError: if the file of a volume does not say how it lies in the body.
    """
    if plane is None or not pixels.is_volume:
        return pixels
    if pixels.grid is None:
        raise InputError(
            f"{origin} is a volume that does not say how it lies in the body, so it has no {plane} slices: save it "
            "as NIfTI, or leave `plane` out."
        )
    sides = next(sides for name, sides in PLANES.values() if name == plane)
    grid: Grid = dataclasses.replace(pixels.grid, sides=sides)
    others = [note for note in pixels.notes if not note.startswith(SLICED)]
    return dataclasses.replace(
        pixels,
        array=grid.arrange(pixels.grid.restore(pixels.array)),
        spacing=None if pixels.spacing is None else grid.spacing,
        grid=grid,
        notes=(f"{SLICED} the {plane} plane, as the description says", *others),
    )

"""The three planes of a volume in which pictures show it, each upright."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ahm_gym.data.ignored import in_structure
from ahm_gym.segmentation.overlays import Overlay

SHOWN: tuple[tuple[str, int, int, int], ...] = (
    ("axial", 2, 1, 0),
    ("coronal", 1, 2, 0),
    ("sagittal", 0, 2, 1),
)
"""The name of each plane, and which axis of right, anterior and superior is that of its slices, rows and columns.

Rows run from the end of their axis: anterior or superior is up. Columns run to the right of the body or to anterior, as
in the slices of two-dimensional runs.
"""


@dataclass(frozen=True)
class Plane:
    """One plane of a volume."""

    name: str
    """axial, coronal or sagittal."""
    at: int
    """Number of the slice on the grid of the label, from 0."""
    number: int
    """Number of slices of the volume."""
    overlay: Overlay

    @property
    def caption(self) -> str:
        """The name and the place, counted from 1."""
        return f"{self.name} {self.at + 1} of {self.number}"


def planes_of(
    title: str,
    image: Float[Tensor, "C *S"],
    label: Int[Tensor, "*S0"] | None,
    prediction: Int[Tensor, "*S0"] | None,
    spacing: Sequence[float] | None,
) -> list[Plane]:
    """The slice of each plane in which the structure is largest: in the label, or else in what was found.

    A volume without either is shown in its middle.

    Args:
        title: title of each overlay; the caption of the plane is added in a line of its own.
        image: volume in [0, 1] with the axes right, anterior, superior, at any resolution.
        label: classes at the resolution of the file; None if there is no label.
        prediction: what was found, on the same grid; None if nothing is shown.
        spacing: millimetres per voxel of that grid; None if unknown: voxels are drawn as cubes.
    """
    maps = [one for one in (label, prediction) if one is not None]
    structures = (in_structure(one) for one in maps)
    structure = next((one for one in structures if one.any()), None)
    size = tuple(maps[0].shape) if maps else tuple(image.shape[1:])
    sides = tuple(spacing) if spacing is not None else (1.0, 1.0, 1.0)
    found = []
    for name, axis, rows, columns in SHOWN:
        at = size[axis] // 2 if structure is None else largest(structure, axis)
        place = min(int((at + 0.5) * image.shape[1 + axis] / size[axis]), image.shape[1 + axis] - 1)
        shown = [None if one is None else upright(one, axis, at, rows) for one in (label, prediction)]
        overlay = Overlay(
            f"{title}\n{name} {at + 1} of {size[axis]}",
            torch.stack([upright(channel, axis, place, rows) for channel in image]),
            *shown,
            aspect=sides[rows] / sides[columns],
        )
        found.append(Plane(name, at, size[axis], overlay))
    return found


def largest(structure: Bool[Tensor, "R A S"], axis: int) -> int:
    """The slice along this axis in which most of the structure lies."""
    return int(structure.movedim(axis, 0).flatten(1).sum(dim=1).argmax())


def upright(volume: Shaped[Tensor, "R A S"], axis: int, at: int, rows: int) -> Shaped[Tensor, "H W"]:
    """A slice along one axis, whose rows run from the end of the axis `rows`, with the other axis as columns."""
    plane = volume.select(axis, at)
    first = next(other for other in range(3) if other != axis)
    return (plane if first == rows else plane.T).flip(0).contiguous()

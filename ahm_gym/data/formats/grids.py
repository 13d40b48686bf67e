"""Where the voxels of a volume lie in the body, and the one orientation in which all volumes are read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from nibabel import orientations

SAME_SPACING = 1.1
"""Spacings that differ by less than this factor count as equal."""
TOLERANCE = 0.05
"""Largest distance between the corners of an image and of its label, in parts of the smallest voxel edge."""
PLANES: dict[str, tuple[str, tuple[str, str, str]]] = {
    "S": ("axial", ("P", "R", "S")),
    "A": ("coronal", ("I", "R", "A")),
    "R": ("sagittal", ("I", "A", "R")),
}
"""By the axis of the slices: the plane, and the sides to which rows, columns and slices run."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a file, and how the axes of the array that was read follow from it."""

    affine: Float[np.ndarray, "4 4"]
    """From indices of the file's axes to millimetres, towards right, anterior and superior."""
    shape: tuple[int, int, int]
    """Voxels along the file's axes."""
    sides: tuple[str, str, str]
    """The sides of the body to which rows, columns and slices of the array run, such as ("P", "R", "S")."""
    stated: bool = True
    """Whether the file states its orientation; otherwise its axes are taken as right, anterior, superior."""
    scale: float | None = 1.0
    """Millimetres per unit of the file; None if it states no unit, so that its numbers were taken as millimetres."""

    @classmethod
    def of(
        cls,
        affine: Float[np.ndarray, "4 4"],
        shape: tuple[int, int, int],
        *,
        stated: bool = True,
        scale: float | None = 1.0,
        flat: bool = False,
    ) -> Grid:
        """The grid of a file, sliced along the axis of the coarsest spacing.

        If that spacing is also, within 10 %, that of the axis towards the head, slices are axial. An axis with a
        single voxel always is the axis of the slices, and so is the third one of a flat image.
        """
        codes = [code if code in PLANES else _opposite(code) for code in _codes(affine)]
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        single = [code for code, length in zip(codes, shape, strict=True) if length == 1]
        coarse = [code for code, size in zip(codes, sizes, strict=True) if size * SAME_SPACING >= sizes.max()]
        if flat or len(single) == 1:
            axis = codes[2] if flat else single[0]
        else:
            axis = "S" if "S" in coarse else coarse[0]
        return cls(affine, shape, PLANES[axis][1], stated, scale)

    @property
    def plane(self) -> str:
        """The plane of the slices: axial, coronal or sagittal."""
        return PLANES[self.sides[2]][0]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel of the array: row, column, slice."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        rows, columns, slices = (float(sizes[np.argmax(self._order()[:, 0] == axis)]) for axis in range(3))
        return rows, columns, slices

    def arrange(self, array: Shaped[np.ndarray, "X Y Z *C"]) -> Shaped[np.ndarray, "H W S *C"]:
        """Turns an array from the file's axes to rows, columns and slices."""
        return orientations.apply_orientation(array, self._order())

    def restore(self, array: Shaped[np.ndarray, "H W S *C"]) -> Shaped[np.ndarray, "X Y Z *C"]:
        """Turns rows, columns and slices back to the file's axes: the inverse of `arrange`."""
        order = self._order()
        inverse = np.empty_like(order)
        for axis, (target, flip) in enumerate(order):
            inverse[int(target)] = axis, flip
        return orientations.apply_orientation(array, inverse)

    def distance(self, other: Grid) -> float:
        """Largest distance in millimetres between the same corners of two grids that run to the same sides."""
        last = np.array(self.array_shape) - 1
        corners = np.array([(*(last * ends), 1) for ends in itertools.product((0, 1), repeat=3)]).T
        first, second = (grid._array_affine() @ corners for grid in (self, other))
        return float(np.linalg.norm((first - second)[:3], axis=0).max())

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """Rows, columns and slices."""
        order = self._order()
        rows, columns, slices = (self.shape[int(np.argmax(order[:, 0] == axis))] for axis in range(3))
        return rows, columns, slices

    def _order(self) -> np.ndarray:
        """For each axis of the file, in nibabel's form: the axis of the array, and 1 or -1 if it is reversed."""
        return orientations.ornt_transform(
            orientations.io_orientation(self.affine), orientations.axcodes2ornt(self.sides)
        )

    def _array_affine(self) -> np.ndarray:
        """From rows, columns and slices to millimetres."""
        return self.affine @ orientations.inv_ornt_aff(self._order(), self.shape)


def _codes(affine: np.ndarray) -> tuple[str, ...]:
    return orientations.aff2axcodes(affine)


def _opposite(side: str) -> str:
    return {"L": "R", "P": "A", "I": "S"}[side]


def is_usable(affine: np.ndarray) -> bool:
    """Whether an affine has finite numbers and gives every axis a direction of its own."""
    return bool(np.isfinite(affine).all()) and None not in _codes(affine)

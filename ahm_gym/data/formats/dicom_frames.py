"""Where the frames of a DICOM file lie in the body, by its functional groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Float

from ahm_gym.data.formats.grids import SAME_SPACING

PARALLEL, SAME_PLACE = 1e-3, 1e-3
"""Largest difference between the directions of slices of a series, and smallest distance between them in mm."""
Place = tuple[np.ndarray, np.ndarray]
"""The directions along a row and down a column (2, 3), and the position of the first pixel in mm (3,)."""


def place_of(item: Any) -> Place | None:
    """Where a slice lies, by the tags of its file or of a frame; None if they do not say."""
    directions, position = item.get("ImageOrientationPatient"), item.get("ImagePositionPatient")
    if not directions or not position:
        return None
    return np.array(directions, float).reshape(2, 3), np.array(position, float)


def affine_of(
    place: Place, spacing: tuple[float, float], step: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "4 4"]:
    """From rows, columns and slices to millimetres, towards right, anterior and superior.

    Args:
        place: that of the first slice.
        spacing: millimetres per row and column.
        step: from one slice to the next, in mm and in DICOM's directions.
    """
    (along_row, down_column), position = place
    affine = np.eye(4)
    affine[:3] = np.stack([down_column * spacing[0], along_row * spacing[1], step, position], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM points left and posterior


def group_value(file: pydicom.FileDataset, frame: int, sequence: str, tag: str) -> Any:
    """What the functional groups say of a frame: its own, or else the shared ones; None if neither does."""
    each = file.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*each[frame : frame + 1], *(file.get("SharedFunctionalGroupsSequence") or [])[:1]):
        if (items := group.get(sequence)) and items[0].get(tag):
            return items[0].get(tag)
    return None


def order_of_frames(
    file: pydicom.FileDataset, frames: int, spacing: tuple[float, float]
) -> tuple[list[int], Float[np.ndarray, "4 4"], str] | None:
    """The frames in the order of their places, the affine of the volume, and what `uneven_gaps` says.

    Frames that already run along a line, in either direction, keep their order.

    None if they do not make one volume: they do not say where they lie, are not parallel, or two lie at the same place.
    """
    try:
        places = [_place_of_frame(file, frame) for frame in range(frames)]
    except (ValueError, TypeError):  # damaged numbers
        return None
    known = [place for place in places if place is not None]
    if len(known) < frames or not _are_parallel(known):
        return None
    normal = np.cross(*known[0][0])
    heights = np.array([float(normal @ position) for _, position in known])
    order = np.argsort(heights, kind="stable")
    if (order[::-1] == np.arange(frames)).all():
        order, normal = order[::-1], -normal
    gaps = np.abs(np.diff(heights[order]))
    if gaps.min() < SAME_PLACE:
        return None
    affine = affine_of(known[order[0]], spacing, normal * float(np.median(gaps)))
    return order.tolist(), affine, uneven_gaps("frames", gaps)


def uneven_gaps(what: str, gaps: Float[np.ndarray, " n"]) -> str:
    """How far apart slices or frames are, in mm and with what they are called; empty if they are evenly spaced."""
    if not len(gaps) or gaps.max() <= SAME_SPACING * gaps.min():
        return ""
    return f"{what} that are {gaps.min():.4g} to {gaps.max():.4g} mm apart: some may be missing"


def _place_of_frame(file: pydicom.FileDataset, frame: int) -> Place | None:
    return place_of(
        {
            "ImageOrientationPatient": group_value(
                file, frame, "PlaneOrientationSequence", "ImageOrientationPatient"
            ),
            "ImagePositionPatient": group_value(file, frame, "PlanePositionSequence", "ImagePositionPatient"),
        }
    )


def _are_parallel(places: Sequence[Place]) -> bool:
    first = places[0][0]
    return all(np.abs(directions - first).max() <= PARALLEL for directions, _ in places)

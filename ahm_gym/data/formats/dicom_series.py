"""A series of DICOM slices as one volume."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom

from ahm_gym.data.formats.dicom import open_dicom, read_dicom
from ahm_gym.data.formats.dicom_frames import PARALLEL, SAME_PLACE, Place, affine_of, place_of, uneven_gaps
from ahm_gym.data.formats.pixels import Pixels, on_grid
from ahm_gym.errors import InputError

MAX_TILT: float = 1.0
"""Degrees between the line through the slices and their normal, above which a series has a tilted gantry."""


def series_key(path: Path) -> str | None:
    """What all slices of one series share; None for other files. Only the header is read.

    Slices of one series have the same SeriesInstanceUID, size and direction, so that overviews in another direction
    are a series of their own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return key_of(open_dicom(path, header_only=True))
        except Exception:  # not DICOM, or damaged: not a slice; the reader says why
            return None


def key_of(header: pydicom.FileDataset) -> str | None:
    """What all slices of one series share, by the header of one; see `series_key`."""
    place = None
    with contextlib.suppress(ValueError, TypeError):  # a damaged position
        place = place_of(header)
    if place is None or int(header.get("NumberOfFrames") or 1) > 1 or not header.get("SeriesInstanceUID"):
        return None
    directions = ",".join(f"{value + 0.0:.2f}" for value in place[0].ravel())
    return f"{header.SeriesInstanceUID} {header.get('Rows')}x{header.get('Columns')} {directions}"


def read_series(paths: Iterable[Path]) -> Pixels:
    """Reads slices as one volume, in the order of their place along the normal.

    Raises:
        InputError: if the files are not the slices of one series, or two lie at the same place.
    """
    paths = list(paths)
    places = [_checked_place(path) for path in paths]
    (first, _), normal = places[0], np.cross(*places[0][0])
    for path, (directions, _) in zip(paths, places, strict=True):
        if np.abs(directions - first).max() > PARALLEL:
            raise InputError(
                f"{path} and {paths[0]} are not parallel: expected the slices of one series; move one."
            )
    heights = np.array([float(normal @ position) for _, position in places])
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    if len(gaps) and gaps.min() < SAME_PLACE:
        at = int(gaps.argmin())
        raise InputError(
            f"{paths[order[at]]} and {paths[order[at + 1]]} are slices of one series at the same place: expected one "
            "time and one echo; put each into a folder of its own."
        )
    slices = [_read_slice(paths[at]) for at in order]
    distance = float(np.median(gaps)) if len(gaps) else _thickness(paths[0])
    pixels = _stack(slices, places[order[0]], normal * distance)
    if apart := uneven_gaps("slices", gaps):
        notes = (*pixels.notes, f"with {apart}")
        return dataclasses.replace(pixels, notes=notes, uneven=f"begins a series with {apart}")
    return dataclasses.replace(pixels, uneven=_tilt([places[at][1] for at in order], normal))


def _tilt(positions: list[np.ndarray], normal: np.ndarray) -> str:
    """Why slices in order do not lie above each other, as with a tilted gantry; empty if they do."""
    step = positions[-1] - positions[0]
    along = float(normal @ step)
    aside = float(np.linalg.norm(step - along * normal))
    if aside <= np.tan(np.radians(MAX_TILT)) * along:
        return ""
    return f"begins a series of slices shifted by {np.degrees(np.arctan2(aside, along)):.1f} degrees (gantry tilt)"


def _read_slice(path: Path) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = read_dicom(path)
    if pixels.is_volume or pixels.array.ndim != 2:
        raise InputError(f"{path} has frames or colours: expected one grey slice a file; move it.")
    return pixels


def _stack(slices: list[Pixels], place: Place, step: np.ndarray) -> Pixels:
    """The volume of slices in order; `step` leads from one to the next, in mm."""
    shapes = {pixels.array.shape for pixels in slices}
    if len(shapes) > 1:
        raise InputError(
            f"the slices of a series have the sizes {sorted(shapes)}: expected one; move the others."
        )
    rows, columns = slices[0].spacing or (1.0, 1.0)
    affine = affine_of(place, (rows, columns), step)
    array = np.stack([pixels.array for pixels in slices], axis=2)
    pixels = on_grid(array, affine, stated=True, known_spacing=slices[0].spacing is not None)
    notes = dict.fromkeys(note for each in slices for note in each.notes)
    return dataclasses.replace(pixels, patient=slices[0].patient, notes=(*pixels.notes, *notes))


def _checked_place(path: Path) -> Place:
    place = place_of(open_dicom(path, header_only=True))
    if place is None:
        raise InputError(
            f"{path} does not say where it lies (ImagePositionPatient): expected a slice of a series."
        )
    return place


def _thickness(path: Path) -> float:
    return float(open_dicom(path, header_only=True).get("SliceThickness") or 0) or 1.0

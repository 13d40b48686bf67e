"""NIfTI volumes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage

from ahm_gym.data.formats.grids import is_usable
from ahm_gym.data.formats.names import suffix_of
from ahm_gym.data.formats.pixels import FourthAxis, Pixels, guess_fourth, on_grid

NIFTI: tuple[str, ...] = (".nii", ".nii.gz")
GZIP = b"\x1f\x8b"
MILLIMETRES: dict[str, float] = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
TIME_UNITS: tuple[str, ...] = ("sec", "msec", "usec")
TIME_SERIES, VECTORS = 2001, (1005, 1006, 1007, 2003, 2004)
"""Codes of the header's intent: a time series; matrices, vectors and colours."""


def read_nifti(path: Path) -> Pixels:
    """Reads a volume, turned to the common orientation, with its spacing in millimetres.

    RGB values become channels. Fields of vectors, with a fifth axis, are channels too.
    """
    image = open_nifti(path)
    array = np.asanyarray(image.dataobj)
    header: Any = image.header
    if array.dtype.fields:
        array = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, -1)[..., :3]
        fourth, sure = "channels", True
    else:
        fourth, sure = _fourth_axis(array.shape, header)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 5 and array.shape[3] == 1:
        array = array[:, :, :, 0]
    sizes = np.abs(np.asarray(header.get_zooms()[: min(array.ndim, 3)], float))
    scale = _scale(header)
    affine, stated = _affine(image, scale or 1.0)
    return on_grid(
        array,
        affine,
        stated=stated,
        scale=scale,
        fourth=fourth,
        fourth_is_sure=sure,
        known_spacing=bool((sizes > 0).all()),
    )


def open_nifti(path: Path) -> SpatialImage:
    """Opens a file whose compression may be other than its name says.

    Raises:
        ValueError: if it holds no image.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP
    named = suffix_of(path) == ".nii.gz"
    twice = compressed and named and _starts_with_gzip(path)
    image: Any = nibabel.load(path) if compressed == named and not twice else _from_content(path.read_bytes())
    if not isinstance(image, SpatialImage):
        raise ValueError("it holds no image")
    return image


def _starts_with_gzip(path: Path) -> bool:
    with gzip.open(path) as file:
        return file.read(2) == GZIP


def _from_content(content: bytes) -> SpatialImage:
    for _ in range(3):
        if content[:2] == GZIP:
            content = gzip.decompress(content)
    second = int.from_bytes(content[:4], "little") == 540 or int.from_bytes(content[:4], "big") == 540
    return (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)


def _scale(header: Any) -> float | None:
    """Millimetres per unit of the header; None if it states no unit."""
    return MILLIMETRES.get(header.get_xyzt_units()[0]) if hasattr(header, "get_xyzt_units") else None


def _affine(image: SpatialImage, scale: float) -> tuple[np.ndarray, bool]:
    """The affine in millimetres, and whether the header states an orientation.

    Without one nibabel would guess; the axes are then taken as right, anterior, superior.
    """
    header: Any = image.header
    affine = np.asarray(image.affine)
    if (header.get("sform_code", 0) or header.get("qform_code", 0)) and is_usable(affine):
        return np.diag([scale, scale, scale, 1.0]) @ affine, True
    sizes = [abs(float(size)) * scale or 1.0 for size in (*header.get_zooms(), 1.0, 1.0)[:3]]
    return np.diag([*sizes, 1.0]), False


def _fourth_axis(shape: tuple[int, ...], header: Any) -> tuple[FourthAxis, bool]:
    """What the fourth axis is, and whether the header is clear about it.

    A unit of time alone is not: many programs write seconds into every header.
    """
    if len(shape) < 4:
        return "channels", True
    intent = int(header.get("intent_code", 0))
    if intent == TIME_SERIES:
        return "time", True
    if intent in VECTORS or (len(shape) == 5 and shape[3] == 1):
        return "channels", True
    zooms = header.get_zooms()
    if header.get_xyzt_units()[1] in TIME_UNITS and zooms[3] > 0 and zooms[3] != 1:
        return "time", True
    return guess_fourth(shape[3]), False

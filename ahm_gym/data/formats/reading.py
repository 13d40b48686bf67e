"""Reads one image or label file of any supported format."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

from ahm_gym.data.formats.arrays import read_array
from ahm_gym.data.formats.dicom import read_dicom
from ahm_gym.data.formats.itk import read_itk
from ahm_gym.data.formats.names import SUFFIXES, kind_of, suffix_of
from ahm_gym.data.formats.nifti import read_nifti
from ahm_gym.data.formats.pictures import LOSSY_MASK, check_size, is_lossy, read_picture
from ahm_gym.data.formats.pixels import Pixels, fill_outside
from ahm_gym.data.formats.tiff import read_tiff
from ahm_gym.data.scaling import is_soft_edged, sharpen_mask
from ahm_gym.errors import InputError

SOFT_MASK = "a mask with soft edges, which are cut at half"


def read_pixels(path: Path, *, is_label: bool = False) -> Pixels:
    """Reads the pixels of a file in their own data type.

    A label with a palette is read as indices into the palette, and a black and white mask with soft edges as 0 and 255.

    Raises:
        InputError: if the file is empty, truncated or otherwise unreadable.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): expected an image; copy it again or remove it.")
    try:
        with warnings.catch_warnings():
            # Decoders warn about header details that do not affect the pixels.
            warnings.simplefilter("ignore")
            pixels = _read(path, is_label)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # a decoder may fail in any way on a damaged file
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{path} cannot be read ({cause}): expected a complete {suffix_of(path) or 'DICOM'} file; copy it again or "
            "remove it."
        ) from error
    shape, dtype = pixels.array.shape, pixels.array.dtype
    if len(shape) not in ((3, 4) if pixels.is_volume else (2, 3)) or 0 in shape or dtype.kind not in "buif":
        raise InputError(
            f"{path} has the shape {shape} and values of type {dtype}: expected real numbers in rows and "
            "columns, and optionally slices and channels; convert it or remove it."
        )
    return _soft_mask(pixels, path) if is_label else _whole(pixels)


def _read(path: Path, is_label: bool) -> Pixels:
    kind = kind_of(path)
    if kind not in PICTURES:
        pixels = read_tiff(path, is_label=is_label) if kind in TIFF else READERS[kind](path)
        lossy = False
    else:
        check_size(path, kind)
        content = path.read_bytes()
        pixels = read_picture(content, kind, is_label=is_label)
        lossy = is_lossy(content, kind)
    if is_label and lossy:
        sharp = sharpen_mask(pixels.array, str(path))
        note = () if (sharp == pixels.array).all() else (LOSSY_MASK,)
        pixels = dataclasses.replace(pixels, array=sharp, notes=(*pixels.notes, *note))
    if suffix_of(path) in SUFFIXES and kind != suffix_of(path):
        note = f"named {suffix_of(path)} but with the content of a {kind} file, as which it is read"
        pixels = dataclasses.replace(pixels, notes=(*pixels.notes, note))
    return pixels


def _soft_mask(pixels: Pixels, path: Path) -> Pixels:
    if pixels.is_volume or not is_soft_edged(pixels.array):
        return pixels
    sharp = sharpen_mask(pixels.array, str(path))
    return dataclasses.replace(pixels, array=sharp, notes=(*pixels.notes, SOFT_MASK))


def _whole(pixels: Pixels) -> Pixels:
    """An image without NaN outside the body; other NaN stays, and is refused where the image is used."""
    if pixels.grid is None or not pixels.is_volume:
        return pixels
    filled = fill_outside(pixels.array)
    if filled is None:
        return pixels
    note = "with NaN at the border of the volume, which is outside the body and becomes the minimum"
    return dataclasses.replace(pixels, array=filled, notes=(*pixels.notes, note))


def _picture(path: Path) -> Pixels:
    return read_picture(path.read_bytes(), kind_of(path))


PICTURES: frozenset[str] = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".jp2", ".j2k"))
"""Suffixes of files that always contain exactly one image."""

TIFF: frozenset[str] = frozenset((".tif", ".tiff", ".ome.tif", ".ome.tiff"))

_OTHERS: dict[str, Callable[[Path], Pixels]] = {
    ".dcm": read_dicom,
    ".ima": read_dicom,
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".npy": read_array,
    **dict.fromkeys((".mha", ".mhd", ".nrrd", ".nhdr"), read_itk),
}

READERS: dict[str, Callable[[Path], Pixels]] = {
    suffix: _picture if suffix in PICTURES else read_tiff if suffix in TIFF else _OTHERS[suffix]
    for suffix in SUFFIXES
}
"""The function that reads each kind of file, by suffix."""

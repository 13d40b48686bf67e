"""Reads one image or label file of any supported format."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pydicom
from nibabel.spatialimages import SpatialImage
from PIL import Image
from pydicom.pixels.utils import pixel_array

from ahm_gym.data.scaling import MAX_ARRAY_CHANNELS, refuse_channels_first, refuse_slices_first, sharpen_mask
from ahm_gym.errors import InputError


@dataclass(frozen=True)
class Pixels:
    """The content of one file."""

    array: np.ndarray
    """(H, W) or (H, W, C); for a volume (H, W, slices) or (H, W, slices, C)."""
    is_volume: bool = False
    spacing: tuple[float, float] | None = None
    """Millimetres per pixel (row, column)."""
    slice_spacing: float | None = None
    """Millimetres between two slices of a volume."""
    patient: str | None = None
    """The patient, if the file names one."""
    orientation: tuple[str, ...] | None = None
    """The sides of the body to which the axes point, such as ("R", "A", "S"), if the file states them."""


def suffix_of(path: Path) -> str:
    """The suffix in lower case; `.nii.gz` counts as one suffix."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def stem_of(path: Path) -> str:
    """The file name without its suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def fingerprint_of(path: Path) -> list[Any]:
    """The path, size and modification time of a file.

    Raises:
        InputError: if the file is a broken link.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): expected a file; restore the target of the link, or remove it."
        ) from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def read_pixels(path: Path, *, is_label: bool = False) -> Pixels:
    """Reads the pixels of a file in their own data type.

    A label with a palette is read as indices into the palette.

    Raises:
        InputError: if the file is empty, truncated or otherwise unreadable.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): expected an image; copy it again or remove it.")
    try:
        with warnings.catch_warnings():
            # Decoders warn about header details that do not affect the pixels.
            warnings.simplefilter("ignore")
            pixels = _read_label(path) if is_label else READERS[suffix_of(path)](path)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): expected a complete "
            f"{suffix_of(path)} file; copy it again or remove it."
        ) from error
    shape, dtype = pixels.array.shape, pixels.array.dtype
    if len(shape) not in ((3, 4) if pixels.is_volume else (2, 3)) or 0 in shape or dtype.kind not in "buif":
        raise InputError(
            f"{path} has the shape {shape} and values of type {dtype}: expected real numbers in rows and "
            "columns, and optionally slices and channels; convert it or remove it."
        )
    return pixels


def _read_picture(path: Path) -> Pixels:
    # The header of a photograph may say which side is up; IMREAD_UNCHANGED would ignore that.
    flags = cv2.IMREAD_ANYCOLOR if suffix_of(path) in JPEG else cv2.IMREAD_UNCHANGED
    with _silent_opencv():
        picture = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    if picture is None:
        raise ValueError("OpenCV cannot decode it")
    return Pixels(_to_rgb(picture))


def _read_tiff(path: Path) -> Pixels:
    """Reads a file with one page as an image, with several as a volume."""
    with _silent_opencv():
        complete, pages = cv2.imdecodemulti(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if not complete or not pages:
        raise ValueError("OpenCV cannot decode it")
    if len(pages) == 1:
        return Pixels(_to_rgb(pages[0]))
    return Pixels(np.stack([_to_rgb(page) for page in pages], axis=2), is_volume=True)


@contextlib.contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keeps OpenCV from logging failures to stderr; the caller raises an error for them."""
    log_level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(log_level)


def _read_label(path: Path) -> Pixels:
    if _has_palette(path):
        return _read_palette(path)
    pixels = READERS[suffix_of(path)](path)
    return Pixels(sharpen_mask(pixels.array, str(path))) if suffix_of(path) in JPEG else pixels


def _has_palette(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(26)
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[25:] == b"\x03"


def _read_palette(path: Path) -> Pixels:
    """Reads the indices into the palette, which OpenCV would replace by colours.

    A palette of black and white may list them in either order, so its colours are read instead.
    """
    with Image.open(path) as picture:
        colours = np.reshape(picture.getpalette() or [], (-1, 3)).tolist()
        black_and_white = all(colour in ([0, 0, 0], [255, 255, 255]) for colour in colours)
        return Pixels(np.asarray(picture.convert("L") if black_and_white else picture))


def _to_rgb(picture: np.ndarray) -> np.ndarray:
    """Converts OpenCV's BGR or BGRA to RGB; grey images stay grey."""
    return picture if picture.ndim == 2 else picture[:, :, 2::-1]


def _read_nifti(path: Path) -> Pixels:
    """Reads slices along the last axis, rotated so that the file's second axis points up."""
    image = nibabel.load(path)
    if not isinstance(image, SpatialImage):
        raise ValueError("it holds no image")
    array = np.asanyarray(image.dataobj)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    sizes = [abs(float(size)) for size in image.header.get_zooms()[:3]]
    return Pixels(
        np.rot90(array),
        is_volume=array.ndim > 2,
        spacing=(sizes[1], sizes[0]) if len(sizes) > 1 and min(sizes[:2]) > 0 else None,
        slice_spacing=sizes[2] if len(sizes) > 2 and sizes[2] > 0 else None,
        orientation=_stated_orientation(image),
    )


def _stated_orientation(image: SpatialImage) -> tuple[str, ...] | None:
    """The orientation that the header states.

    None if the header has neither of the two affines, so that nibabel would guess, or if an axis is undefined.
    """
    header: Any = image.header
    if not (header.get("sform_code", 0) or header.get("qform_code", 0)):
        return None
    axes = nibabel.orientations.aff2axcodes(image.affine)
    return None if None in axes else axes


def _read_dicom(path: Path) -> Pixels:
    file = pydicom.dcmread(path)
    array = pixel_array(file)
    if file.PhotometricInterpretation == "MONOCHROME1":  # high values are dark
        array = ~array if array.dtype.kind in "iu" else -array
    is_volume = int(file.get("NumberOfFrames") or 1) > 1
    spacing = file.get("PixelSpacing")
    return Pixels(
        np.moveaxis(array, 0, 2) if is_volume else array,
        is_volume=is_volume,
        spacing=(float(spacing[0]), float(spacing[1])) if spacing else None,
        patient=str(file.get("PatientID") or "").strip() or None,
    )


def _read_array(path: Path) -> Pixels:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    refuse_channels_first(array.shape, str(path))
    refuse_slices_first(array.shape, str(path))
    return Pixels(array, is_volume=array.ndim > 3 or (array.ndim > 2 and array.shape[2] > MAX_ARRAY_CHANNELS))


READERS: dict[str, Callable[[Path], Pixels]] = {
    ".png": _read_picture,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".bmp": _read_picture,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".dcm": _read_dicom,
    ".nii": _read_nifti,
    ".nii.gz": _read_nifti,
    ".npy": _read_array,
}
"""The function that reads each kind of file, by suffix."""

JPEG: tuple[str, ...] = (".jpg", ".jpeg")

PICTURES: frozenset[str] = frozenset(suffix for suffix, reader in READERS.items() if reader is _read_picture)
"""Suffixes of files that always contain exactly one image."""

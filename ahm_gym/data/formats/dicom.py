"""DICOM images, with the values that a viewer shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from ahm_gym.data.formats import dicom_codecs
from ahm_gym.data.formats.dicom_frames import group_value, order_of_frames
from ahm_gym.data.formats.pixels import Pixels, on_grid
from ahm_gym.errors import InputError

dicom_codecs.register()

PIXELS: tuple[str, ...] = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SEGMENTATIONS: tuple[str, ...] = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation objects: their frames belong to places that other objects define."""
NO_PREAMBLE: tuple[bytes, ...] = (b"\x02\0", b"\x08\0")
"""First bytes of files that begin with the data, without the letters DICM."""


class NotAnImage(InputError):
    """A DICOM object that holds no image, such as a report, a plan, contours or a segmentation object."""


def read_dicom(path: Path) -> Pixels:
    """Reads an image, or the frames of one as slices, with the values that the modality defines.

    Frames whose functional groups say where they lie become a volume on a grid, in the order of their places.

    Colour tables, and slope and intercept or a modality's table, are applied; windows are not. Values that are shown
    inverted are inverted. Padding outside the field of view becomes the minimum.

    Raises:
        NotAnImage: if the object holds no image.
        InputError: if a decoder is missing.
    """
    file = open_dicom(path)
    array = _decoded(file, path)
    frames = int(file.get("NumberOfFrames") or 1)
    array, notes = _meaning(array, file)
    spacing = _spacing(file)
    if frames == 1:
        return Pixels(array, spacing=spacing, patient=_patient(file), notes=tuple(notes))
    array = np.moveaxis(array, 0, 2)
    found = order_of_frames(file, frames, spacing or (1.0, 1.0))
    if found is None:
        pixels = Pixels(array, is_volume=True, spacing=spacing)
    else:
        order, affine, apart = found
        pixels = on_grid(array[:, :, order], affine, stated=True, known_spacing=spacing is not None)
        if apart:
            notes.append(f"with {apart}")
            pixels = dataclasses.replace(pixels, uneven=f"has {apart}")
    return dataclasses.replace(pixels, patient=_patient(file), notes=(*pixels.notes, *notes))


def open_dicom(path: Path, *, header_only: bool = False) -> pydicom.FileDataset:
    """Opens an image, also one without the letters DICM.

    Raises:
        NotAnImage: if the object holds no image.
    """
    try:
        file = pydicom.dcmread(path, stop_before_pixels=header_only)
    except InvalidDicomError:
        with path.open("rb") as start:
            if start.read(2) not in NO_PREAMBLE:
                raise
        file = pydicom.dcmread(path, stop_before_pixels=header_only, force=True)
    kind = str(file.get("SOPClassUID") or "")
    holds_pixels = "Rows" in file if header_only else any(name in file for name in PIXELS)
    if kind in SEGMENTATIONS or not holds_pixels:
        if not kind and "Modality" not in file and "PatientID" not in file:
            raise ValueError("it holds no DICOM object")
        name = file.get("Modality") or getattr(file.get("SOPClassUID"), "name", "") or "DICOM"
        raise NotAnImage(
            f"{path} is a {name} object without an image: expected images; remove it, or convert contours and "
            "segmentation objects to NIfTI or NRRD labels."
        )
    return file


def _decoded(file: pydicom.FileDataset, path: Path) -> np.ndarray:
    """The stored values; colours as RGB.

    Raises:
        InputError: if the decoder for its compression is missing.
    """
    syntax = getattr(file.file_meta, "TransferSyntaxUID", None)
    if syntax is None:
        syntax = file.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    try:
        return pixel_array(file)
    except (NotImplementedError, RuntimeError) as error:
        if not syntax.is_compressed:
            raise
        if not _decoder_is_missing(syntax, error):
            raise
        raise InputError(
            f"{path} is compressed as {syntax.name}, for which a decoder is missing: install one with "
            "`pip install 'ahm-gym[formats]'` (pylibjpeg, pylibjpeg-libjpeg, pylibjpeg-openjpeg, pylibjpeg-rle), or "
            "save it without compression."
        ) from error


def _decoder_is_missing(syntax: uid.UID, error: Exception) -> bool:
    """Whether no decoder is installed, or only ones that do not read this depth or these colours."""
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        return True
    return not available or "support" in str(error) or "cannot decode" in str(error) or "only" in str(error)


def _meaning(array: np.ndarray, file: pydicom.FileDataset) -> tuple[np.ndarray, list[str]]:
    """The values that the modality defines, of which higher ones are brighter; colours stay as they are."""
    if file.get("PhotometricInterpretation") == "PALETTE COLOR":
        return apply_color_lut(array, file)[..., :3], []
    if int(file.get("SamplesPerPixel") or 1) > 1:
        return array, []
    notes = []
    array = _without_overlay(array, file)
    outside = _padding(array, file)
    values = _rescaled(array, file)
    inverse = (
        file.get("PhotometricInterpretation") == "MONOCHROME1"
        or file.get("PresentationLUTShape") == "INVERSE"
    )
    if inverse:
        values = _inverted(values, array, file)
    if outside.any() and not outside.all():
        values = np.where(outside, values[~outside].min(), values)
        notes.append("with padding outside the field of view, which becomes the minimum")
    return values, notes


def _without_overlay(array: np.ndarray, file: pydicom.FileDataset) -> np.ndarray:
    """The stored bits of every value, without overlays in the others."""
    if array.dtype.kind not in "iu":
        return array
    stored, allocated = int(file.get("BitsStored") or 0), 8 * array.dtype.itemsize
    if not 0 < stored < allocated:
        return array
    shift = max(int(file.get("HighBit") or 0) + 1 - stored, 0)
    if int(file.BitsAllocated) != allocated or file.file_meta.TransferSyntaxUID.is_compressed:
        shift = 0  # a decoder has moved the bits already
    values = array.astype(np.int64) >> shift & (1 << stored) - 1
    if array.dtype.kind == "i":
        values = np.where(values >= 1 << (stored - 1), values - (1 << stored), values)
    return values.astype(array.dtype)


def _padding(array: np.ndarray, file: pydicom.FileDataset) -> np.ndarray:
    """Where the stored values are those of padding."""
    limits = [file.get("PixelPaddingValue"), file.get("PixelPaddingRangeLimit")]
    if limits[0] is None or array.dtype.kind not in "iu":
        return np.zeros(array.shape, bool)
    limits = [limits[0] if limit is None else limit for limit in limits]
    if array.dtype.kind == "i":
        limits = [int(limit) - (1 << 16) if int(limit) >= 1 << 15 else int(limit) for limit in limits]
    else:
        limits = [int(limit) % (1 << 16) for limit in limits]
    return (array >= min(limits)) & (array <= max(limits))


def _rescaled(array: np.ndarray, file: pydicom.FileDataset) -> np.ndarray:
    """Values in the unit of the modality: by its table, or by slope and intercept, of each frame if they differ."""
    if file.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(array, file))
    factors = _factors(file)
    if not factors or all(factor == (1.0, 0.0) for factor in factors):
        return array
    slopes, intercepts = (np.array(part) for part in zip(*factors, strict=True))
    whole = array.dtype.kind in "iu" and (slopes % 1 == 0).all() and (intercepts % 1 == 0).all()
    if whole:
        largest = (
            max(abs(int(array.max())), abs(int(array.min()))) * np.abs(slopes).max()
            + np.abs(intercepts).max()
        )
        whole = largest < 2**31
    kind = np.int32 if whole else np.float64
    shape = (-1,) + (1,) * (array.ndim - 1) if len(factors) > 1 else ()
    values = array.astype(kind) * slopes.astype(kind).reshape(shape) + intercepts.astype(kind).reshape(shape)
    return values if whole else values.astype(np.float32)


def _factors(file: pydicom.FileDataset) -> list[tuple[float, float]]:
    """Slope and intercept: one pair, one for each frame, or none.

    A slope of 0 would erase the image, and counts as 1.
    """

    def pair(item: Any) -> tuple[float, float] | None:
        if item is None or item.get("RescaleSlope") is None:
            return None
        return float(item.RescaleSlope) or 1.0, float(item.get("RescaleIntercept") or 0)

    def inner(group: Any) -> tuple[float, float] | None:
        items = group.get("PixelValueTransformationSequence")
        return pair(items[0]) if items else None

    if (own := pair(file)) is not None:
        return [own]
    shared = file.get("SharedFunctionalGroupsSequence")
    if shared and (common := inner(shared[0])) is not None:
        return [common]
    each = [inner(group) for group in file.get("PerFrameFunctionalGroupsSequence") or ()]
    return [found or (1.0, 0.0) for found in each] if any(each) else []


def _inverted(values: np.ndarray, stored: np.ndarray, file: pydicom.FileDataset) -> np.ndarray:
    """Values in reverse order; those without a unit stay in the range of their type."""
    if values is not stored or values.dtype.kind not in "iu":
        return -values if values.dtype.kind in "if" else -values.astype(np.int64)
    if values.dtype.kind == "i":
        return ~values
    bits = int(file.get("BitsStored") or 8 * values.dtype.itemsize)
    return ((1 << bits) - 1 - values.astype(np.int64)).astype(values.dtype)


def _spacing(file: pydicom.FileDataset) -> tuple[float, float] | None:
    """Millimetres per row and column, of the file or of its functional groups."""
    spacing = file.get("PixelSpacing") or group_value(file, 0, "PixelMeasuresSequence", "PixelSpacing")
    if not spacing or len(spacing) != 2 or min(map(float, spacing)) <= 0:
        return None
    return float(spacing[0]), float(spacing[1])


def _patient(file: pydicom.FileDataset) -> str | None:
    """The patient that the file states. `find_patients` judges whether that identifies anyone."""
    return str(file.get("PatientID") or "").strip() or None

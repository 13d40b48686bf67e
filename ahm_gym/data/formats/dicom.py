"""DICOM images, and series of them as one volume."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable
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
from ahm_gym.data.formats.grids import SAME_SPACING
from ahm_gym.data.formats.pixels import Pixels, on_grid
from ahm_gym.errors import InputError

dicom_codecs.register()

PIXELS: tuple[str, ...] = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SEGMENTATIONS: tuple[str, ...] = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation objects: their frames belong to places that other objects define."""
NOBODY = re.compile(
    r"|anon(ym|ymous|ymi[sz]ed|ymi[sz]e)?|de-?identified|removed|unknown|none|null|na|n/a|nn|no[ _-]?(id|name)|id|"
    r"patient([ _-]?id)?|test|default|xxx+|[0\W_]*",
    re.IGNORECASE,
)
"""Values of PatientID that identify no one."""
PARALLEL, SAME_PLACE = 1e-3, 1e-3
"""Largest difference between the directions of slices of a series, and smallest distance between them in mm."""
NO_PREAMBLE: tuple[bytes, ...] = (b"\x02\0", b"\x08\0")
"""First bytes of files that begin with the data, without the letters DICM."""


class NotAnImage(InputError):
    """A DICOM object that holds no image, such as a report, a plan, contours or a segmentation object."""


def read_dicom(path: Path) -> Pixels:
    """Reads an image, or the frames of one as slices, with the values that the modality defines.

    Colour tables, and slope and intercept or a modality's table, are applied; windows are not. Values that are shown
    inverted are inverted. Padding outside the field of view becomes the minimum.

    Raises:
        NotAnImage: if the object holds no image.
        InputError: if a decoder is missing.
    """
    file = _open(path)
    array = _decoded(file, path)
    frames = int(file.get("NumberOfFrames") or 1)
    array, notes = _meaning(array, file)
    if frames > 1:
        array = np.moveaxis(array, 0, 2)
    return Pixels(
        array, is_volume=frames > 1, spacing=_spacing(file), patient=_patient(file), notes=tuple(notes)
    )


def series_key(path: Path) -> str | None:
    """What all slices of one series share; None for other files. Only the header is read.

    Slices of one series have the same SeriesInstanceUID, size and direction, so that overviews in another direction
    are a series of their own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            file = _open(path, header_only=True)
            place = _place(file)
        except Exception:  # not DICOM, or damaged: not a slice; the reader says why
            return None
    if place is None or int(file.get("NumberOfFrames") or 1) > 1 or not file.get("SeriesInstanceUID"):
        return None
    directions = ",".join(f"{value + 0.0:.2f}" for value in place[0].ravel())
    return f"{file.SeriesInstanceUID} {file.Rows}x{file.Columns} {directions}"


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
    if len(gaps) and gaps.max() > SAME_SPACING * gaps.min():
        note = f"with slices that are {gaps.min():.4g} to {gaps.max():.4g} mm apart: some may be missing"
        pixels = dataclasses.replace(pixels, notes=(*pixels.notes, note))
    return pixels


Place = tuple[np.ndarray, np.ndarray]
"""The directions along a row and down a column (2, 3), and the position of the first pixel in mm (3,)."""


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
    (along_row, down_column), position = place
    affine = np.eye(4)
    affine[:3] = np.stack([down_column * rows, along_row * columns, step, position], axis=1)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM points left and posterior
    array = np.stack([pixels.array for pixels in slices], axis=2)
    pixels = on_grid(array, affine, stated=True, known_spacing=slices[0].spacing is not None)
    notes = dict.fromkeys(note for each in slices for note in each.notes)
    return dataclasses.replace(pixels, patient=slices[0].patient, notes=(*pixels.notes, *notes))


def _open(path: Path, *, header_only: bool = False) -> pydicom.FileDataset:
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
    """Millimetres per row and column, of the file or of its shared groups."""
    spacing = file.get("PixelSpacing")
    shared = file.get("SharedFunctionalGroupsSequence")
    if not spacing and shared and shared[0].get("PixelMeasuresSequence"):
        spacing = shared[0].PixelMeasuresSequence[0].get("PixelSpacing")
    if not spacing or len(spacing) != 2 or min(map(float, spacing)) <= 0:
        return None
    return float(spacing[0]), float(spacing[1])


def _patient(file: pydicom.FileDataset) -> str | None:
    """The patient, unless the value is that of programs that remove it."""
    name = str(file.get("PatientID") or "").strip()
    return None if NOBODY.fullmatch(name) else name


def _place(file: pydicom.FileDataset) -> Place | None:
    """Where a slice lies; None if the file does not say."""
    directions, position = file.get("ImageOrientationPatient"), file.get("ImagePositionPatient")
    if not directions or not position:
        return None
    return np.array(directions, float).reshape(2, 3), np.array(position, float)


def _checked_place(path: Path) -> Place:
    place = _place(_open(path, header_only=True))
    if place is None:
        raise InputError(
            f"{path} does not say where it lies (ImagePositionPatient): expected a slice of a series."
        )
    return place


def _thickness(path: Path) -> float:
    return float(_open(path, header_only=True).get("SliceThickness") or 0) or 1.0

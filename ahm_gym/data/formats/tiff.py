"""TIFF images and stacks, read by tifffile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from ahm_gym.data.formats.pixels import MAX_MODALITIES, Pixels
from ahm_gym.data.formats.turning import turned

MILLIMETRES: dict[str, float] = {
    "nm": 1e-6, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "\\u00b5m": 1e-3,
    "mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "in": 25.4,
}  # fmt: skip
INCOMPLETE: tuple[str, ...] = ("invalid page offset", "corrupted file", "truncated", "out of range")
"""What tifffile only logs when it skips pages that a cut file lacks."""
ORIENTATION, COLOUR_MAP = 274, 320
COLOURS: tuple[int, ...] = (
    PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE, PHOTOMETRIC.MASK,
    PHOTOMETRIC.SEPARATED, PHOTOMETRIC.YCBCR,
)  # fmt: skip
"""The meanings of values that are read."""


def read_tiff(path: Path, *, is_label: bool = False) -> Pixels:
    """Reads a file with one page as an image, with several as a volume.

    The pages, or the planes of an ImageJ or OME file, are slices. A file with channels has them last. Of a label with a
    palette the indices are read.

    Raises:
        ValueError: if the file is incomplete, its pages differ in size, or its axes or colours are of an unknown kind.
    """
    with _complete(), tifffile.TiffFile(path) as file:
        _check_extent(file, path.stat().st_size)
        array, axes = _stacked(file)
        page: Any = file.pages.first
        array = _values(array, axes, page, is_label=is_label, raw=bool(file.is_imagej))
        axes = axes if array.ndim == len(axes) else f"{axes}S"
        array, is_volume, time, notes = _in_order(array, axes)
        spacing = _spacing(file, page, is_volume)
        orientation = int(page.tags[ORIENTATION].value) if ORIENTATION in page.tags else 1
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    array = turned(array, orientation)
    if orientation > 4 and spacing is not None:
        spacing = (spacing[1], spacing[0], *spacing[2:])
    return Pixels(
        array, is_volume=is_volume, spacing=spacing, fourth="time" if time else "channels", notes=tuple(notes)
    )


@contextlib.contextmanager
def _complete() -> Iterator[None]:
    """Raises ValueError for what tifffile only logs about an incomplete file, and keeps the rest from stderr."""
    logger, messages = logging.getLogger("tifffile"), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # pyright: ignore
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
    for message in messages:
        if any(part in message for part in INCOMPLETE):
            raise ValueError(f"it is incomplete: {message.rpartition('> ')[2]}")


def _check_extent(file: tifffile.TiffFile, size: int) -> None:
    """Raises ValueError if a page lies, in part, behind the end of the file."""
    for page in file.pages:
        whole: Any = page.aspage()
        ends = [a + n for a, n in zip(whole.dataoffsets, whole.databytecounts, strict=False)]
        if max(ends, default=0) > size:
            raise ValueError(f"its values should reach to byte {max(ends)}, but it has {size}")


def _stacked(file: tifffile.TiffFile) -> tuple[np.ndarray, str]:
    """All pages of a file as one array, and the letters of its axes."""
    series = file.series
    kinds = {(each.shape, each.axes, each.dtype) for each in series}
    if len(kinds) > 1:
        sizes = sorted({"x".join(map(str, each.shape)) for each in series})
        raise ValueError(f"its pages differ: {', '.join(sizes[:4])}; save the one that is meant")
    if len(series) == 1:
        return series[0].asarray(), series[0].axes
    return np.stack([each.asarray() for each in series]), f"I{series[0].axes}"


def _values(array: np.ndarray, axes: str, page: Any, *, is_label: bool, raw: bool) -> np.ndarray:
    """Colours by the palette, greys with black as 0, and no transparency.

    Args:
        array: the stored numbers.
        axes: a letter for each axis; S stands for samples.
        page: the first page.
        is_label: keep indices into a palette.
        raw: keep the indices in any case, as for ImageJ, whose palettes only serve to show intensities.
    """
    meaning = int(page.photometric)
    if meaning not in COLOURS:
        raise ValueError(
            f"its colours are of the kind {page.photometric.name}, which is not read: save it as RGB"
        )
    if meaning == PHOTOMETRIC.PALETTE:
        return _from_palette(array, page, is_label=is_label, raw=raw)
    if meaning == PHOTOMETRIC.YCBCR and page.compression not in (COMPRESSION.JPEG, COMPRESSION.OJPEG):
        raise ValueError("its colours are YCbCr without JPEG, which is not read: save it as RGB")
    if meaning == PHOTOMETRIC.MINISWHITE and (array.dtype.kind == "b" or not is_label):
        array = ~array if array.dtype.kind == "b" else _inverted(array, page.bitspersample)
    if "S" not in axes:
        return array
    samples = np.moveaxis(array, axes.index("S"), -1)
    if meaning == PHOTOMETRIC.SEPARATED and samples.shape[-1] == 4:
        largest = np.iinfo(samples.dtype).max
        ink = samples.astype(np.float64)
        rgb = (largest - ink[..., :3]) * (largest - ink[..., 3:]) / largest
        samples = rgb.round().astype(samples.dtype)
    colours = 3 if meaning == PHOTOMETRIC.RGB else 1
    transparent = [kind for kind in page.extrasamples if int(kind) in (1, 2)]
    if samples.shape[-1] == colours + 1 and (transparent or meaning == PHOTOMETRIC.RGB):
        samples = samples[..., :colours]
    return np.moveaxis(samples, -1, axes.index("S"))


def _inverted(array: np.ndarray, bits: int) -> np.ndarray:
    return (2**bits - 1 - array).astype(array.dtype) if array.dtype.kind == "u" else -array


def _from_palette(array: np.ndarray, page: Any, *, is_label: bool, raw: bool) -> np.ndarray:
    colours = (np.asarray(page.tags[COLOUR_MAP].value, np.uint16).reshape(3, -1) >> 8).astype(np.uint8)
    if is_label:
        ends = np.isin(colours, (0, 255)).all() and (colours == colours[:1]).all()
        return colours[0][array] if ends else array
    return array if raw else np.moveaxis(colours[:, array], 0, -1)


def _in_order(array: np.ndarray, axes: str) -> tuple[np.ndarray, bool, bool, list[str]]:
    """The array as rows, columns, then slices, then channels or time; whether it is a volume, and has time; notes."""
    kept = [at for at, letter in enumerate(axes) if letter in "YX" or array.shape[at] > 1]
    array = array.reshape([array.shape[at] for at in kept])
    axes = "".join(axes[at] for at in kept)
    others = [letter for letter in axes if letter not in "YX"]
    channels = [letter for letter in others if letter in "CS"]
    planes = [letter for letter in others if letter not in "CST"]
    time = ["T"] if "T" in others else []
    notes: list[str] = []
    if channels == ["C"] and not planes and not time and array.shape[axes.index("C")] > MAX_MODALITIES:
        notes.append(f"with more than {MAX_MODALITIES} channels in pages, which are read as slices")
        channels, planes = [], ["C"]
    if time and not planes:
        time, planes = [], ["T"]
    if len(planes) > 1 or len(channels) > 1 or (time and channels) or axes.count("Y") != 1:
        raise ValueError(
            f"its axes are {axes} with {array.shape} values: save one stack of one kind of axis a file"
        )
    order = [axes.index(letter) for letter in ("Y", "X", *planes, *channels, *time)]
    return array.transpose(order), bool(planes), bool(time), notes


def _spacing(file: tifffile.TiffFile, page: Any, is_volume: bool) -> tuple[float, ...] | None:
    """Millimetres per row, column and slice, as ImageJ and OME state them; other programs write printing sizes."""
    if file.is_ome and file.ome_metadata:
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
        if pixels is None:
            return None
        names = ("PhysicalSizeY", "PhysicalSizeX", "PhysicalSizeZ")
        sizes = [
            float(pixels.get(name, 0)) * MILLIMETRES.get(pixels.get(f"{name}Unit", "µm"), 0) for name in names
        ]
    elif file.is_imagej:
        described = file.imagej_metadata or {}
        unit = MILLIMETRES.get(str(described.get("unit", "")), 0.0)
        sizes = [unit * _pixel_size(page, name) for name in ("YResolution", "XResolution")]
        sizes.append(unit * float(described.get("spacing", 0)))
    else:
        return None
    if min(sizes[:2]) <= 0:
        return None
    return tuple(sizes) if is_volume and sizes[2] > 0 else tuple(sizes[:2])


def _pixel_size(page: Any, name: str) -> float:
    pixels, unit = page.tags[name].value if name in page.tags else (0, 1)
    return unit / pixels if pixels else 0.0

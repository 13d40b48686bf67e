"""PNG, JPEG, BMP, GIF, WebP and JPEG 2000: files with exactly one image."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from ahm_gym.data.formats.pixels import Pixels

LOSSY_MASK = "a mask in a lossy format, of which the blurred border is cut at half"
LARGE: int = 1 << 26
"""Bytes up to which a file is read without a look at its header."""
HEADER: int = 1 << 24
"""Bytes in which the header of a picture must lie."""
MAX_PIXEL_BYTES: int = 16
GREY, GREY_ALPHA = 0, 4
"""The types of colour of a PNG without colours."""


def read_picture(content: bytes, kind: str, *, is_label: bool = False) -> Pixels:
    """Reads an image with its own depth; colours are RGB, and transparency is dropped.

    The header may say which side is up. Of a label with a palette the indices are read.

    Args:
        content: the file.
        kind: suffix of its format.
        is_label: whether it holds class indices.

    Raises:
        ValueError: if it cannot be decoded, or is an animation.
    """
    if kind in (".gif", ".webp", ".bmp") or (is_label and _is_palette_png(content)):
        with Image.open(io.BytesIO(content)) as picture:
            _refuse_animation(picture)
            if kind == ".gif" or (is_label and picture.mode in ("P", "1")):
                return Pixels(_indices(picture, kind) if is_label else _colours(picture))
    if kind in (".jp2", ".j2k"):
        return Pixels(without_alpha(imagecodecs.jpeg2k_decode(content)))
    decoded = _decode(content)
    if kind != ".png":
        return Pixels(decoded)
    bits, colour_type = content[24], content[25]
    if colour_type in (GREY, GREY_ALPHA) and decoded.ndim > 2:
        decoded = decoded[:, :, 0]
    # The decoder stretches 1, 2 and 4 bits to 0 to 255.
    return Pixels(decoded // (255 // (2**bits - 1)) if colour_type == GREY and bits < 8 else decoded)


def check_size(path: Path, kind: str) -> None:
    """Refuses a large file that its header does not account for, before it is read whole.

    Raises:
        ValueError: if the start of the file is no image, or the file is far larger than its pixels.
    """
    size = path.stat().st_size
    if size <= LARGE or kind in (".jp2", ".j2k"):
        return
    with path.open("rb") as file:
        start = file.read(HEADER)
    try:
        with Image.open(io.BytesIO(start)) as picture:
            pixels = picture.width * picture.height
    except Image.DecompressionBombError:  # so many pixels that the file may be large
        return
    except UnidentifiedImageError as error:
        raise ValueError("its start is that of no picture") from error
    if size > LARGE + MAX_PIXEL_BYTES * pixels:
        raise ValueError(f"it has {size >> 20} MiB for {pixels:,} pixels")


def is_lossy(content: bytes, kind: str) -> bool:
    """Whether a format changes values."""
    return kind in (".jpg", ".jpeg") or (kind == ".webp" and content[12:16] == b"VP8 ")


def without_alpha(picture: np.ndarray) -> np.ndarray:
    """An image (H, W) or (H, W, C) without the transparency after one or three channels."""
    if picture.ndim == 2 or picture.shape[2] not in (2, 4):
        return picture
    return picture[:, :, 0] if picture.shape[2] == 2 else picture[:, :, :3]


def _decode(content: bytes) -> np.ndarray:
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH  # these turn it upright, unlike IMREAD_UNCHANGED
    with _silent_opencv():
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if picture is None:
        raise ValueError("OpenCV cannot decode it")
    return picture if picture.ndim == 2 else picture[:, :, ::-1]


@contextlib.contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keeps OpenCV from logging failures to stderr; the caller raises an error for them."""
    log_level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(log_level)


def _is_palette_png(content: bytes) -> bool:
    return content[:8] == b"\x89PNG\r\n\x1a\n" and content[25:26] == b"\x03"


def _refuse_animation(picture: Image.Image) -> None:
    """Raises ValueError for several frames.

    The frames of an animation are composed of differences and mostly in reduced colours, so they are no volume.
    """
    if (frames := getattr(picture, "n_frames", 1)) > 1:
        raise ValueError(
            f"it is an animation of {frames} frames: save the frames as PNG, or as the pages of a TIFF"
        )


def _colours(picture: Image.Image) -> np.ndarray:
    """RGB, or grey if all colours of the palette that occur are grey."""
    colours = np.asarray(picture.convert("RGB"))
    grey = (colours == colours[:, :, :1]).all()
    return colours[:, :, 0] if grey else colours


def _indices(picture: Image.Image, kind: str) -> np.ndarray:
    """The indices into the palette, which a decoder would replace by colours.

    A palette of black and white may list them in either order, so its colours are read instead. So are those of a grey
    GIF, because programs that write GIF sort the palette.
    """
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode != "P":
        return np.asarray(picture.convert("L"))
    colours = np.reshape(picture.getpalette() or [], (-1, 3))
    used = colours[np.unique(np.asarray(picture))] if kind == ".gif" else colours
    grey = (used == used[:, :1]).all()
    by_colour = grey and (kind == ".gif" or np.isin(used, (0, 255)).all())
    return np.asarray(picture.convert("L") if by_colour else picture)

"""Pure functions that check raw images and labels and convert them for the store."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from ahm_gym.data.ignored import IGNORED
from ahm_gym.errors import InputError

MAX_CLASSES = 64
PERCENTILES = (0.5, 99.5)
MAX_ARRAY_CHANNELS = 4
"""In a .npy file, a longer last axis holds the slices of a volume; a first axis that is not longer holds channels."""
FOREGROUND = 255
"""The value of the foreground in binary masks from image editors."""
MAX_SIDE = 16_384
"""Largest number of rows or columns of a resampled image."""
MAX_VOXELS = 1 << 30
"""Largest number of voxels of a resampled volume."""
MAX_RIM = 8
"""Maximum width in pixels of a border that JPEG has blurred."""
FEW_GREYS = 4
"""A label from 0 to 1 with more values is a soft mask."""
MIN_GREYS = 16
SMOOTH = 16
"""A label up to 255 with more than `MIN_GREYS` values, which differ by less between most neighbours, is a soft mask."""
ROUNDING = 1e-3
"""Largest difference of a label's values from whole numbers, as rescaled files have it."""


def channels_last(image: np.ndarray, origin: str, axes: int = 2) -> Shaped[np.ndarray, "*S C"]:
    """The image, or the volume with three axes, with its channels in the last axis.

    Raises:
        InputError: if it is not an image of finite real numbers.
    """
    if image.ndim not in (axes, axes + 1) or 0 in image.shape:
        expected = "rows, columns" if axes == 2 else "three axes"
        raise InputError(
            f"{origin} has the shape {image.shape}: expected {expected} and, optionally, channels; "
            "convert it or remove it."
        )
    if axes == 2:
        refuse_channels_first(image.shape, origin)
    if image.dtype.kind not in "buif":
        raise InputError(f"{origin} holds values of type {image.dtype}: expected real numbers; convert it.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError(
            f"{origin} contains NaN or infinite values: expected finite numbers; replace them, or remove "
            "the image."
        )
    return image[..., None] if image.ndim == axes else image


def channels_first(image: Shaped[np.ndarray, "*S C"]) -> Float[Tensor, "C *S"]:
    """The image as a tensor of 32 bits with its channels in the first axis."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0), dtype=np.float32))


def refuse_channels_first(shape: tuple[int, ...], origin: str) -> None:
    """Raises InputError for an array (C, H, W), which would be read as few rows and many channels."""
    if len(shape) == 3 and shape[0] <= MAX_ARRAY_CHANNELS < min(shape[1:]):
        raise InputError(
            f"{origin} has the shape {shape}, apparently channels first: expected rows, columns, channels; move the "
            "channels to the last axis with numpy.moveaxis(image, 0, -1)."
        )


def refuse_slices_first(shape: tuple[int, ...], origin: str) -> None:
    """Raises InputError for an array (S, H, H), which would be read as H slices of S rows each."""
    if len(shape) == 3 and shape[0] != shape[1] == shape[2] > MAX_ARRAY_CHANNELS:
        raise InputError(
            f"{origin} has the shape {shape}, apparently slices first: expected rows, columns, slices; move the "
            "slices to the last axis with numpy.moveaxis(volume, 0, -1), or save it as NIfTI if they already are."
        )


def scale_intensities(image: Shaped[np.ndarray, "*S C"]) -> Float[Tensor, "C *S"]:
    """Scales an image to [0, 1], clipped at its percentiles over all channels; a constant image becomes 0.

    If more than 99 % of the pixels have the same value, as in sparse fluorescence, the percentiles
    coincide, and minimum and maximum are used instead.
    """
    exact = image.dtype.itemsize <= 2
    values = image.astype(np.float32 if exact else np.float64)
    low, high = np.percentile(values, PERCENTILES)
    if high <= low:
        low, high = values.min(), values.max()
    if high <= low:
        return torch.zeros(image.shape[-1], *image.shape[:-1])
    return channels_first(((values - low) / (high - low)).clip(0.0, 1.0))


def stored_side(image_size: tuple[int, ...], native_resolution: bool) -> int | None:
    """Longest shorter side, in pixels, at which images for this training size are kept; None: their own size."""
    return None if native_resolution else 2 * min(image_size)


def shrink(image: Float[Tensor, "C H W"], shortest_side: int | None) -> Float[Tensor, "C H2 W2"]:
    """Shrinks an image, with its aspect ratio kept, until the shorter side has at most `shortest_side` pixels."""
    height, width = image.shape[1:]
    if shortest_side is None or min(height, width) <= shortest_side:
        return image
    scale = shortest_side / min(height, width)
    size = [round(height * scale), round(width * scale)]
    return functional.resize(image, size, antialias=True).clamp(0.0, 1.0)


def resample(image: Float[Tensor, "C *S"], factors: tuple[float, ...], origin: str) -> Float[Tensor, "C *S2"]:
    """An image or a volume with as many times the pixels along each axis.

    Raises:
        InputError: if it would have more than `MAX_SIDE` along one, or a volume more than `MAX_VOXELS`, or only one
            along an axis.
    """
    size = [max(round(side * factor), 1) for side, factor in zip(image.shape[1:], factors, strict=True)]
    if max(size) > MAX_SIDE or (len(size) == 3 and math.prod(size) > MAX_VOXELS):
        what = f"pixels after resampling: expected at most {MAX_SIDE} a side"
        if len(size) == 3:
            what = f"voxels after resampling: expected at most {MAX_SIDE} a side and {MAX_VOXELS} in all"
        raise InputError(
            f"{origin} would have {'x'.join(map(str, size))} {what}; choose a larger `spacing`, in millimetres."
        )
    if size == list(image.shape[1:]):
        return image
    if len(size) == 3 and any(new == 1 < old for new, old in zip(size, image.shape[1:], strict=True)):
        raise InputError(
            f"{origin} would have {'x'.join(map(str, size))} voxels after resampling: check the spacing that it "
            "states, or choose a smaller `spacing`, in millimetres."
        )
    resized = functional.resize(image, size[-2:], antialias=True)
    if len(size) == 3:  # one axis after another, because torchvision resizes two
        sheet = resized.flatten(2)
        resized = functional.resize(sheet, [size[0], sheet.shape[2]], antialias=True).unflatten(2, size[1:])
    return resized.clamp(0.0, 1.0)


def is_soft_edged(label: np.ndarray) -> bool:
    """Whether a label is a black and white mask of which only the edges are grey, as smooth drawing leaves them.

    Every grey pixel lies near both black and white, and they have more than two greys: one or two may be classes.
    """
    if label.ndim == 3 and (label == label[:, :, :1]).all():
        label = label[:, :, 0]
    if label.ndim != 2 or label.dtype != np.uint8 or label.max() != FOREGROUND:
        return False
    grey = (label >= MAX_CLASSES) & (label < FOREGROUND)
    if not grey.any() or len(np.unique(label[grey])) <= 2:
        return False
    near = np.ones((MAX_RIM + 1, MAX_RIM + 1), np.uint8)
    edges = [cv2.dilate(side.astype(np.uint8), near) > 0 for side in (label == 0, label == FOREGROUND)]
    return bool((edges[0] & edges[1])[grey].all())


def sharpen_mask(label: np.ndarray, origin: str) -> np.ndarray:
    """Restores the values 0 and 255 of a black and white mask after JPEG has blurred its borders.

    Raises:
        InputError: if the mask has grey areas, because JPEG does not preserve class indices.
    """
    grey = (label > FOREGROUND // 4) & (label < FOREGROUND - FOREGROUND // 4)
    window = np.ones((MAX_RIM + 1, MAX_RIM + 1), np.uint8)
    wide = cv2.erode(grey.astype(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=0).any()
    if wide or 0 < label.max() <= FOREGROUND // 2:
        raise InputError(
            f"{origin} is a label in JPEG, which changes class indices, and has grey areas: expected black and white "
            "only; save it as PNG with class indices, or cut a soft mask at half and save it as PNG with 0 and 255."
        )
    return np.where(label > FOREGROUND // 2, FOREGROUND, 0).astype(np.uint8)


def _described_as_soft(label: Shaped[np.ndarray, "H W"]) -> str:
    """What the values of a map of grey or of probabilities are; empty if they are of another kind."""
    values = np.unique(label)
    if len(values) > FEW_GREYS and 0 <= values[0] and values[-1] <= 1:
        return f"values between 0 and 1, such as {values[(values > 0) & (values < 1)][0]:.2g}"
    steps = np.abs(np.diff(label.astype(np.float64), axis=1))
    smooth = (steps > 0).any() and np.median(steps[steps > 0]) < SMOOTH
    if smooth and len(values) > MIN_GREYS and values[0] >= 0 and values[-1] <= FOREGROUND:
        return (
            f"{len(values)} values up to {values[-1]:g}, with grey areas or edges wider than {MAX_RIM} pixels"
        )
    return ""


def rounded(label: Shaped[np.ndarray, "*size"]) -> Shaped[np.ndarray, "*size"]:
    """The label with values within 0.001 of a whole number rounded."""
    if label.dtype.kind != "f":
        return label
    whole = np.rint(label)
    return np.where(np.isclose(label, whole, rtol=0, atol=ROUNDING), whole, label)


def class_indices(
    label: np.ndarray, size: tuple[int, ...], origin: str, *, ignored: bool = False
) -> UInt8[np.ndarray, "*S"]:
    """The label as class indices below 64, or with 255 as the foreground of a binary mask.

    Values within 0.001 of a whole number are rounded.

    Args:
        label: the axes of the image, optionally with equal channels after them or a single channel before them.
        size: length of each axis of the image.
        origin: the file of the label, for the message.
        ignored: whether pixels may have the value `IGNORED`.

    Raises:
        InputError: if the label has another size than its image, or other values than class indices.
    """
    with_channels = len(size) + 1
    if label.ndim == with_channels and label.shape[0] == 1 and label.shape[1:] == size:
        label = label[0]
    if label.ndim == with_channels and (label == label[..., :1]).all():
        label = label[..., 0]
    if label.ndim != len(size):
        raise InputError(
            f"{origin} has the shape {label.shape}: expected one channel of class indices; "
            "save the label as a single-channel image."
        )
    if label.shape != size:
        own, expected = ("x".join(map(str, shape)) for shape in (label.shape, size))
        raise InputError(
            f"{origin} is {own} pixels and its image {expected}: "
            "expected the same size; resample the label with nearest neighbours."
        )
    if label.dtype.kind not in "buif":
        raise InputError(f"{origin} holds values of type {label.dtype}: expected class indices; convert it.")
    label = rounded(label)
    values = np.unique(label).astype(np.float64)
    known = (values < MAX_CLASSES) | (values == FOREGROUND) | (ignored & (values == IGNORED))
    wrong = values[~(known & (values >= 0) & (values == np.floor(values)))]  # NaN is never equal
    if len(wrong) and (soft := _described_as_soft(label)):
        raise InputError(
            f"{origin} is no mask of whole numbers but a soft one: it has {soft}, and it cannot be told where the "
            "foreground begins; cut it at a threshold of your choice, such as half of the largest value, and save it "
            "as 0 and 1."
        )
    if len(wrong):
        raise InputError(
            f"class index out of range: {origin} contains the value {wrong[0]:g}, expected whole numbers from 0 to "
            f"{MAX_CLASSES - 1}, or only 0 and 255; renumber the classes, give their values in a dataset.json, which "
            "ahm-gym look writes, or move the labels elsewhere to pretrain without them."
        )
    return label.astype(np.uint8)

"""Random parts of images, and rules that choose among several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from ahm_gym.errors import InputError, unknown_name

CROP_SCALE: tuple[float, float] = (0.2, 1.0)
"""Range of the share of the image's area that a random crop covers."""
CROP_ASPECT: tuple[float, float] = (3 / 4, 4 / 3)
"""Range of the factor by which a random crop's aspect differs from the training size's."""
NUM_CANDIDATES: int = 4
"""Number of random crops among which a rule chooses."""
RULED_SHARE: float = 0.5
"""Probability that an image is cropped by the rule. The others have a uniform crop, so that the background is seen."""

Box: TypeAlias = tuple[int, ...]
"""Where a crop starts along each axis, and its length along each, in pixels: top, left, height, width of an image.
Those of a volume may reach beyond it."""


def inside(image: Float[Tensor, "C *S"], box: Box) -> Float[Tensor, "C *_"]:
    """The part of an image that a box covers, as far as it lies inside."""
    axes = image.ndim - 1
    places = zip(box[:axes], box[axes:], strict=True)
    return image[(slice(None), *(slice(max(start, 0), start + length) for start, length in places))]


def nearness_to_centre(image: Float[Tensor, "C *S"], box: Box) -> float:
    """Minus the distance from the centre of the box to that of the image, in pixels."""
    axes = image.ndim - 1
    places = zip(box[:axes], box[axes:], image.shape[1:], strict=True)
    return -math.hypot(*(start + length / 2 - whole / 2 for start, length, whole in places))


def contrast(image: Float[Tensor, "C *S"], box: Box) -> float:
    """Standard deviation of all values in the box, of all channels together."""
    return float(inside(image, box).float().std(correction=0))


def foreground(mask: Float[Tensor, "1 *S"], box: Box) -> float:
    """Share of the pixels in the box that belong to a structure."""
    return float(inside(mask, box).mean())


CROPS: dict[str, Callable[[Tensor, Box], float] | None] = {
    "uniform": None,
    "centre": nearness_to_centre,
    "contrast": contrast,
    "oracle": foreground,
}
"""What a rule maximises; None takes the first crop that is drawn. `oracle` looks at true labels, as a control."""


def check_crop(crop: str, *, random: bool) -> None:
    """Raises InputError if the rule is unknown, or chooses among crops where none are `random`."""
    if crop not in CROPS:
        raise unknown_name("crop", crop, CROPS)
    if crop != "uniform" and not random:
        raise InputError(
            f"`crop={crop}` chooses among random crops, and a tensor of ready images or `augment=False` has none: "
            "leave `crop` out."
        )


def random_crops(
    images: list[Tensor],
    image_size: tuple[int, ...],
    crop: str,
    shown: list[Tensor] | None = None,
    rows: slice = slice(None),
) -> Float[Tensor, "b C *S"]:
    """A random part of every image of some rows, of an image resized; it is drawn from torch's generator for all.

    Args:
        images: images (C, *_) of any sizes; of those in other rows, only the size counts. Of a volume, which may be a
            memory map of 16 bits, only the crop is read.
        image_size: length of each axis of the crops.
        crop: a rule in `CROPS`; about half of the images follow it, the others have a uniform crop.
        shown: what the rule looks at, of the size of each image. None: the images.
        rows: the images that are cropped.
    """
    ruled = [False] * len(images) if crop == "uniform" else (torch.rand(len(images)) < RULED_SHARE).tolist()
    rules = [crop if follows else "uniform" for follows in ruled]
    drawn = [draw_boxes(image, image_size, rule) for image, rule in zip(images, rules, strict=True)]
    chosen = list(zip(images, rules, drawn, shown or images, strict=True))[rows]
    return torch.stack(
        [cut(image, best_box(boxes, rule, looked_at), image_size) for image, rule, boxes, looked_at in chosen]
    )


def random_crop(
    image: Float[Tensor, "C *S"],
    image_size: tuple[int, ...],
    crop: str = "uniform",
    shown: Float[Tensor, "_ *S"] | None = None,
) -> Float[Tensor, "C *S2"]:
    """A random part of the image by a rule in `CROPS`, as `cut` makes it; it is drawn from torch's global generator.

    The rule looks at what is `shown`; None: at the image.
    """
    box = best_box(draw_boxes(image, image_size, crop), crop, image if shown is None else shown)
    return cut(image, box, image_size)


def cut(image: Float[Tensor, "C *S"], box: Box, image_size: tuple[int, ...]) -> Float[Tensor, "C *S2"]:
    """The part of an image in a box, resized; or that of a volume in a box of `image_size`, with 0 outside of it."""
    if image.ndim == 3:
        top, left, height, width = box
        return v2.functional.resized_crop(image, top, left, height, width, list(image_size), antialias=True)
    return padded(inside(image, box).float(), box, image.shape[1:], 0)


def padded(
    part: Shaped[Tensor, "*B D2 H2 W2"], box: Box, size: tuple[int, ...], value: int
) -> Shaped[Tensor, "*B D H W"]:
    """What a box covers of a volume of `size`, with a value in the rest of the box."""
    margins = [
        (max(-start, 0), max(start + length - whole, 0))
        for start, length, whole in zip(box[:3], box[3:], size, strict=True)
    ]
    return functional.pad(part, [side for pair in reversed(margins) for side in pair], value=value)


def central_box(size: tuple[int, ...], length: tuple[int, ...]) -> Box:
    """The box of some length in the middle of a volume of `size`."""
    return *((whole - own) // 2 for whole, own in zip(size, length, strict=True)), *length


def share_outside(sizes: Sequence[tuple[int, ...]], image_size: tuple[int, ...]) -> float:
    """The share of all voxels of random crops of volumes of some sizes that lies outside of the volumes."""
    shares = [
        math.prod(min(own, side) / side for own, side in zip(size, image_size, strict=True)) for size in sizes
    ]
    return 1.0 - sum(shares) / len(shares)


def draw_boxes(image: Float[Tensor, "C *S"], image_size: tuple[int, ...], crop: str) -> list[Box]:
    """The random crops among which a rule in `CROPS` chooses."""
    number = 1 if CROPS[crop] is None else NUM_CANDIDATES
    return [draw_box(image, image_size) for _ in range(number)]


def best_box(boxes: list[Box], crop: str, shown: Float[Tensor, "_ *S"]) -> Box:
    """The crop that a rule in `CROPS` chooses, which looks at what is `shown`."""
    score = CROPS[crop]
    return boxes[0] if score is None else max(boxes, key=partial(score, shown))


def draw_box(image: Float[Tensor, "C *S"], image_size: tuple[int, ...]) -> Box:
    """The place of a random crop, from torch's global generator.

    Of a volume it has `image_size`, and lies inside it along every axis on which it fits.
    """
    if image.ndim == 4:
        middle = central_box(image.shape[1:], image_size)[:3]
        gaps = [whole - own for whole, own in zip(image.shape[1:], image_size, strict=True)]
        drawn = [int(torch.randint(max(gap, 0) + 1, ())) for gap in gaps]
        starts = (start if gap > 0 else own for gap, start, own in zip(gaps, drawn, middle, strict=True))
        return *starts, *image_size
    aspect = image_size[1] / image_size[0]
    ratio = [aspect * CROP_ASPECT[0], aspect * CROP_ASPECT[1]]
    return v2.RandomResizedCrop.get_params(image, list(CROP_SCALE), ratio)

"""Random parts of images, and rules that choose among several."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
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

Box: TypeAlias = tuple[int, int, int, int]
"""Top, left, height and width of a crop, in pixels."""


def nearness_to_centre(image: Float[Tensor, "C H W"], box: Box) -> float:
    """Minus the distance from the centre of the box to that of the image, in pixels."""
    top, left, height, width = box
    return -math.hypot(top + height / 2 - image.shape[1] / 2, left + width / 2 - image.shape[2] / 2)


def contrast(image: Float[Tensor, "C H W"], box: Box) -> float:
    """Standard deviation of all values in the box, of all channels together."""
    top, left, height, width = box
    return float(image[:, top : top + height, left : left + width].std(correction=0))


def foreground(mask: Float[Tensor, "1 H W"], box: Box) -> float:
    """Share of the pixels in the box that belong to a structure."""
    top, left, height, width = box
    return float(mask[:, top : top + height, left : left + width].mean())


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
    images: list[Float[Tensor, "C _ _"]],
    image_size: tuple[int, ...],
    crop: str,
    shown: list[Float[Tensor, "_ _ _"]] | None = None,
    rows: slice = slice(None),
) -> Float[Tensor, "b C H W"]:
    """A random part of every image of some rows, resized; for all images it is drawn from torch's global generator.

    Args:
        images: images of any sizes; of those in other rows, only the size counts.
        image_size: rows and columns of the crops.
        crop: a rule in `CROPS`; about half of the images follow it, the others have a uniform crop.
        shown: what the rule looks at, of the size of each image. None: the images.
        rows: the images that are cropped.
    """
    ruled = [False] * len(images) if crop == "uniform" else (torch.rand(len(images)) < RULED_SHARE).tolist()
    rules = [crop if follows else "uniform" for follows in ruled]
    drawn = [draw_boxes(image, image_size, rule) for image, rule in zip(images, rules, strict=True)]
    chosen = list(zip(images, rules, drawn, shown or images, strict=True))[rows]
    return torch.stack(
        [
            v2.functional.resized_crop(
                image, *best_box(boxes, rule, looked_at), list(image_size), antialias=True
            )
            for image, rule, boxes, looked_at in chosen
        ]
    )


def random_crop(
    image: Float[Tensor, "C H W"],
    image_size: tuple[int, ...],
    crop: str = "uniform",
    shown: Float[Tensor, "_ H W"] | None = None,
) -> Float[Tensor, "C H2 W2"]:
    """A random part of the image by a rule in `CROPS`, resized; it is drawn from torch's global generator.

    The rule looks at what is `shown`; None: at the image.
    """
    box = best_box(draw_boxes(image, image_size, crop), crop, image if shown is None else shown)
    return v2.functional.resized_crop(image, *box, list(image_size), antialias=True)


def draw_boxes(image: Float[Tensor, "C H W"], image_size: tuple[int, ...], crop: str) -> list[Box]:
    """The random crops among which a rule in `CROPS` chooses."""
    number = 1 if CROPS[crop] is None else NUM_CANDIDATES
    return [draw_box(image, image_size) for _ in range(number)]


def best_box(boxes: list[Box], crop: str, shown: Float[Tensor, "_ H W"]) -> Box:
    """The crop that a rule in `CROPS` chooses, which looks at what is `shown`."""
    score = CROPS[crop]
    return boxes[0] if score is None else max(boxes, key=partial(score, shown))


def draw_box(image: Float[Tensor, "C H W"], image_size: tuple[int, ...]) -> Box:
    """The place of a random crop, from torch's global generator."""
    aspect = image_size[1] / image_size[0]
    ratio = [aspect * CROP_ASPECT[0], aspect * CROP_ASPECT[1]]
    return v2.RandomResizedCrop.get_params(image, list(CROP_SCALE), ratio)

"""Random rectangles, or boxes in volumes, one after another, as scores."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.masking.selection import random_scores


def block_scores(
    num_images: int,
    grid: tuple[int, ...],
    generator: torch.Generator,
    *,
    num_rectangles: int = 24,
    smallest: float = 0.08,
    largest: float = 0.4,
    flattest: float = 0.3,
) -> Float[Tensor, "B L"]:
    """Scores with which one rectangle after another is masked: the mask of BEiT (Bao et al., ICLR 2022).

    Args:
        num_images: number of images.
        grid: number of patches along each axis.
        generator: generator of all draws.
        num_rectangles: number of rectangles; what they do not cover is masked last, in random order.
        smallest: least share of the image that a rectangle covers.
        largest: largest share.
        flattest: least aspect ratio; the largest is its inverse. In a volume, each side but the last has such a ratio,
            as a cube, to a cube as large as the box.
    """
    axes = len(grid)
    area, *drawn = torch.rand((2 * axes, num_images, num_rectangles), generator=generator)
    area = (smallest + (largest - smallest) * area) * math.prod(grid)
    ratios = [((2 * ratio - 1) * -math.log(flattest)).exp() for ratio in drawn[: axes - 1]]
    powers = [*(area * ratio for ratio in ratios), area / math.prod(ratios)]
    covered = torch.ones(num_images, num_rectangles, 1, dtype=torch.bool)
    for length, power, place in zip(grid, powers, drawn[axes - 1 :], strict=True):
        side = power.pow(1 / axes).round().clamp(1, length)
        start = (place * (length - side + 1)).floor()
        covered = (covered[..., None] & _within(start, side, length)[..., None, :]).flatten(2)  # B R L
    first = torch.where(covered.any(dim=1), covered.int().argmax(dim=1), num_rectangles)
    return random_scores((num_images, math.prod(grid)), generator) - first


def _within(start: Float[Tensor, "B R"], length: Float[Tensor, "B R"], size: int) -> Bool[Tensor, "B R size"]:
    index = torch.arange(size)
    return (index >= start[..., None]) & (index < (start + length)[..., None])

"""Random rectangles, one after another, as scores."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.masking.selection import random_scores


def block_scores(
    num_images: int,
    grid: tuple[int, int],
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
        grid: rows and columns of patches.
        generator: generator of all draws.
        num_rectangles: number of rectangles; what they do not cover is masked last, in random order.
        smallest: least share of the image that a rectangle covers.
        largest: largest share.
        flattest: least aspect ratio; the largest is its inverse.
    """
    rows, columns = grid
    area, aspect, top, left = torch.rand((4, num_images, num_rectangles), generator=generator)
    area = (smallest + (largest - smallest) * area) * rows * columns
    aspect = ((2 * aspect - 1) * -math.log(flattest)).exp()
    height = (area * aspect).sqrt().round().clamp(1, rows)
    width = (area / aspect).sqrt().round().clamp(1, columns)
    top = (top * (rows - height + 1)).floor()
    left = (left * (columns - width + 1)).floor()
    inside_rows = _within(top, height, rows)  # B R rows
    inside_columns = _within(left, width, columns)  # B R columns
    covered = (inside_rows[..., :, None] & inside_columns[..., None, :]).flatten(2)  # B R L
    first = torch.where(covered.any(dim=1), covered.int().argmax(dim=1), num_rectangles)
    return random_scores((num_images, rows * columns), generator) - first


def _within(start: Float[Tensor, "B R"], length: Float[Tensor, "B R"], size: int) -> Bool[Tensor, "B R size"]:
    index = torch.arange(size)
    return (index >= start[..., None]) & (index < (start + length)[..., None])

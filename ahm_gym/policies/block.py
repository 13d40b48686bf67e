"""Masks made of rectangles, or boxes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.policies.base import MaskPolicy


class BlockPolicy(MaskPolicy):
    """Random rectangles, one after another, until the mask ratio is reached: the mask of BEiT (Bao et al., ICLR 2022).

    A rectangle covers 8 to 40 % of the image, with an aspect ratio of 0.3 to 1 / 0.3. In a volume they are boxes, whose
    first sides have such ratios to that of a cube of their volume.
    """

    num_rectangles: int = 24
    smallest: float = 0.08
    largest: float = 0.4
    flattest: float = 0.3

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        batch, num_patches = patches.embeddings.shape[:2]
        covered = self._rectangles(batch, patches.grid, generator)  # B R L
        first = torch.where(covered.any(dim=1), covered.int().argmax(dim=1), self.num_rectangles)
        return random_scores((batch, num_patches), generator) - first

    def _rectangles(
        self, batch: int, grid: tuple[int, ...], generator: torch.Generator
    ) -> Bool[Tensor, "B R L"]:
        axes = len(grid)
        area, *drawn = torch.rand((2 * axes, batch, self.num_rectangles), generator=generator)
        area = (self.smallest + (self.largest - self.smallest) * area) * math.prod(grid)
        ratios = [((2 * ratio - 1) * -math.log(self.flattest)).exp() for ratio in drawn[: axes - 1]]
        scaled = [*(area * ratio for ratio in ratios), area / math.prod(ratios)]
        inside = torch.ones(batch, self.num_rectangles, 1, dtype=torch.bool)
        for length, size, place in zip(grid, scaled, drawn[axes - 1 :], strict=True):
            side = size.pow(1 / axes).round().clamp(1, length)
            start = (place * (length - side + 1)).floor()
            inside = (inside[..., None] & _within(start, side, length)[..., None, :]).flatten(2)
        return inside


def _within(start: Float[Tensor, "B R"], length: Float[Tensor, "B R"], size: int) -> Bool[Tensor, "B R size"]:
    index = torch.arange(size)
    return (index >= start[..., None]) & (index < (start + length)[..., None])

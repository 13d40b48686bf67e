"""Masks made of rectangles."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.policies.base import MaskPolicy


class BlockPolicy(MaskPolicy):
    """Random rectangles, one after another, until the mask ratio is reached: the mask of BEiT (Bao et al., ICLR 2022).

    A rectangle covers 8 to 40 % of the image, with an aspect ratio of 0.3 to 1 / 0.3.
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
        self, batch: int, grid: tuple[int, int], generator: torch.Generator
    ) -> Bool[Tensor, "B R L"]:
        rows, columns = grid
        area, aspect, top, left = torch.rand((4, batch, self.num_rectangles), generator=generator)
        area = (self.smallest + (self.largest - self.smallest) * area) * rows * columns
        aspect = ((2 * aspect - 1) * -math.log(self.flattest)).exp()
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        top = (top * (rows - height + 1)).floor()
        left = (left * (columns - width + 1)).floor()
        inside_rows = _within(top, height, rows)  # B R rows
        inside_columns = _within(left, width, columns)  # B R columns
        return (inside_rows[..., :, None] & inside_columns[..., None, :]).flatten(2)


def _within(start: Float[Tensor, "B R"], length: Float[Tensor, "B R"], size: int) -> Bool[Tensor, "B R size"]:
    index = torch.arange(size)
    return (index >= start[..., None]) & (index < (start + length)[..., None])

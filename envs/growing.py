"""The mask of a batch while it grows, step by step."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.errors import InputError
from ahm_gym.masking.selection import select_patches
from ahm_gym.masking.spread import Spread, draw_spread


class GrowingMask:
    """Which patches are masked so far, which of them by choice, and how many the coming steps take.

    Args:
        num_images: in the batch.
        grid: rows and columns of patches.
        steps: (num_new, num_guided) of every step.
        spread_share: share of the images whose cells each keep some visible patch.
        generator: for every draw; the first is made by the first step.
    """

    def __init__(
        self,
        num_images: int,
        grid: tuple[int, int],
        steps: list[tuple[int, int]],
        spread_share: float,
        generator: torch.Generator,
    ) -> None:
        self.grid, self.steps, self.spread_share, self.generator = grid, steps, spread_share, generator
        self.masked = self.guided = torch.zeros(num_images, grid[0] * grid[1], dtype=torch.bool)
        self.num_done = 0
        self._spread: Spread | None = None

    @property
    def complete(self) -> bool:
        return self.num_done == len(self.steps)

    @property
    def num_guided(self) -> int:
        """Patches that the coming step chooses; 0 once the mask is complete."""
        return 0 if self.complete else self.steps[self.num_done][1]

    @property
    def available(self) -> Bool[Tensor, "B L"]:
        """True where a patch can still be masked: it is not yet, and its cell may lose one more."""
        full = self.masked if self._spread is None else self.masked | self._spread.full(self.masked)
        return ~full

    def choose(self, scores: Float[Tensor, "B L"]) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """What the coming step masks, and which of that follows the scores; see `select_patches`.

        Raises:
            InputError: for scores of another shape, or a NaN in them.
        """
        if scores.shape != self.masked.shape:
            raise InputError(
                f"actions of shape {tuple(scores.shape)}: one score a patch is expected, {tuple(self.masked.shape)}."
            )
        if self.num_done == 0:
            num_masked = sum(num_new for num_new, _ in self.steps)
            self._spread = draw_spread(
                self.spread_share, self.grid, num_masked, len(self.masked), self.generator
            )
        num_new, num_guided = self.steps[self.num_done]
        return select_patches(scores, num_new, num_guided, self.generator, self.masked, self._spread)

    def grow(self, new: Bool[Tensor, "B L"], guided: Bool[Tensor, "B L"]) -> None:
        """Takes what a step has chosen."""
        self.masked, self.guided = self.masked | new, self.guided | guided
        self.num_done += 1

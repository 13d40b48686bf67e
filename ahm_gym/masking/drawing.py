"""Masks drawn from scores: step by step, or all at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import check_share
from ahm_gym.masking.selection import select_patches
from ahm_gym.masking.spread import Spread, draw_spread


class GrowingMask:
    """The masks of a batch so far, and how many patches the coming steps take.

    Args:
        num_images: in the batch.
        grid: rows and columns of patches.
        steps: (num_new, num_guided) of every step.
        spread_fraction: chance of an image that each of its windows keeps some visible patch.
        generator: for every draw; the first is made by the first step.
    """

    def __init__(
        self,
        num_images: int,
        grid: tuple[int, int],
        steps: list[tuple[int, int]],
        spread_fraction: float,
        generator: torch.Generator,
    ) -> None:
        self.grid, self.steps, self.generator = grid, steps, generator
        self.spread_fraction = spread_fraction
        self.masks = Masks.of(torch.zeros(num_images, grid[0] * grid[1], dtype=torch.bool))
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
        """True where a patch can still be masked: it is not yet, and its window may lose one more."""
        masked = self.masks.masked
        return ~(masked if self._spread is None else masked | self._spread.full(masked))

    def choose(self, scores: Float[Tensor, "B L"]) -> Masks:
        """What the coming step masks; see `select_patches`.

        Raises:
            InputError: for scores of another shape, or a NaN in them.
        """
        masked = self.masks.masked
        if scores.shape != masked.shape:
            raise InputError(
                f"actions of shape {tuple(scores.shape)}: one score a patch is expected, {tuple(masked.shape)}."
            )
        if self.num_done == 0:
            num_masked = sum(num_new for num_new, _ in self.steps)
            self._spread = draw_spread(
                self.spread_fraction, self.grid, num_masked, len(masked), self.generator
            )
        num_new, num_guided = self.steps[self.num_done]
        return Masks.of(*select_patches(scores, num_new, num_guided, self.generator, masked, self._spread))

    def grow(self, new: Masks) -> None:
        """Adds what a step has chosen."""
        self.masks = Masks.of(self.masks.masked | new.masked, self.masks.guided | new.guided)
        self.num_done += 1


def draw_masks(
    scores: Float[Tensor, "B L"],
    grid: tuple[int, int],
    num_masked: int,
    generator: torch.Generator,
    *,
    guided_fraction: float = 1.0,
    spread_fraction: float = 0.0,
) -> Masks:
    """Masks of `num_masked` patches in every image, as the environment draws them in an episode of one step.

    Args:
        scores: one a patch, in main memory; the highest are masked first.
        grid: rows and columns of patches.
        num_masked: masked patches of an image.
        generator: for every draw.
        guided_fraction: share of the masked patches that follow the scores; the rest is drawn uniformly.
        spread_fraction: share of the images whose visible patches are spread over the grid.

    Raises:
        InputError: where a score is not finite, or a share is out of range.
    """
    num_guided = round(check_share(guided_fraction, "guided fraction") * num_masked)
    mask = GrowingMask(len(scores), grid, [(num_masked, num_guided)], spread_fraction, generator)
    mask.grow(mask.choose(scores))
    return mask.masks

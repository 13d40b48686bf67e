"""Draws masks from scores, in one step or in several."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import check_share
from ahm_gym.masking.selection import select_patches
from ahm_gym.masking.spread import Spread, draw_spread


class GrowingMask:
    """The masks of a batch, drawn over the steps of an episode.

    In every step, `choose` selects patches by their scores and `grow` adds them to the masks.

    Args:
        num_images: number of images in the batch.
        grid: number of patches along each axis.
        steps: (num_new, num_guided) for every step: the patches to mask, and how many of them the scores choose.
        spread_fraction: probability that an image gets a spread mask; see `Spread`.
        generator: generator of all random draws; nothing is drawn before the first step.
    """

    def __init__(
        self,
        num_images: int,
        grid: tuple[int, ...],
        steps: list[tuple[int, int]],
        spread_fraction: float,
        generator: torch.Generator,
    ) -> None:
        self.grid: tuple[int, ...] = grid
        self.steps: list[tuple[int, int]] = steps
        self.spread_fraction: float = spread_fraction
        self.generator: torch.Generator = generator
        self.masks: Masks = Masks.of(torch.zeros(num_images, math.prod(grid), dtype=torch.bool))
        self.num_done: int = 0
        self._spread: Spread | None = None

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.num_done == len(self.steps)

    @property
    def num_guided(self) -> int:
        """Number of patches that the scores choose in the next step; 0 once the masks are complete."""
        return 0 if self.complete else self.steps[self.num_done][1]

    @property
    def available(self) -> Bool[Tensor, "B L"]:
        """True for patches that can still be masked: visible ones, except in windows that must keep theirs."""
        masked = self.masks.masked
        return ~(masked if self._spread is None else masked | self._spread.full(masked))

    def choose(self, scores: Float[Tensor, "B L"]) -> Masks:
        """The patches that the next step masks; see `select_patches`.

        Raises:
            InputError: if the scores have another shape or contain NaN.
        """
        masked = self.masks.masked
        if scores.shape != masked.shape:
            raise InputError(
                f"the actions have shape {tuple(scores.shape)}: expected one score per patch, {tuple(masked.shape)}."
            )
        if self.num_done == 0:
            num_masked = sum(num_new for num_new, _ in self.steps)
            self._spread = draw_spread(
                self.spread_fraction, self.grid, num_masked, len(masked), self.generator
            )
        num_new, num_guided = self.steps[self.num_done]
        return Masks.of(*select_patches(scores, num_new, num_guided, self.generator, masked, self._spread))

    def grow(self, new: Masks) -> None:
        """Adds the patches that `choose` returned and ends the step."""
        self.masks = Masks.of(self.masks.masked | new.masked, self.masks.guided | new.guided)
        self.num_done += 1


def draw_masks(
    scores: Float[Tensor, "B L"],
    grid: tuple[int, ...],
    num_masked: int,
    generator: torch.Generator,
    *,
    guided_fraction: float = 1.0,
    spread_fraction: float = 0.0,
) -> Masks:
    """Masks with `num_masked` patches in every image, drawn in one step.

    Args:
        scores: one score per patch, in main memory; the patches with the highest scores are masked first.
        grid: number of patches along each axis.
        num_masked: number of masked patches in each image.
        generator: generator of all random draws.
        guided_fraction: share of the masked patches that the scores choose; the rest is drawn uniformly.
        spread_fraction: probability that an image gets a spread mask; see `Spread`.

    Raises:
        InputError: if a score is not finite or a share is out of range.
    """
    num_guided = round(check_share(guided_fraction, "guided fraction") * num_masked)
    mask = GrowingMask(len(scores), grid, [(num_masked, num_guided)], spread_fraction, generator)
    mask.grow(mask.choose(scores))
    return mask.masks

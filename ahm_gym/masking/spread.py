"""Spread masks: windows of the grid that each keep some patches visible."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ahm_gym.device.transfers import to_device
from ahm_gym.masking.schedules import Ramp
from ahm_gym.masking.sorting import sorting_order


@dataclass(frozen=True, eq=False)
class Spread:
    """Windows of the grid that each keep some patches visible, regardless of the scores.

    Masks that follow difficulty form clusters, and far from all visible patches an autoencoder can only guess.
    Windows keep context everywhere; the scores decide which patches of a window are visible. With random scores
    this is the uniform sampling of UM-MAE (Li et al., 2022), without its secondary masking.
    """

    window: Int[Tensor, " L"]
    """Index of the window that each patch belongs to."""
    allowed: Bool[Tensor, "*B L"]
    """One window after the other, one entry per patch: True for as many patches as may be masked, then False.

    A 2x2 window that keeps one patch visible has True, True, True, False. One row for each image, or one for all.
    """

    def allowed_first(
        self, order: Int[Tensor, "B L"], masked: Bool[Tensor, "B L"] | None = None
    ) -> Int[Tensor, "B L"]:
        """The same order, with the patches that may not be masked at the end.

        Args:
            order: patch indices in the order in which they would be masked.
            masked: patches that are masked already; they use up what their windows allow, and go to the end too.
        """
        if masked is not None:
            order = _chosen_first(order, masked.gather(1, order))
        by_window = sorting_order(to_device(self.window, order.device)[order], stable=True)
        # Windows have the same sizes in every image, so `allowed` fits any order once it is sorted by window.
        allowed_by_window = to_device(self.allowed, order.device).expand(order.shape)
        allowed = torch.zeros_like(order, dtype=torch.bool).scatter(1, by_window, allowed_by_window)
        if masked is not None:
            allowed = allowed & ~masked.gather(1, order)
        return _chosen_first(order, allowed)

    def full(self, masked: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """True for patches in windows that already have as many masked patches as they may have."""
        zeros = torch.zeros(len(masked), int(self.window.max()) + 1)
        limit = zeros.index_add(1, self.window.sort().values, self.allowed.expand(masked.shape).float())
        return (zeros.index_add(1, self.window, masked.float()) >= limit)[:, self.window]


SPREAD_FALL: Ramp = Ramp(first=1.0, last=0.0, start=0.0, end=0.5)
"""Share of images with spread masks over training: all of them at first, none from the middle on.

Spread masks are easier and teach more in the beginning; later, random masks do.
"""


@lru_cache(maxsize=64)
def spread_over(grid: tuple[int, ...], num_masked: int) -> Spread:
    """The smallest windows, as long along every axis, that have at least one visible patch on average.

    Each window keeps at least its share of the visible patches, rounded down. At a mask ratio of 0.75 the windows
    are 2x2 patches and each keeps one; smaller windows at the edge keep none.
    """
    # Counted in half patches, with half a patch more visible: the number of masked patches was rounded, and this
    # rounding must not cost a window its visible patch.
    whole, visible = 2 * math.prod(grid), 2 * (math.prod(grid) - num_masked) + 1
    side = next(side for side in itertools.count(1) if side ** len(grid) * visible >= whole)
    window = torch.zeros(1, dtype=torch.long)
    for length in grid:
        window = (window[:, None] * math.ceil(length / side) + torch.arange(length) // side).flatten()
    sizes = torch.bincount(window)
    kept = sizes * visible // whole
    allowed = [torch.arange(int(size)) < size - keep for size, keep in zip(sizes, kept, strict=True)]
    return Spread(window, torch.cat(allowed))


def draw_spread(
    share: float, grid: tuple[int, ...], num_masked: int, num_images: int, generator: torch.Generator
) -> Spread | None:
    """Windows for a batch in which each image gets a spread mask with probability `share`; None for share 0."""
    if share == 0.0:
        return None
    spread = spread_over(grid, num_masked)
    if share == 1.0:
        return spread
    drawn = torch.rand(num_images, generator=generator) < share
    return Spread(spread.window, spread.allowed | ~drawn[:, None])


def _chosen_first(order: Int[Tensor, "B L"], chosen: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The same order, with the chosen entries before the others; `chosen[:, i]` belongs to `order[:, i]`."""
    return order.gather(1, sorting_order(~chosen, stable=True))

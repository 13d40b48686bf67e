"""Visible patches all over the image: windows of the grid that each keep some."""

from __future__ import annotations

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
    """Windows of which each keeps some visible patch, whatever the scores say.

    Masks that follow difficulty cluster, and far from everything visible an autoencoder can only guess. Windows
    keep its context: the scores decide which patches of a window it sees. Random choices in the windows are the
    uniform sampling of UM-MAE (Li et al., 2022), without its secondary masking.
    """

    window: Int[Tensor, " L"]
    """The window of every patch."""
    allowed: Bool[Tensor, "*B L"]
    """Whether the first, second, ... patch of a window may be masked; window after window, of each image or of all."""

    def allowed_first(
        self, order: Int[Tensor, "B L"], masked: Bool[Tensor, "B L"] | None = None
    ) -> Int[Tensor, "B L"]:
        """The same order with those patches last that may not be masked, or are masked already.

        Args:
            order: patch indices, those to be masked first.
            masked: they count as the first of their windows.
        """
        if masked is not None:
            order = _first(order, masked.gather(1, order))
        by_window = sorting_order(to_device(self.window, order.device)[order], stable=True)
        # A window has as many patches in every image, and so the same places once the order is sorted by window.
        places = to_device(self.allowed, order.device).expand(order.shape)
        allowed = torch.zeros_like(order, dtype=torch.bool).scatter(1, by_window, places)
        if masked is not None:
            allowed = allowed & ~masked.gather(1, order)
        return _first(order, allowed)

    def full(self, masked: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """Patches of windows in which no more may be masked once these are."""
        none = torch.zeros(len(masked), int(self.window.max()) + 1)
        most = none.index_add(1, self.window.sort().values, self.allowed.expand(masked.shape).float())
        return (none.index_add(1, self.window, masked.float()) >= most)[:, self.window]


SPREAD_FALL = Ramp(first=1.0, last=0.0, start=0.0, end=0.5)
"""A share of images with spread masks: all at first, none from the middle of training on.

Spread masks are easy, and teach more early on; later random ones do.
"""


@lru_cache(maxsize=64)
def spread_over(grid: tuple[int, int], num_masked: int) -> Spread:
    """Square windows, as small as they can be for a random mask to show one patch of each on average.

    Each keeps at least its part of the visible patches, rounded down. At a ratio of 0.75 these are windows of
    2x2 of which one patch stays visible; those at the edge may be smaller, and keep none.
    """
    rows, columns = grid
    # In halves of a patch, and half a patch more: the count of masked ones was rounded, and a window must not lose
    # its own by that.
    whole, visible = 2 * rows * columns, 2 * (rows * columns - num_masked) + 1
    side = math.isqrt(-(-whole // visible) - 1) + 1  # the least whose square times visible is the whole
    down, across = torch.arange(rows) // side, torch.arange(columns) // side
    window = (down[:, None] * math.ceil(columns / side) + across).flatten()
    sizes = torch.bincount(window)
    kept = sizes * visible // whole
    allowed = [torch.arange(int(size)) < size - keep for size, keep in zip(sizes, kept, strict=True)]
    return Spread(window, torch.cat(allowed))


def draw_spread(
    share: float, grid: tuple[int, int], num_masked: int, num_images: int, generator: torch.Generator
) -> Spread | None:
    """The spread of a batch, each image of which has it by a chance of `share`; None where none has."""
    if share == 0.0:
        return None
    spread = spread_over(grid, num_masked)
    if share == 1.0:
        return spread
    drawn = torch.rand(num_images, generator=generator) < share
    return Spread(spread.window, spread.allowed | ~drawn[:, None])


def _first(order: Int[Tensor, "B L"], chosen: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The chosen entries of an order before the others."""
    return order.gather(1, sorting_order(~chosen, stable=True))

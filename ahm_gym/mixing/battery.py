"""A fixed battery of masks on fixed images: what an autoencoder has learned, on one scale for all strategies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.device.transfers import to_device
from ahm_gym.errors import InputError
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, count_masked
from ahm_gym.mixing.strategies import Strategy
from ahm_gym.model.autoencoder import Autoencoder

BATTERY: tuple[Strategy, ...] = (
    Strategy("random_50", mask_ratio=0.5),
    Strategy("random_75"),
    Strategy("random_90", mask_ratio=0.9),
    Strategy("spread_75", spread_fraction=1.0),
    Strategy("block_75", kind="block"),
)
"""The masks of the battery. None of them depends on the autoencoder, so they stay the same during training."""

LEAST_LOSS: float = 1e-12
"""Losses below it count as this one, so that their logarithm is finite."""


@dataclass(frozen=True)
class BatteryResult:
    """What one measurement of a battery found."""

    losses: Float[Tensor, " M"]
    """Mean loss of the masked patches, for each kind of mask in `BATTERY`."""
    clustering: float
    """How far difficulty lies together, about -1 to 1; see `clustering`."""

    @property
    def loss(self) -> float:
        """The mean over the kinds of masks."""
        return float(self.losses.mean())

    @property
    def log_loss(self) -> float:
        """The natural logarithm of `loss`."""
        return math.log(max(self.loss, LEAST_LOSS))


class Battery:
    """Measures an autoencoder on the same images and masks every time, without an update and without a random draw.

    Args:
        images: normalised images.
        autoencoder: the autoencoder that will be measured; it sets the grid.
        seed: seed of the masks.

    Raises:
        InputError: if there are no images, or the target of the autoencoder moves, so that its loss shows no progress.
    """

    def __init__(self, images: Float[Tensor, "B C *S"], autoencoder: Autoencoder, *, seed: int = 0) -> None:
        if not len(images):
            raise InputError("the battery has no images: give at least one that training does not see.")
        if autoencoder.latent is not None:
            raise InputError(
                "`target=latent` follows a teacher that moves, so its loss does not show what was learned: choose "
                "another `target`, such as pixels."
            )
        self.images: Float[Tensor, "B C *S"] = images
        self.grid: tuple[int, ...] = autoencoder.grid
        generator = torch.Generator().manual_seed(seed)
        self.masks: list[Masks] = [self._draw(strategy, autoencoder, generator) for strategy in BATTERY]

    def _draw(self, strategy: Strategy, autoencoder: Autoencoder, generator: torch.Generator) -> Masks:
        blank = torch.zeros(len(self.images), autoencoder.num_patches, 1)
        patches = PatchBatch(self.images, blank, self.grid, 0.0, strategy.mask_ratio)
        return draw_masks(
            strategy.score(patches, autoencoder, generator),
            self.grid,
            count_masked(autoencoder.num_patches, strategy.mask_ratio),
            generator,
            spread_fraction=strategy.spread_fraction,
        )

    @torch.no_grad()
    def measure(self, autoencoder: Autoencoder) -> BatteryResult:
        """The losses of the current weights; the mode of the autoencoder, training or evaluation, stays as it is."""
        was_training = autoencoder.training
        autoencoder.eval()
        images = to_device(self.images, autoencoder.device)
        with autoencoder.autocast():
            found = [autoencoder(images, masks).patch_loss.float().cpu() for masks in self.masks]
        autoencoder.train(was_training)
        masked = torch.stack([masks.masked for masks in self.masks])
        patch_loss = torch.stack(found) * masked  # M B L
        losses = patch_loss.sum(dim=(1, 2)) / masked.sum(dim=(1, 2))
        total, count = patch_loss.sum(dim=0), masked.sum(dim=0)
        mean = total.sum(dim=1, keepdim=True) / count.sum(dim=1, keepdim=True)
        difficulty = torch.where(count > 0, total / count.clamp(min=1), mean)  # some patches are never masked
        return BatteryResult(losses, clustering(difficulty, self.grid))


def clustering(difficulty: Float[Tensor, "B L"], grid: tuple[int, ...]) -> float:
    """How alike neighbouring patches are: Moran's I over the edges of the grid, mean over the images.

    It is near 1 if hard patches lie together, about 0 if they are scattered, and negative if hard and easy ones
    alternate. An image whose patches are all alike counts as 0. Moran, "Notes on continuous stochastic phenomena",
    Biometrika 1950.
    """
    deviation = (difficulty - difficulty.mean(dim=1, keepdim=True)).unflatten(1, grid)
    across = deviation[:, :, 1:] * deviation[:, :, :-1]
    down = deviation[:, 1:] * deviation[:, :-1]
    edges = max(across[0].numel() + down[0].numel(), 1)
    variance = deviation.square().mean(dim=(1, 2))
    alike = (across.sum(dim=(1, 2)) + down.sum(dim=(1, 2))) / edges
    return float(torch.where(variance > 0, alike / variance.clamp(min=1e-30), 0.0).mean())

"""How hard the patches of an image are: for the autoencoder, and as estimated from their pixels alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.device import ranks
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.patches import patchify


def true_patch_loss(
    autoencoder: Autoencoder,
    images: Float[Tensor, "B C *S"],
    num_masked: int,
    *,
    num_masks: int = 4,
    seed: int = 0,
) -> Float[Tensor, "B L"]:
    """Mean reconstruction loss of every patch over the random masks that hide it.

    Every patch is masked at least once: the last masks start with the patches that were never masked before.

    Args:
        autoencoder: autoencoder to evaluate; its training mode is not changed.
        images: normalised images.
        num_masked: number of masked patches in each image.
        num_masks: number of random masks; more are drawn if a small mask ratio needs them.
        seed: seed of the masks.
    """

    def patch_loss(images: Tensor, masked: Tensor) -> Tensor:
        with torch.no_grad():
            return autoencoder(images, Masks.of(masked)).patch_loss.float()

    generator = torch.Generator().manual_seed(seed)
    shape = (len(images), autoencoder.num_patches)
    total, count = torch.zeros(shape), torch.zeros(shape)
    drawn = 0
    while drawn < num_masks or bool((count == 0).any()):
        missing = (count == 0) if drawn >= num_masks - 1 else torch.zeros(shape, dtype=torch.bool)
        scores = random_scores(shape, generator) + missing
        masks = draw_masks(scores, autoencoder.grid, num_masked, generator)
        total += ranks.mapped(patch_loss, images, masks.masked).cpu() * masks.masked
        count += masks.masked
        drawn += 1
    return total / count


def local_variance(images: Float[Tensor, "B C *S"], patch_size: int) -> Float[Tensor, "B L"]:
    """Variance of the pixels of every patch: the difficulty as far as texture alone shows it."""
    return patchify(images, patch_size).var(dim=-1)

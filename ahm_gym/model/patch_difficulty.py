"""How hard the patches of an image are: for the autoencoder, and by their pixels alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.selection import random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.patches import patchify


def true_patch_loss(
    autoencoder: Autoencoder,
    images: Float[Tensor, "B C H W"],
    num_masked: int,
    *,
    num_masks: int = 4,
    seed: int = 0,
) -> Float[Tensor, "B L"]:
    """Mean reconstruction loss of every patch over random masks, each counted where it is masked.

    Every patch is masked at least once: patches that no draw has masked yet are masked first.

    Args:
        autoencoder: evaluated as it is.
        images: normalised.
        num_masked: masked patches of an image.
        num_masks: number of random masks; more are drawn where a small ratio needs them.
        seed: of the masks.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(images), autoencoder.num_patches)
    total, count = torch.zeros(shape), torch.zeros(shape)
    drawn = 0
    while drawn < num_masks or bool((count == 0).any()):
        missing = (count == 0) if drawn >= num_masks - 1 else torch.zeros(shape, dtype=torch.bool)
        scores = random_scores(shape, generator) + missing
        masks = draw_masks(scores, autoencoder.grid, num_masked, generator)
        with torch.no_grad():
            loss = autoencoder(images, masks).patch_loss.float().cpu()
        total += loss * masks.masked
        count += masks.masked
        drawn += 1
    return total / count


def local_variance(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B L"]:
    """Variance of the pixels of every patch: what a policy knows that only sees texture."""
    return patchify(images, patch_size).var(dim=-1)

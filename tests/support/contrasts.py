"""Images with patches of different contrast, which a policy can see and a test can reward."""

from __future__ import annotations

import torch
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.autoencoder import Autoencoder

SIZE = (32, 48)


def contrast_patches(
    autoencoder: Autoencoder, generator: torch.Generator, progress: float = 0.5
) -> tuple[PatchBatch, Tensor]:
    """Sixteen images of 4 by 6 patches, and the contrast (16, 24) of each patch, 0 to 1."""
    contrast = torch.rand(16, 1, 4, 6, generator=generator)
    images = torch.randn(16, 1, *SIZE, generator=generator)
    images = images * contrast.repeat_interleave(8, 2).repeat_interleave(8, 3)
    patches = PatchBatch(images, autoencoder.embed(images).detach(), autoencoder.grid, progress)
    return patches, contrast.flatten(1)

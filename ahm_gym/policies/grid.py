"""Masks on a lattice."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.policies.base import MaskPolicy


class GridPolicy(MaskPolicy):
    """Keeps one patch of each 2x2 visible, or of each 2x2x2 in a volume; the lattice is shifted in each image.

    At a mask ratio of 0.75 (0.875 in a volume) the lattice is exact. A smaller ratio also shows random other patches, a
    larger one hides random patches of the lattice. This is more regular than the uniform sampling of UM-MAE (Li et al.,
    2022), which draws the visible patch of every window separately: that is policy random with a spread fraction of 1.
    """

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        batch, num_patches = patches.embeddings.shape[:2]
        shifts = torch.randint(2, (len(patches.grid), batch, 1), generator=generator)
        kept = torch.ones(batch, 1, dtype=torch.bool)
        for length, shift in zip(patches.grid, shifts, strict=True):
            kept = (kept[..., None] & ((torch.arange(length) + shift) % 2 == 0)[:, None]).flatten(1)
        return random_scores((batch, num_patches), generator) - kept.float()

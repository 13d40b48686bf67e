"""Masks on a lattice."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.policies.base import MaskPolicy


class GridPolicy(MaskPolicy):
    """Keeps one patch of each 2x2 visible; the lattice is shifted at random in each image.

    At a mask ratio of 0.75 the lattice is exact. A smaller ratio also shows random other patches, a larger one hides
    random patches of the lattice. This is more regular than the uniform sampling of UM-MAE (Li et al., 2022), which
    draws the visible patch of every window separately: that is policy random with a spread fraction of 1.
    """

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        batch, num_patches = patches.embeddings.shape[:2]
        shift = torch.randint(2, (2, batch, 1, 1), generator=generator)
        rows = torch.arange(patches.grid[0])[None, :, None]
        columns = torch.arange(patches.grid[1])[None, None, :]
        kept = ((rows + shift[0]) % 2 == 0) & ((columns + shift[1]) % 2 == 0)
        return random_scores((batch, num_patches), generator) - kept.flatten(1).float()

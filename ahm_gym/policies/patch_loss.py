"""Masks from the true loss of the patches: the best that an agent looking for hard patches can learn."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.patch_difficulty import true_patch_loss
from ahm_gym.policies.base import MaskPolicy


class OracleHardPolicy(MaskPolicy):
    """Masks the patches that the current autoencoder reconstructs worst.

    The upper bound for an agent that looks for hard patches: it distinguishes a bad agent from a bad idea. A
    control of this project, without a paper. It costs four extra forward passes per update.
    """

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        """The mean loss over four random masks; each patch counts in the masks that hide it."""
        seed = int(torch.randint(2**31, (), generator=generator))
        with self.autoencoder.autocast():
            return true_patch_loss(self.autoencoder, patches.images, patches.num_masked, seed=seed)


class LowLossPolicy(OracleHardPolicy):
    """Masks the patches that the autoencoder reconstructs best: the opposite control."""

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return -super().score(patches, generator)

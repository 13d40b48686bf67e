"""Masks from the variance of the pixels of a patch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.patch_difficulty import local_variance
from ahm_gym.policies.base import MaskPolicy


class TexturedPolicy(MaskPolicy):
    """Masks the patches with the highest variance.

    A control of this project, without a paper: difficulty from the pixels alone, with nothing to learn. By
    default every masked patch follows the rule, which is the extreme case; with a smaller `guided_fraction`
    (0.25 in this project's first experiment) the rest is random.
    """

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return local_variance(patches.images, self.autoencoder.patch_size)


class FlatPolicy(TexturedPolicy):
    """Masks the patches with the lowest variance: the opposite control."""

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return -super().score(patches, generator)

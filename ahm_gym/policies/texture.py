"""Masks by how much the pixels of a patch vary."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.patch_difficulty import local_variance
from ahm_gym.policies.base import MaskPolicy


class TexturedPolicy(MaskPolicy):
    """Masks the patches of the highest variance.

    A control of this project, without a paper: what is hard by the pixels alone, with nothing to learn.
    Every masked patch follows the rule, which is the extreme of it; `guided_fraction` draws the rest at
    random, and 0.25 was the share of this project's first probe.
    """

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return local_variance(patches.images, self.autoencoder.patch_size)


class FlatPolicy(TexturedPolicy):
    """Masks the patches of the lowest variance: the opposite control."""

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return -super().score(patches, generator)

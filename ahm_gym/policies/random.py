"""Random masks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking import PatchBatch, random_scores
from ahm_gym.policies.base import FixedPolicy


class RandomPolicy(FixedPolicy):
    """Uniform without replacement: the mask of MAE (He et al., CVPR 2022)."""

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return random_scores((patches.embeddings.shape[0], patches.embeddings.shape[1]), generator)

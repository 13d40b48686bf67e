"""Random masks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.masking.spread import SPREAD_FALL
from ahm_gym.policies.base import MaskPolicy


class RandomPolicy(MaskPolicy):
    """Uniform without replacement: the mask of MAE (He et al., CVPR 2022)."""

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return random_scores((patches.embeddings.shape[0], patches.embeddings.shape[1]), generator)


class SpreadPolicy(RandomPolicy):
    """Random masks whose visible patches are spread over the grid at first, and uniform ones later.

    What is left of A3C's masks without the agent: it tells the worth of what it has learned from
    that of the spread, which is a control of this project. See `ahm_gym.masking.spread`.
    """

    spread_fraction = SPREAD_FALL

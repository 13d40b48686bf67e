"""Random masks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.schedules import Share
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.masking.spread import SPREAD_FALL
from ahm_gym.policies.base import MaskPolicy


class RandomPolicy(MaskPolicy):
    """Uniform without replacement: the mask of MAE (He et al., CVPR 2022)."""

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return random_scores((patches.embeddings.shape[0], patches.embeddings.shape[1]), generator)


class SpreadPolicy(RandomPolicy):
    """Random masks whose visible patches are spread over the grid at first, and uniform ones later.

    A control of this project: A3C's masks without the agent, which separates the effect of what the agent learns
    from that of the spread (`ahm_gym.masking.spread`).
    """

    spread_fraction: Share = SPREAD_FALL

"""The base class of mask policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import Share
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.autoencoder import Autoencoder


class MaskPolicy(ABC):
    """Gives one score a patch; the highest-scored patches of each image are masked.

    A subclass has `score`, and overrides the rest where the defaults, those of a fixed rule, do not fit.

    Args:
        autoencoder: for which the policy masks; never changed by it.
    """

    guided_fraction: Share = 1.0
    """Share of the masked patches that follow the scores, 0 to 1, or a function of training progress; the rest is
    drawn at random."""
    spread_fraction: Share = 0.0
    """Share of the images whose visible patches are spread over the grid (`ahm_gym.masking.spread`), likewise."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    @abstractmethod
    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        """One finite score a patch, of any scale; only their order within an image counts."""

    def weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Float[Tensor, "B L"]:
        """How much each patch counts in the loss, 0 on visible ones (default: every masked patch 1)."""
        return masks.weight

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        """Learns from one update of the autoencoder; returns metrics. `patch_loss` is 0 where visible."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values, nested: everything that an exact resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        return

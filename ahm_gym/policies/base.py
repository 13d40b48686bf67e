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
    """Base class of mask policies: one score per patch; the highest-scored patches of each image are masked.

    A subclass implements `score`, and overrides the rest if the defaults, which suit a fixed rule, do not fit.

    Args:
        autoencoder: the autoencoder that is pretrained; the policy never changes it.
    """

    guided_fraction: Share = 1.0
    """Share of the masked patches that the scores choose, 0 to 1, or a function of training progress; the rest is
    drawn at random."""
    spread_fraction: Share = 0.0
    """Share of the images whose visible patches are spread over the grid (`ahm_gym.masking.spread`), or a function
    of training progress."""
    mask_ratio: Share | None = None
    """Share of the patches that are masked, if the policy chooses it, or a function of training progress; None leaves
    it to the settings. If there is one, all three may depend on what the policy has learned: they are then read again
    before every update."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder: Autoencoder = autoencoder

    @abstractmethod
    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        """One finite score per patch, on any scale; only their order within an image matters."""

    def weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Float[Tensor, "B L"]:
        """Weight of each patch in the loss, 0 on visible patches (default: 1 on every masked patch)."""
        return masks.weight

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        """Learns from one update of the autoencoder; returns metrics. `patch_loss` is 0 on visible patches."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as nested tensors and JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        return

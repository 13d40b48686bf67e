"""What policies share that follow a rule and learn nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.autoencoder import Autoencoder


class FixedPolicy(ABC):
    """A mask policy without state: every masked patch follows its scores."""

    def __init__(self, autoencoder: Autoencoder | None = None) -> None:
        self.autoencoder = autoencoder

    @abstractmethod
    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]: ...

    def guided_fraction(self, progress: float) -> float:
        return 1.0

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None

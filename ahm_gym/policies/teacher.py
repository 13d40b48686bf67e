"""Mask policies that score with a teacher, a slow average of the autoencoder."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.moving_average import MovingAverage
from ahm_gym.policies.base import MaskPolicy


class TaughtPolicy(MaskPolicy):
    """Base class of mask policies whose only state is a teacher that follows the autoencoder."""

    teacher: MovingAverage[Any]

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        self.teacher.follow(patches.progress)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])

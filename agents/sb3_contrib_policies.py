"""Patch-wise networks for the algorithms of sb3-contrib, an optional dependency."""

from __future__ import annotations

from typing import Any

from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.tqc.policies import TQCPolicy

from ahm_gym.agents.sb3_policies import PatchOffPolicy, PatchWise, patch_wise_critic


class PatchMaskablePolicy(PatchWise, MaskableActorCriticPolicy):
    """For MaskablePPO, one patch per step."""


class PatchTQCPolicy(PatchOffPolicy, TQCPolicy):
    """For TQC."""

    def make_critic(self, features_extractor: Any = None) -> Any:
        critic = super().make_critic(features_extractor)
        return patch_wise_critic(critic, critic.features_extractor.features_dim, critic.n_quantiles)

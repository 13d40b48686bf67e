"""Masking by one bit per patch."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from ahm_gym.envs.actions import whole_numbers
from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.single import MaskingEnv


class MultiBinaryMaskingVectorEnv(MaskingVectorEnv):
    """One bit per patch, `MultiBinary(L)`, 1 = mask; a step expects `num_guided` ones.

    A wrong number of ones is repaired: of too many, a random subset is masked; to too few, random other
    patches are added, which count as guided. A one is ignored if its patch is already masked or if its
    window must keep it visible. `info["repaired"]` (B,) is True if the guided patches are not exactly the
    ones. Accepts the arguments of `MaskingVectorEnv`.
    """

    def _action_space(self) -> gym.Space[Any]:
        return gym.spaces.MultiBinary(self.num_patches)

    def _scores(self, actions: Any) -> Tensor:
        limits = np.full((self.num_envs, self.num_patches), 2)
        return whole_numbers(actions, limits, "0 or 1 for every patch of an image").float()

    def _choice_info(self, scores: Tensor, guided: Tensor) -> dict[str, np.ndarray]:
        return {"repaired": (guided != scores.bool()).any(dim=1).numpy()}


class MultiBinaryMaskingEnv(MaskingEnv):
    """One image, one bit per patch; see `MultiBinaryMaskingVectorEnv`."""

    vector_class: type[MaskingVectorEnv] = MultiBinaryMaskingVectorEnv

"""Masking by one bit a patch."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from ahm_gym.envs.actions import whole_numbers
from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.single import MaskingEnv


class MultiBinaryMaskingVectorEnv(MaskingVectorEnv):
    """One bit a patch, `MultiBinary(L)`, 1 = mask; `num_guided` says how many ones a step takes.

    A wrong number of ones is repaired: of too many a random subset is masked, to too few random others
    are added and count as guided. A one at a patch that is masked already, or that its window must keep,
    counts for nothing.
    `info["repaired"]` (B,) is True where the guided patches are not exactly the ones. Takes the
    arguments of `MaskingVectorEnv`.
    """

    def _action_space(self) -> gym.Space:
        return gym.spaces.MultiBinary(self.num_patches)

    def _scores(self, actions: Any) -> Tensor:
        limits = np.full((self.num_envs, self.num_patches), 2)
        return whole_numbers(actions, limits, "0 or 1 for every patch of an image").float()

    def _choice_info(self, scores: Tensor, guided: Tensor) -> dict[str, np.ndarray]:
        return {"repaired": (guided != scores.bool()).any(dim=1).numpy()}


class MultiBinaryMaskingEnv(MaskingEnv):
    """One image and one bit a patch; see `MultiBinaryMaskingVectorEnv`."""

    vector_class = MultiBinaryMaskingVectorEnv

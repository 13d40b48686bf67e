"""Masking one patch, or a group of patches, per step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ahm_gym.envs.actions import StepwiseMaskingVectorEnv, whole_numbers
from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.observing import Observation
from ahm_gym.envs.plans import check_count
from ahm_gym.envs.single import MaskingEnv


class GroupMaskingVectorEnv(StepwiseMaskingVectorEnv):
    """`group_size` = k patches per step, `MultiDiscrete([L] * k)`, until all guided patches are chosen.

    `info["action_mask"]` (B, L) is 1 where a patch can still be chosen. A choice that is unavailable, repeated, or
    one too many for its window is replaced by a random other patch, which counts as guided; `info["repaired"]` (B,)
    is then True. If fewer than k guided patches are left, the first choices count. Accepts the arguments of
    `MaskingVectorEnv` except masking_steps; the last step also masks the random rest.

    Args:
        group_size: patches that a step chooses, at most the smallest number of masked patches during training.
    """

    def __init__(self, num_envs: int = 16, *, group_size: int = 4, **options: Any) -> None:
        self.group_size = group_size
        super().__init__(num_envs, **options)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | self._action_mask_info()

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(actions)
        return observation, reward, terminated, truncated, info | self._action_mask_info()

    def action_masks(self) -> np.ndarray:
        """True where a patch can be chosen, once per choice (B, k * L), as sb3-contrib's maskable agents expect."""
        return np.tile(self._mask.available.numpy(), self.group_size)

    def _action_mask_info(self) -> dict[str, np.ndarray]:
        return {
            "action_mask": self._mask.available.numpy().astype(np.int8),
            "_action_mask": np.ones(self.num_envs, dtype=bool),
        }

    def _action_space(self) -> gym.Space[Any]:
        check_count("group_size", self.group_size, self._least_masked)
        return gym.spaces.MultiDiscrete([self.num_patches] * self.group_size)

    def _parts(self, num_guided: int) -> list[int]:
        return [min(self.group_size, num_guided - first) for first in range(0, num_guided, self.group_size)]

    def _scores(self, actions: Any) -> Tensor:
        limits = np.full((self.num_envs, *(self.single_action_space.shape or ())), self.num_patches)
        expected = f"patch indices from 0 to {self.num_patches - 1}, {self.group_size} per image"
        choices = whole_numbers(actions, limits, expected).reshape(self.num_envs, self.group_size)
        earlier_is_higher = torch.arange(self.group_size, 0, -1.0).expand(self.num_envs, -1)
        scores = torch.zeros(self.num_envs, self.num_patches)
        return scores.scatter_reduce(1, choices, earlier_is_higher, "amax")

    def _choice_info(self, scores: Tensor, guided: Tensor) -> dict[str, np.ndarray]:
        return {"repaired": (guided & (scores == 0)).any(dim=1).numpy()}


class SequentialMaskingVectorEnv(GroupMaskingVectorEnv):
    """One patch per step, `Discrete(L)`; an episode lasts until all guided patches are chosen.

    `info["action_mask"]` (B, L) is 1 where a patch can still be chosen. An unavailable choice is replaced by a
    random other patch, and `info["repaired"]` (B,) is then True. Accepts the arguments of `MaskingVectorEnv` except
    masking_steps; if guided_fraction is below 1, the last step also masks the random rest.
    """

    def __init__(self, num_envs: int = 16, **options: Any) -> None:
        super().__init__(num_envs, group_size=1, **options)

    def _action_space(self) -> gym.Space[Any]:
        return gym.spaces.Discrete(self.num_patches)


class GroupMaskingEnv(MaskingEnv):
    """One image, a group of patches per step; see `GroupMaskingVectorEnv`."""

    vector_class: type[MaskingVectorEnv] = GroupMaskingVectorEnv

    def action_masks(self) -> np.ndarray:
        """True where a patch can be chosen, once per choice (k * L,)."""
        vector = self.vector
        assert isinstance(vector, GroupMaskingVectorEnv)
        return vector.action_masks()[0]


class SequentialMaskingEnv(GroupMaskingEnv):
    """One image, one patch per step; see `SequentialMaskingVectorEnv`."""

    vector_class: type[MaskingVectorEnv] = SequentialMaskingVectorEnv

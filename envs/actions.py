"""Other forms of the action: one patch a step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.single import MaskingEnv
from ahm_gym.errors import InputError
from ahm_gym.masking import count_masked


class SequentialMaskingVectorEnv(MaskingVectorEnv):
    """One patch a step, `Discrete(L)`; an episode lasts until all masked patches are chosen.

    `info["action_mask"]` (B, L) is 1 where a patch can still be chosen. Choosing a masked patch masks
    a random other one, and `info["repaired"]` (B,) says so. Every patch is guided. Takes the arguments
    of `MaskingVectorEnv` but masking_steps and guided_fraction.
    """

    def __init__(self, num_envs: int = 16, *, mask_ratio: float = 0.75, **options: Any) -> None:
        for name in ("masking_steps", "guided_fraction"):
            if name in options:
                raise InputError(
                    f"{name} does not go with one patch a step, where every masked patch is chosen: leave it out, "
                    "or use AHM/Masking-v0."
                )
        super().__init__(num_envs, mask_ratio=mask_ratio, **options)
        self.masking_steps = count_masked(self.num_patches, mask_ratio)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | self._action_mask_info()

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(actions)
        return observation, reward, terminated, truncated, info | self._action_mask_info()

    def action_masks(self) -> np.ndarray:
        """True where a patch can be chosen (B, L): what sb3-contrib's maskable agents ask for."""
        return ~self._mask.numpy()

    def _action_mask_info(self) -> dict[str, np.ndarray]:
        return {
            "action_mask": self.action_masks().astype(np.int8),
            "_action_mask": np.ones(self.num_envs, dtype=bool),
        }

    def _action_space(self) -> gym.Space:
        return gym.spaces.Discrete(self.num_patches)

    def _scores(self, actions: Any) -> tuple[Tensor, dict[str, np.ndarray]]:
        chosen = torch.as_tensor(np.asarray(actions), dtype=torch.int64).reshape(-1)
        if len(chosen) != self.num_envs or bool(((chosen < 0) | (chosen >= self.num_patches)).any()):
            raise InputError(
                f"actions {np.asarray(actions).tolist()}: expected {self.num_envs} patch indices from 0 to "
                f"{self.num_patches - 1}."
            )
        scores = torch.zeros(self.num_envs, self.num_patches).scatter(1, chosen[:, None], 1.0)
        return scores, {"repaired": self._mask.gather(1, chosen[:, None])[:, 0].numpy()}


class SequentialMaskingEnv(MaskingEnv):
    """One image and one patch a step; see `SequentialMaskingVectorEnv`."""

    vector_class = SequentialMaskingVectorEnv

    def action_masks(self) -> np.ndarray:
        """True where a patch can be chosen (L,)."""
        vector = self.vector
        assert isinstance(vector, SequentialMaskingVectorEnv)
        return vector.action_masks()[0]

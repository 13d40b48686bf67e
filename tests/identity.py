"""The identity task: targets vary from image to image and show only in the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ahm_gym.agents import agent_class


class IdentityTask(VectorEnv):
    """Mask the `num_targets` patches of each image whose embedding carries the mark.

    The reward is the share of the targets that is masked: num_targets / num_patches for a random
    choice, 1 at best.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 32, num_patches: int = 16, num_targets: int = 4, dim: int = 8) -> None:
        self.num_envs, self.num_patches, self.num_targets, self.dim = num_envs, num_patches, num_targets, dim
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (num_patches, dim), np.float32)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (num_patches,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        fixed = np.random.default_rng(0)
        self.mark = fixed.normal(size=dim)
        self.position = fixed.normal(size=(num_patches, dim)) * 3

    @property
    def random_reward(self) -> float:
        return self.num_targets / self.num_patches

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        order = np.argsort(-np.asarray(actions), axis=1, kind="stable")
        mask = np.zeros((self.num_envs, self.num_patches), dtype=bool)
        np.put_along_axis(mask, order[:, : self.num_targets], True, axis=1)
        paid = (mask & self.targets).astype(np.float32)
        reward = paid.sum(axis=1) / self.num_targets
        info = {"mask": mask, "guided": mask, "patch_reward": paid, "patch_loss": paid}
        ended = np.ones(self.num_envs, dtype=bool)
        return self._observe(), reward.astype(np.float64), ended, ~ended, info

    def _observe(self) -> np.ndarray:
        draws = self.np_random.random((self.num_envs, self.num_patches))
        self.targets = draws.argsort(axis=1).argsort(axis=1) < self.num_targets
        noise = self.np_random.normal(size=(self.num_envs, self.num_patches, self.dim)) * 0.3
        return (self.position + noise + self.targets[..., None] * self.mark).astype(np.float32)


class PixelIdentityTask(IdentityTask):
    """The same with raw images: the mark is a texture of the pixels, and noise is all the rest.

    For agents that put the image together again: a patch has 4 by 4 pixels.
    """

    def __init__(
        self, num_envs: int = 16, num_patches: int = 16, num_targets: int = 4, dim: int = 16
    ) -> None:
        super().__init__(num_envs, num_patches, num_targets, dim)
        self.position = np.zeros_like(self.position)


def task_of(agent: str) -> type[IdentityTask]:
    """The identity task in the observations that the agent of that name asks for."""
    return PixelIdentityTask if getattr(agent_class(agent), "sees_pixels", False) else IdentityTask


def solved(env: IdentityTask, reward: float) -> float:
    """Share of the way from a random choice to the best one."""
    return (reward - env.random_reward) / (1.0 - env.random_reward)

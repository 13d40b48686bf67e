"""The identity task: can an agent learn to choose patches at all?

The targets vary from image to image, and only the observation shows them. It takes seconds; an autoencoder takes
minutes.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ahm_gym.agents.base import Agent
from ahm_gym.envs.updates import Evaluation


class IdentityTask(VectorEnv[Any, Any, Any]):
    """The task is to mask the `num_targets` patches of each image that carry a mark in their embedding.

    The reward is the share of the targets that is masked: num_targets / num_patches on average for a random
    choice, and 1 at best.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    masking_steps: int = 1

    def __init__(self, num_envs: int = 32, num_patches: int = 16, num_targets: int = 4, dim: int = 8) -> None:
        self.num_envs: int = num_envs
        self.num_patches: int = num_patches
        self.num_targets: int = num_targets
        self.num_masked: int = num_targets
        self.num_guided: int = num_targets
        self.dim: int = dim
        shape = (num_patches, dim)
        self.single_observation_space: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space: gym.Space[Any] = gym.spaces.Box(-1.0, 1.0, (num_patches,), np.float32)
        self.observation_space: gym.Space[Any] = batch_space(self.single_observation_space, num_envs)
        self.action_space: gym.Space[Any] = batch_space(self.single_action_space, num_envs)
        fixed = np.random.default_rng(0)
        self.mark: np.ndarray = fixed.normal(size=dim)
        self.position: np.ndarray = fixed.normal(size=(num_patches, dim)) * 3

    @property
    def random_reward(self) -> float:
        """Mean reward of a random choice, 0 to 1."""
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
        info["final_obs"] = self._observe()
        return info["final_obs"], reward.astype(np.float64), ended, ~ended, info

    def evaluate(self, masks: Any, guided: Any = None) -> Evaluation:
        """What several masks (K, B, L) of the current images would be paid, as `MaskingVectorEnv.evaluate` tells it."""
        paid = (np.asarray(masks, dtype=bool) & self.targets).astype(np.float32)
        return Evaluation(paid, paid, paid.sum(axis=2) / self.num_targets)

    def _observe(self) -> np.ndarray:
        draws = self.np_random.random((self.num_envs, self.num_patches))
        self.targets: np.ndarray = draws.argsort(axis=1).argsort(axis=1) < self.num_targets
        noise = self.np_random.normal(size=(self.num_envs, self.num_patches, self.dim)) * 0.3
        return (self.position + noise + self.targets[..., None] * self.mark).astype(np.float32)


class SequentialIdentityTask(IdentityTask):
    """The same task with one patch per step: an episode has `num_targets` choices, and the reward comes at its end.

    Masked patches are shown as zeros; choosing one again masks a random other patch.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.single_action_space: gym.Space[Any] = gym.spaces.Discrete(self.num_patches)
        self.action_space: gym.Space[Any] = batch_space(self.single_action_space, self.num_envs)
        self.masking_steps: int = self.num_targets

    def action_masks(self) -> np.ndarray:
        """True where a patch is not masked yet (B, L), for MaskablePPO."""
        return ~self.mask

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._begin()
        return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        wanted = np.eye(self.num_patches)[np.asarray(actions)] + self.np_random.random(self.mask.shape) / 2
        chosen = np.where(self.mask, -1, wanted).argmax(axis=1)
        self.mask[np.arange(self.num_envs), chosen] = True
        self.steps += 1
        if self.steps < self.num_targets:
            zero = np.zeros(self.mask.shape, dtype=np.float32)
            info = {
                "mask": self.mask.copy(),
                "guided": self.mask.copy(),
                "patch_reward": zero,
                "patch_loss": zero,
            }
            ended = np.zeros(self.num_envs, dtype=bool)
            observation = np.where(self.mask[..., None], np.float32(0), self.shown)
            return observation, zero.sum(axis=1).astype(np.float64), ended, ended, info
        mask = self.mask
        self._begin()
        return super().step(np.where(mask, 1.0, -1.0))

    def _begin(self) -> None:
        self.mask: np.ndarray = np.zeros((self.num_envs, self.num_patches), dtype=bool)
        self.steps: int = 0

    def _observe(self) -> np.ndarray:
        self.shown: np.ndarray = super()._observe()
        return self.shown


class PixelIdentityTask(IdentityTask):
    """The same task with raw images: the mark is a texture of the pixels, and everything else is noise.

    For agents that see pixels. A patch has 4 by 4 pixels.
    """

    def __init__(
        self, num_envs: int = 16, num_patches: int = 16, num_targets: int = 4, dim: int = 16
    ) -> None:
        super().__init__(num_envs, num_patches, num_targets, dim)
        self.position: np.ndarray = np.zeros_like(self.position)


def identity_task(agent: Agent, num_patches: int = 16, **options: Any) -> IdentityTask:
    """The identity task with the agent's form of action and observation; a quarter of the patches are targets."""
    if agent.sees_pixels:
        task = PixelIdentityTask
    else:
        task = IdentityTask if agent.env_id == "AHM/Masking-v0" else SequentialIdentityTask
    return task(num_patches=num_patches, num_targets=num_patches // 4, **options)


def solved(env: IdentityTask, reward: float) -> float:
    """The reward on a scale from that of a random choice (0) to the best possible (1)."""
    return (reward - env.random_reward) / (1.0 - env.random_reward)

"""Masking one image at a time."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.observing import Observation


class MaskingEnv(gym.Env[Any, Any]):
    """One image at a time: a `MaskingVectorEnv` with a batch of one, as a `gymnasium.Env`.

    Accepts the same keyword arguments except num_envs and autoreset_mode.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    vector_class: type[MaskingVectorEnv] = MaskingVectorEnv

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        self.vector: MaskingVectorEnv = self.vector_class(
            1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **options
        )
        self.render_mode: str | None = render_mode
        self.observation_space: gym.Space[Any] = self.vector.single_observation_space
        self.action_space: gym.Space[Any] = self.vector.single_action_space
        self.grid: tuple[int, int] = self.vector.grid

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self.vector.reset(seed=seed, options=options)
        return observation[0], _first(info)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.vector.step(
            action[None] if isinstance(action, Tensor) else np.asarray(action)[None]
        )
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        self.vector.close()


def _first(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value[0] for key, value in info.items() if not key.startswith("_")}

"""Masking one image at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.observing import row_of
from ahm_gym.envs.updates import Evaluation
from ahm_gym.errors import InputError
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.pretrainer import Pretrainer


class MaskingEnv(gym.Env[Any, Any]):
    """One image at a time: a `MaskingVectorEnv` with a batch of one, as a `gymnasium.Env`.

    Accepts the same keyword arguments except num_envs and autoreset_mode.

    Raises:
        InputError: if one of these is given, or as `MaskingVectorEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    vector_class: type[MaskingVectorEnv] = MaskingVectorEnv

    def __init__(self, *, render_mode: str | None = None, **options: Any) -> None:
        for name in ("num_envs", "autoreset_mode"):
            if name in options:
                raise InputError(
                    f"`{name}` is an option of a batch of images, and gym.make builds an environment of one: use "
                    "gym.make_vec."
                )
        self.vector: MaskingVectorEnv = self.vector_class(
            1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **options
        )
        self.render_mode: str | None = render_mode
        self.observation_space: gym.Space[Any] = self.vector.single_observation_space
        self.action_space: gym.Space[Any] = self.vector.single_action_space
        self.grid: tuple[int, ...] = self.vector.grid

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self.vector.reset(seed=seed, options=options)
        return row_of(observation, 0), _first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.vector.step(
            action[None] if isinstance(action, Tensor) else np.asarray(action)[None]
        )
        return row_of(observation, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pictures = self.vector.render()
        return None if pictures is None else pictures[0]

    def frozen(self) -> AbstractContextManager[None]:
        """A context in which nothing is updated; see `MaskingVectorEnv.frozen`."""
        return self.vector.frozen()

    def evaluate(self, masks: Any, guided: Any = None) -> Evaluation:
        """What K masks (K, 1, L) of the current image would lose and be paid; see `MaskingVectorEnv.evaluate`."""
        return self.vector.evaluate(masks, guided)

    @property
    def pretrainer(self) -> Pretrainer:
        """What updates the autoencoder."""
        return self.vector.pretrainer

    @property
    def patches(self) -> PatchBatch:
        """The current image, as a mask policy sees it."""
        return self.vector.patches

    @property
    def num_guided(self) -> int:
        """Patches that the next action chooses; 0 once the episode is over."""
        return self.vector.num_guided

    def state_dict(self) -> dict[str, Any]:
        """State between two episodes, without the pretrainer, which has its own state."""
        return self.vector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, with the image that was current then."""
        self.vector.load_state_dict(state)

    def close(self) -> None:
        self.vector.close()


def _first(info: dict[str, Any]) -> dict[str, Any]:
    return {key: row_of(value, 0) for key, value in info.items() if not key.startswith("_")}

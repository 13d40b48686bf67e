"""A masking environment as a vector environment of stable-baselines3, and a callback that counts its updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from ahm_gym.agents.base import Callback, Metrics, paid_images, update_metrics
from ahm_gym.errors import InputError


class MaskingVecEnv(VecEnv):
    """The images of a batch as the parallel environments of stable-baselines3.

    There are no other processes, because there is one autoencoder. `info["episode"]` holds the reward and the
    length of a finished episode, in the format of SB3's Monitor.

    Args:
        env: environment with SAME_STEP autoreset.
        transform: maps observations (B, L, D), given whether they are the first of an episode; for example a running
            normalisation. None leaves them as they are.
        scale: returns the number that divides all rewards, given the rewards measured in this step. None leaves them
            as they are.

    Raises:
        InputError: if the environment has another autoreset mode.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        transform: Callable[[np.ndarray, bool], np.ndarray] | None = None,
        scale: Callable[[np.ndarray], float] | None = None,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InputError(
                f"the environment's autoreset mode is {mode}: stable-baselines3 needs SAME_STEP; build it with "
                "autoreset_mode='SameStep'."
            )
        self.env: VectorEnv[Any, Any, Any] = env
        self.transform: Callable[[np.ndarray, bool], np.ndarray] = transform or (lambda shown, begins: shown)
        self.scale: Callable[[np.ndarray], float] = scale or (lambda reward: 1.0)
        self.update: Metrics | None = None
        """Metrics of the update that the last step made; None if it made none."""
        self._length = 0
        self._began = time.monotonic()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        seed = self._seeds[0]
        observation, _ = self.env.reset(seed=None if seed is None else int(seed))
        self._reset_seeds()
        self._reset_options()
        self._length = 0
        return self.transform(observation, True)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, reward, terminated, truncated, info = self.env.step(self._actions)
        ended = bool(terminated.all())
        self._length += 1
        self.update = update_metrics(info, reward) if ended else None
        infos: list[dict[str, Any]] = [
            {"TimeLimit.truncated": bool(cut and not done)}
            for cut, done in zip(truncated, terminated, strict=True)
        ]
        paid = paid_images(info)
        scale = self.scale(reward[paid])
        if ended:
            reward = with_mean_of_paid(reward, paid)
            self._close_episode(infos, info["final_obs"], reward)
        return self.transform(observation, ended), reward / scale, terminated | truncated, infos

    def _close_episode(self, infos: list[dict[str, Any]], last: np.ndarray, reward: np.ndarray) -> None:
        seconds = round(time.monotonic() - self._began, 6)
        for row, observation, paid in zip(infos, self.transform(last, False), reward, strict=True):
            row["terminal_observation"] = observation
            row["episode"] = {"r": float(paid), "l": self._length, "t": seconds}
        self._length = 0

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.env.render() or []  # pyright: ignore[reportReturnType]

    def has_attr(self, attr_name: str) -> bool:
        return hasattr(self.env, attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """The rows of what a method of the batch returns, such as `action_masks`."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [None if result is None else result[row] for row in self._rows(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Any) -> list[int]:
        return list(range(self.num_envs)) if indices is None else [int(i) for i in np.atleast_1d(indices)]


def with_mean_of_paid(reward: np.ndarray, paid: np.ndarray) -> np.ndarray:
    """The rewards (B,), with the mean of the measured ones in place of those that were not measured."""
    return np.where(paid, reward, reward[paid].mean() if paid.any() else 0.0)


class CountUpdates(BaseCallback):
    """Ends SB3's training after exactly `num_steps` updates of the autoencoder, however long its rollouts are.

    SB3's schedules, such as DQN's exploration, follow the share of updates made. The number of steps is not known in
    advance: with one patch per step, an episode has one step for each guided patch.

    Args:
        num_steps: updates of the autoencoder.
        callback: called after each update; returning True stops the training.
        before: updates that the same run has made before.
    """

    def __init__(self, num_steps: int, callback: Callback | None, before: int = 0) -> None:
        super().__init__()
        self.num_steps: int = num_steps
        self.callback: Callback | None = callback
        self.before: int = before
        self.done: int = 0

    def _on_step(self) -> bool:
        env = self.training_env
        while not isinstance(env, MaskingVecEnv):
            env = env.venv  # pyright: ignore[reportAttributeAccessIssue]
        if env.update is None:
            return True
        self.done += 1
        share = (self.before + self.done) / (self.before + self.num_steps)
        self.model._total_timesteps = round(self.num_timesteps / share)
        stop = self.callback is not None and self.callback(dict(env.update))
        return not stop and self.done < self.num_steps

"""Checks for environments: everything that agents rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

_INFO_KEYS: dict[str, type[Any]] = {
    "mask": np.bool_,
    "guided": np.bool_,
    "weight": np.floating,
    "patch_loss": np.floating,
    "patch_reward": np.floating,
}
_MAX_EPISODE = 10_000


def check_vector_env(make_env: Callable[[], VectorEnv[Any, Any, Any]]) -> None:
    """Checks a masking vector environment: spaces, dtypes, info keys, autoreset and seeding.

    Args:
        make_env: builds a new environment at every call.

    Raises:
        AssertionError: with a sentence about the first requirement that is not met.
    """
    env = make_env()
    _check_spaces(env)
    observation, _ = env.reset(seed=7)
    _check_observation(env, observation, "reset")
    _check_episode(env)
    env.close()
    _check_seeding(make_env)


def _check_spaces(env: VectorEnv[Any, Any, Any]) -> None:
    mode = env.metadata.get("autoreset_mode")
    assert isinstance(mode, AutoresetMode), (
        f"metadata['autoreset_mode'] is {mode!r}: expected an AutoresetMode."
    )
    single, batched = env.single_observation_space, env.observation_space
    assert single.shape is not None and len(single.shape) == 2, (
        f"the observation of an image has shape {single.shape}: expected (patches, width)."
    )
    assert batched.shape == (env.num_envs, *single.shape), (
        f"the observation space has shape {batched.shape}: expected {(env.num_envs, *single.shape)}."
    )
    assert single.dtype == np.float32, f"observations have dtype {single.dtype}: expected float32."


def _check_observation(env: VectorEnv[Any, Any, Any], observation: Any, when: str) -> None:
    assert isinstance(observation, np.ndarray), (
        f"{when}() returns a {type(observation).__name__}: expected an array."
    )
    space = env.observation_space
    assert observation.shape == space.shape and observation.dtype == space.dtype, (
        f"{when}() returns {observation.dtype} {observation.shape}: the space has {space.dtype} {space.shape}."
    )
    assert np.isfinite(observation).all(), f"{when}() returns an observation that is not finite."


def _check_episode(env: VectorEnv[Any, Any, Any]) -> None:
    """Steps through one episode and past its end."""
    mode = env.metadata["autoreset_mode"]
    for _ in range(_MAX_EPISODE):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        _check_observation(env, observation, "step")
        _check_outcome(env, reward, terminated, truncated)
        _check_info(env, info)
        if terminated.any():
            break
    else:
        raise AssertionError(f"no episode ended within {_MAX_EPISODE} steps.")
    assert terminated.all(), (
        "only some images ended their episode: the images of a batch share one update and must end together."
    )
    assert not truncated.any(), "the episode was truncated: it must end by termination."
    if mode == AutoresetMode.SAME_STEP:
        assert "final_obs" in info and "final_info" in info, (
            "info has no final_obs or final_info: SAME_STEP autoreset needs both."
        )
        _check_info(env, info["final_info"])
        for key in _INFO_KEYS:
            same = np.array_equal(info[key], info["final_info"][key])
            assert same, f"info['{key}'] and info['final_info']['{key}'] differ."
    elif mode == AutoresetMode.NEXT_STEP:
        _, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert not reward.any() and not terminated.any(), (
            "the reset step of NEXT_STEP autoreset has a reward or ends an episode: it must ignore its action."
        )
    else:
        observation, _ = env.reset(options={"reset_mask": np.ones(env.num_envs, dtype=bool)})
        _check_observation(env, observation, "reset")


def _check_outcome(env: VectorEnv[Any, Any, Any], reward: Any, terminated: Any, truncated: Any) -> None:
    for name, value, kind in (
        ("reward", reward, np.floating),
        ("terminated", terminated, np.bool_),
        ("truncated", truncated, np.bool_),
    ):
        value = np.asarray(value)
        assert value.shape == (env.num_envs,) and np.issubdtype(value.dtype, kind), (
            f"{name} is {value.dtype} {value.shape}: expected {kind.__name__} ({env.num_envs},)."
        )
    assert np.isfinite(reward).all(), "a reward is not finite."


def _check_info(env: VectorEnv[Any, Any, Any], info: dict[str, Any]) -> None:
    shape = (env.num_envs, (env.single_observation_space.shape or (0,))[0])
    for key, kind in _INFO_KEYS.items():
        assert key in info, f"info has no '{key}'."
        value = np.asarray(info[key])
        assert value.shape == shape and np.issubdtype(value.dtype, kind), (
            f"info['{key}'] is {value.dtype} {value.shape}: expected {kind.__name__} {shape}."
        )
    mask, guided = np.asarray(info["mask"]), np.asarray(info["guided"])
    assert not (guided & ~mask).any(), "a guided patch is not masked."
    assert len(set(mask.sum(axis=1))) == 1, "images differ in their number of masked patches."
    weight = np.asarray(info["weight"])
    assert not weight[~mask].any(), "a visible patch has a weight."
    assert (np.isfinite(weight) & (weight >= 0)).all(), "a weight is negative or not finite."
    assert not np.asarray(info["patch_reward"])[~mask].any(), "a visible patch has a reward."
    paid = np.asarray(info.get("paid", np.ones(env.num_envs, dtype=bool)))
    assert paid.shape == shape[:1] and paid.dtype == np.bool_, (
        f"info['paid'] is {paid.dtype} {paid.shape}: expected bool_ {shape[:1]}."
    )
    assert not np.asarray(info["patch_reward"])[~paid].any(), "an unpaid image has a reward."


def _check_seeding(make_env: Callable[[], VectorEnv[Any, Any, Any]]) -> None:
    """Checks that seed and actions fix the results, in the same and in another environment."""
    env, other = make_env(), make_env()
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(2)]
    shown, again = (env.reset(seed=11)[0] for _ in range(2))
    assert np.array_equal(shown, again), "reset(seed=...) returns another observation the second time."
    first, second = (_trace(e, actions) for e in (env, other))
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one, two), "two environments with the same seed and actions differ."
    different, _ = env.reset(seed=12)
    assert not np.array_equal(first[0], different), "another seed returns the same observation."
    env.close()
    other.close()


def _trace(env: VectorEnv[Any, Any, Any], actions: list[Any]) -> list[np.ndarray]:
    trace = [env.reset(seed=11)[0]]
    for action in actions:
        observation, reward, terminated, *_ = env.step(action)
        trace += [observation, reward]
        if terminated.all() and env.metadata["autoreset_mode"] == AutoresetMode.DISABLED:
            trace.append(env.reset()[0])
    return trace

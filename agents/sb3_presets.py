"""Settings with which stable-baselines3's algorithms learn to mask and fit into memory.

With SB3's defaults, the replay buffer would take 1.2 TB for ViT-S at 224 px.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise

MEMORY: int = 2**30
"""Largest size of the stored observations of an agent, in bytes."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of SB3 and its setup for masking."""

    algorithm: str
    """Module and class."""
    policy: str
    """Module and class of its patch-wise policy."""
    presets: Callable[[VectorEnv[Any, Any, Any]], dict[str, Any]]
    """Returns the keyword arguments of the algorithm for an environment."""
    env_id: str = "AHM/Masking-v0"
    """Id of the environment that has its form of action."""


def on_policy(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    steps = rollout_steps(env, 4)
    return {
        "n_steps": steps,
        "gamma": 1.0,
        "learning_rate": 1e-3,
        "policy_kwargs": {"log_std_init": math.log(1 / 3)},
    }


def ppo(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    presets = on_policy(env)
    size = presets["n_steps"] * env.num_envs
    return presets | {"batch_size": minibatch(size), "n_epochs": 4}


def a2c(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    return on_policy(env) | {"normalize_advantage": True, "use_rms_prop": False}


def trpo(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    presets = on_policy(env)
    return presets | {"batch_size": minibatch(presets["n_steps"] * env.num_envs)}


def maskable_ppo(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    presets = ppo(env) | {"n_steps": rollout_steps(env, 16), "policy_kwargs": {}}
    return presets | {"batch_size": minibatch(presets["n_steps"] * env.num_envs)}


def off_policy(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    return {
        "buffer_size": replay_size(env),
        "batch_size": 256,
        "learning_starts": 8 * env.num_envs,
        "gradient_steps": 2,
        "train_freq": 1,
        "gamma": 1.0,
        "learning_rate": 1e-3,
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    }


def sac(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    return off_policy(env) | {"ent_coef": "auto_0.01"}


def td3(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    size = env.single_action_space.shape or ()
    noise = NormalActionNoise(np.zeros(size), np.full(size, 0.3))
    return off_policy(env) | {"action_noise": VectorizedActionNoise(noise, env.num_envs)}


def dqn(env: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    return off_policy(env) | {
        "batch_size": 64,  # one update of the autoencoder takes dozens of steps here, and each learns
        "learning_starts": 32 * env.num_envs,
        "train_freq": 2,
        "target_update_interval": 50 * env.num_envs,
        "exploration_fraction": 0.3,
        "exploration_final_eps": 0.02,
    }


def rollout_steps(env: VectorEnv[Any, Any, Any], wanted: int) -> int:
    """Steps per rollout: `wanted`, or as many as fit into `MEMORY`."""
    return max(1, min(wanted, MEMORY // (env.num_envs * observation_bytes(env))))


def replay_size(env: VectorEnv[Any, Any, Any]) -> int:
    """Transitions in a replay buffer: 50,000, or as many as fit into `MEMORY`."""
    return max(8 * env.num_envs, min(50_000, MEMORY // observation_bytes(env)))


def observation_bytes(env: VectorEnv[Any, Any, Any]) -> int:
    return 4 * math.prod(env.single_observation_space.shape or (1,))


def minibatch(size: int) -> int:
    """A quarter of a rollout, or all of it if it is small or not divisible by 4."""
    return size // 4 if size % 4 == 0 and size >= 8 else size


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm("stable_baselines3:PPO", "ahm_gym.agents.sb3_policies:PatchActorCriticPolicy", ppo),
    "a2c": Algorithm("stable_baselines3:A2C", "ahm_gym.agents.sb3_policies:PatchActorCriticPolicy", a2c),
    "trpo": Algorithm("sb3_contrib:TRPO", "ahm_gym.agents.sb3_policies:PatchActorCriticPolicy", trpo),
    "sac": Algorithm("stable_baselines3:SAC", "ahm_gym.agents.sb3_policies:PatchSACPolicy", sac),
    "td3": Algorithm("stable_baselines3:TD3", "ahm_gym.agents.sb3_policies:PatchTD3Policy", td3),
    "tqc": Algorithm("sb3_contrib:TQC", "ahm_gym.agents.sb3_contrib_policies:PatchTQCPolicy", sac),
    "dqn": Algorithm(
        "stable_baselines3:DQN",
        "ahm_gym.agents.sb3_policies:PatchDQNPolicy",
        dqn,
        env_id="AHM/SequentialMasking-v0",
    ),
    "maskable_ppo": Algorithm(
        "sb3_contrib:MaskablePPO",
        "ahm_gym.agents.sb3_contrib_policies:PatchMaskablePolicy",
        maskable_ppo,
        env_id="AHM/SequentialMasking-v0",
    ),
}
"""Algorithms by the name of their agent."""

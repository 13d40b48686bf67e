"""Episodes on small random images of sixteen patches, twelve of them masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from ahm_gym.envs import MaskingVectorEnv

B, L, NUM_MASKED = 4, 16, 12
SIZES = {"image_size": 32, "patch_size": 8}
IMAGES = torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def make_env(cls: type[MaskingVectorEnv], **options: Any) -> MaskingVectorEnv:
    return cls(B, data=IMAGES, **SIZES, **({"guided_fraction": 1.0} | options))


def begin(cls: type[MaskingVectorEnv], **options: Any) -> MaskingVectorEnv:
    """An environment at the start of an episode; it must be reset after the episode."""
    env = make_env(cls, autoreset_mode=AutoresetMode.DISABLED, **options)
    env.reset(seed=0)
    return env


def play(env: MaskingVectorEnv) -> list[dict[str, Any]]:
    """The info of every step of an episode of random actions."""
    env.action_space.seed(1)
    infos, ended = [], False
    while not ended:
        *_, terminated, _, info = env.step(env.action_space.sample())
        infos.append(info)
        ended = bool(terminated.all())
    return infos


def bits(*patches: int) -> np.ndarray:
    """Ones at these patches of every image (B, L)."""
    action = np.zeros((B, L), dtype=np.int8)
    action[:, list(patches)] = 1
    return action


def patches_of(rows: np.ndarray) -> list[set[int]]:
    """The indices that are True in each row."""
    return [set(np.flatnonzero(row).tolist()) for row in rows]

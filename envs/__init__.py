"""Masking, and a whole training run, as Gymnasium environments."""

if __name__ == "envs":
    raise ImportError("import this package as ahm_gym.envs: other distributions use the bare name, too.")

from ahm_gym.envs.binary import MultiBinaryMaskingEnv, MultiBinaryMaskingVectorEnv
from ahm_gym.envs.curriculum import CurriculumEnv
from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.patchwise import (
    GroupMaskingEnv,
    GroupMaskingVectorEnv,
    SequentialMaskingEnv,
    SequentialMaskingVectorEnv,
)
from ahm_gym.envs.rectangles import RectangleMaskingEnv, RectangleMaskingVectorEnv
from ahm_gym.envs.rewards import REWARDS
from ahm_gym.envs.single import MaskingEnv

__all__ = [
    "REWARDS",
    "CurriculumEnv",
    "GroupMaskingEnv",
    "GroupMaskingVectorEnv",
    "MaskingEnv",
    "MaskingVectorEnv",
    "MultiBinaryMaskingEnv",
    "MultiBinaryMaskingVectorEnv",
    "RectangleMaskingEnv",
    "RectangleMaskingVectorEnv",
    "SequentialMaskingEnv",
    "SequentialMaskingVectorEnv",
]

"""Masking as Gymnasium environments."""

if __name__ == "envs":
    raise ImportError(
        "import this package as ahm_gym.envs: the bare name belongs to other distributions too."
    )

from ahm_gym.envs.actions import SequentialMaskingEnv, SequentialMaskingVectorEnv
from ahm_gym.envs.masking import MaskingEnv, MaskingVectorEnv
from ahm_gym.envs.rewards import REWARDS

__all__ = ["REWARDS", "MaskingEnv", "MaskingVectorEnv", "SequentialMaskingEnv", "SequentialMaskingVectorEnv"]

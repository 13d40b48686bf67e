"""Self-supervised pretraining for medical image segmentation in which the mask is learned."""

import gymnasium

from ahm_gym import _compat as _compat  # before timm and MONAI, which import torchvision

__version__ = "0.1.0"

gymnasium.register(
    id="AHM/Masking-v0",
    entry_point="ahm_gym.envs:MaskingEnv",
    vector_entry_point="ahm_gym.envs:MaskingVectorEnv",
)
gymnasium.register(
    id="AHM/SequentialMasking-v0",
    entry_point="ahm_gym.envs:SequentialMaskingEnv",
    vector_entry_point="ahm_gym.envs:SequentialMaskingVectorEnv",
)

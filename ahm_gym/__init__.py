"""Self-supervised pretraining for medical image segmentation in which the mask is learned."""

import gymnasium

from ahm_gym import _compat as _compat  # before timm and MONAI, which import torchvision

__version__ = "0.1.0"

for _form in ("Masking", "MultiBinaryMasking", "SequentialMasking", "GroupMasking", "RectangleMasking"):
    gymnasium.register(
        id=f"AHM/{_form}-v0",
        entry_point=f"ahm_gym.envs:{_form}Env",
        vector_entry_point=f"ahm_gym.envs:{_form}VectorEnv",
    )

"""Random changes of labelled training images, beyond crops and flips."""

from __future__ import annotations

import math
from typing import Any

import ahm_gym._compat  # noqa: F401

from jaxtyping import Float, Int
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
)
from monai.transforms.spatial.dictionary import RandRotated, RandSimulateLowResolutiond, RandZoomd
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from ahm_gym.errors import unknown_name

AUGMENTATIONS: tuple[str, ...] = ("light", "nnunet")
"""light: crops and flips alone. nnunet: also rotations, zooms, and changes of intensity, as nnU-Net makes them."""


class Augmentation:
    """Changes an image and its label after crop and flips; a function of the seed alone.

    `nnunet` has the transforms, probabilities and ranges of nnU-Net's two-dimensional training ("nnU-Net: a
    self-configuring method for deep learning-based biomedical image segmentation", Isensee et al., Nature Methods
    2021), by MONAI.

    Args:
        name: one of `AUGMENTATIONS`.

    Raises:
        InputError: if the name is unknown.
    """

    def __init__(self, name: str) -> None:
        if name not in AUGMENTATIONS:
            raise unknown_name("augmentation", name, AUGMENTATIONS)
        self.name: str = name
        self.transform: Compose = nnunet_transform() if name == "nnunet" else Compose([])

    def __call__(
        self, image: Float[Tensor, "C H W"], label: Int[Tensor, "1 H W"], seed: int
    ) -> tuple[Float[Tensor, "C H W"], Int[Tensor, "1 H W"]]:
        """The changed image, normalised as before, and its label."""
        if self.name == "light":
            return image, label
        self.transform.set_random_state(seed=seed % 2**32)
        changed: Any = self.transform({"image": image, "label": label.float()})
        image, label = (convert_to_tensor(changed[key], track_meta=False) for key in ("image", "label"))
        return image.float(), label.round().long()


def nnunet_transform() -> Compose:
    """nnU-Net's transforms of a normalised image (key `image`) and its label (key `label`)."""
    both = {"keys": ("image", "label"), "mode": ("bilinear", "nearest"), "padding_mode": "border"}
    return Compose(
        [
            RandRotated(**both, range_x=math.pi, prob=0.2, keep_size=True),
            RandZoomd(
                ("image", "label"), prob=0.2, min_zoom=0.7, max_zoom=1.4, mode=("bilinear", "nearest-exact"),
                padding_mode="edge",
            ),
            RandGaussianNoised("image", prob=0.1, std=math.sqrt(0.1)),
            RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0)),
            RandScaleIntensityd("image", prob=0.15, factors=0.25),
            RandScaleIntensityFixedMeand("image", prob=0.15, factors=0.25, preserve_range=True),
            RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0), upsample_mode="bicubic"),
            RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )  # fmt: skip

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
    """Changes an image or a volume and its label after crop and flips; a function of the seed alone.

    `nnunet` has the transforms, probabilities and ranges of nnU-Net's two- or three-dimensional training ("nnU-Net: a
    self-configuring method for deep learning-based biomedical image segmentation", Isensee et al., Nature Methods
    2021), by MONAI.

    Args:
        name: one of `AUGMENTATIONS`.
        axes: 2 for images, 3 for volumes.

    Raises:
        InputError: if the name is unknown.
    """

    def __init__(self, name: str, axes: int = 2) -> None:
        if name not in AUGMENTATIONS:
            raise unknown_name("augmentation", name, AUGMENTATIONS)
        self.name: str = name
        self.transform: Compose = nnunet_transform(axes) if name == "nnunet" else Compose([])

    def __call__(
        self, image: Float[Tensor, "C *S"], label: Int[Tensor, "1 *S"], seed: int
    ) -> tuple[Float[Tensor, "C *S"], Int[Tensor, "1 *S"]]:
        """The changed image, normalised as before, and its label."""
        if self.name == "light":
            return image, label
        self.transform.set_random_state(seed=seed % 2**32)
        changed: Any = self.transform({"image": image, "label": label.float()})
        image, label = (convert_to_tensor(changed[key], track_meta=False) for key in ("image", "label"))
        return image.float(), label.round().long()


def nnunet_transform(axes: int = 2) -> Compose:
    """nnU-Net's transforms of a normalised image or volume (key `image`) and its label (key `label`).

    A volume is turned by up to 30 degrees about each axis, and an image by any angle.
    """
    turns = (
        {"range_x": math.pi} if axes == 2 else dict.fromkeys(("range_x", "range_y", "range_z"), math.pi / 6)
    )
    blurs = {f"sigma_{axis}": (0.5, 1.0) for axis in "xyz"[:axes]}
    linear, smooth = ("bilinear", "bicubic") if axes == 2 else ("trilinear", "trilinear")
    both = {"keys": ("image", "label"), "mode": ("bilinear", "nearest"), "padding_mode": "border"}
    return Compose(
        [
            RandRotated(**both, **turns, prob=0.2, keep_size=True),
            RandZoomd(
                ("image", "label"), prob=0.2, min_zoom=0.7, max_zoom=1.4, mode=(linear, "nearest-exact"),
                padding_mode="edge",
            ),
            RandGaussianNoised("image", prob=0.1, std=math.sqrt(0.1)),
            RandGaussianSmoothd("image", prob=0.2, **blurs),
            RandScaleIntensityd("image", prob=0.15, factors=0.25),
            RandScaleIntensityFixedMeand("image", prob=0.15, factors=0.25, preserve_range=True),
            RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0), upsample_mode=smooth),
            RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )  # fmt: skip

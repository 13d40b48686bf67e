"""MONAI's U-Net, and the autoencoder that reconstructs masked patches with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, cast

from jaxtyping import Float
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn

from ahm_gym.model.conv_autoencoder import ConvAutoencoder, build_seeded
from ahm_gym.model.conv_network import ConvNetwork, check_halvings, load_network
from ahm_gym.model.masked_layers import make_maskable

FEATURES: tuple[int, ...] = (32, 32, 64, 128, 256, 32)
"""Channels at the five resolutions going down, and of the last feature map."""
STRIDE: int = 16
"""Side, in pixels of the image, of a pixel at the coarsest resolution."""


class UNet(ConvNetwork, BasicUNet):
    """MONAI's U-Net without a head: it returns a feature map of the image's own size.

    After "U-Net: Deep Learning for Cell Counting, Detection, and Morphometry" (Falk et al., Nature
    Methods 2019).

    Args:
        image_size: length of each axis in pixels, two or three, of what it is trained on; the weights fit any size.
        patch_size: side of a patch in pixels, for masks and `patch_features`.
        channels: number of image channels.
        features: channels at the five resolutions, and of the feature map.

    Raises:
        InputError: if the image size cannot be halved four times, or only a single pixel would be left.
    """

    can_compile: ClassVar[bool] = False
    """torch.compile gets the strides of its replication padding wrong."""
    kind: ClassVar[str] = "unet"
    stem: ClassVar[str] = "conv_0.conv_0.conv.weight"
    decoder_prefixes: ClassVar[tuple[str, ...]] = ("upcat_",)

    def __init__(
        self,
        *,
        image_size: tuple[int, ...],
        patch_size: int,
        channels: int,
        features: tuple[int, ...] = FEATURES,
    ) -> None:
        check_halvings(image_size, STRIDE, "the U-Net")
        BasicUNet.__init__(self, spatial_dims=len(image_size), in_channels=channels, features=features)
        self.final_conv: nn.Module = nn.Identity()
        self.features: tuple[int, ...] = features
        down = (self.conv_0, self.down_1, self.down_2, self.down_3, self.down_4)
        self.describe(image_size, patch_size, channels, features[:-1], features[-1], make_maskable(*down))

    def encode(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B _ *_"]]:
        maps = [self.conv_0(images)]
        for down in (self.down_1, self.down_2, self.down_3, self.down_4):
            maps.append(down(maps[-1]))
        return maps

    def decode(self, maps: list[Float[Tensor, "B _ *_"]]) -> Float[Tensor, "B D *S"]:
        *skips, result = maps
        for up, skip in zip(
            (self.upcat_4, self.upcat_3, self.upcat_2, self.upcat_1), skips[::-1], strict=True
        ):
            result = up(result, skip)
        return cast(Tensor, result)

    def sizes(self) -> dict[str, Any]:
        return {"features": self.features}


def build(seed: int = 0, **options: Any) -> ConvAutoencoder:
    """A newly initialised autoencoder with a `UNet`; the global generator is not changed."""
    return build_seeded(UNet, seed, **options)


def load(folder: Path, *, image_size: tuple[int, ...], patch_size: int, channels: int) -> UNet:
    """Loads an exported U-Net; its first convolution is converted if the number of channels differs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    features = tuple(config["model_args"].get("features", ()))
    unet = UNet(image_size=image_size, patch_size=patch_size, channels=channels, features=features)
    return load_network(unet, folder)

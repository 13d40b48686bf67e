"""MONAI's U-Net, and the autoencoder that reconstructs masked patches with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from jaxtyping import Bool, Float
from monai.networks.nets.basic_unet import BasicUNet
from timm.models import adapt_input_conv
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ahm_gym.errors import InputError
from ahm_gym.model.autoencoder import Autoencoder, Reconstruction
from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.patches import patchify

FEATURES: tuple[int, ...] = (32, 32, 64, 128, 256, 32)
"""Channels at the five resolutions going down, and of the last feature map."""
STRIDE: int = 16
"""Side, in pixels of the image, of a pixel at the coarsest resolution."""


class UNet(BasicUNet):
    """MONAI's U-Net without a head: it returns a feature map of the image's own size.

    After "U-Net: Deep Learning for Cell Counting, Detection, and Morphometry" (Falk et al., Nature
    Methods 2019). The network has a decoder, so pretraining and segmentation share all layers but the last.

    Args:
        image_size: height and width in pixels of the images to train on; the weights fit any size.
        patch_size: side of a patch in pixels, for masks and `patch_features`.
        channels: number of image channels.
        features: channels at the five resolutions, and of the feature map.

    Raises:
        InputError: if the image size cannot be halved four times, or only a single pixel would be left.
    """

    has_decoder: bool = True

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        channels: int,
        features: tuple[int, ...] = FEATURES,
    ) -> None:
        height, width = image_size
        if height % STRIDE or width % STRIDE or height * width <= STRIDE**2:
            raise InputError(
                f"image size {height}x{width} does not fit the U-Net, which halves it four times: choose multiples "
                f"of {STRIDE} such as 64, at least one of them above {STRIDE}."
            )
        super().__init__(spatial_dims=2, in_channels=channels, features=features)
        self.final_conv: nn.Module = nn.Identity()
        self.image_size: tuple[int, int] = image_size
        self.patch_size: int = patch_size
        self.channels: int = channels
        self.features: tuple[int, ...] = features
        self.width: int = features[-1]

    def patch_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """The feature map averaged over each patch, in reading order."""
        return nn.functional.avg_pool2d(self(images), self.patch_size).flatten(2).transpose(1, 2)

    def feature_maps(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D H W"]]:
        """A single feature map, of the images' own size."""
        return [self(images)]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups with the same learning rate for all parameters."""
        return param_groups_weight_decay(self, weight_decay)

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes `model.safetensors` and `config.json`, in the layout of timm's exports."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")
        arguments = {"img_size": self.image_size, "patch_size": self.patch_size, "in_chans": self.channels}
        config = {
            "kind": "unet",
            "architecture": "unet",
            "model_args": {**arguments, "features": self.features},
            "pretrained_cfg": statistics,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


as_encoder.register(UNet, lambda network: network)


class UNetAutoencoder(Autoencoder):
    """Sets masked patches to zero, the mean of normalised images, and predicts every pixel with a U-Net.

    The reconstructor of AHM (Xu, Liu, Xu, Lukasiewicz, IEEE TMI 2025). An agent observes the raw pixels of each
    patch; `unpatchify` puts the image together again.

    Args:
        image_size: height and width in pixels, multiples of 16 and of the patch size.
        patch_size: side of a patch in pixels.
        channels: number of image channels.
        features: channels of the `UNet`.
        normalise_target: predict patches with zero mean and unit variance instead of raw pixels.

    Raises:
        InputError: if the image size does not fit.
    """

    embeds_pixels: bool = True

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = (64, 64),
        patch_size: int = 8,
        channels: int = 1,
        features: tuple[int, ...] = FEATURES,
        normalise_target: bool = False,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            channels=channels,
            dim=channels * patch_size**2,
            normalise_target=normalise_target,
        )
        self.encoder: UNet = UNet(
            image_size=image_size, patch_size=patch_size, channels=channels, features=features
        )
        self.head: nn.Conv2d = nn.Conv2d(self.encoder.width, channels, 1)

    def embed(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """The pixels of each patch, in the order of `patchify`."""
        return patchify(self._checked(images), self.patch_size)

    def embedding_state(self) -> dict[str, Tensor]:
        """Empty, because the pixels do not depend on weights."""
        return {}

    def fill_in(self, images: Float[Tensor, "B C H W"], *mask_inputs: Tensor) -> Reconstruction:
        mask, weight = mask_inputs
        visible = images.masked_fill(self._hidden(self._checked(images), mask), 0.0)
        filled = cast(Tensor, self.head(self.encoder(visible)))  # B C H W
        return self.compare(patchify(filled, self.patch_size), patchify(images, self.patch_size), weight)

    def _hidden(self, images: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B L"]) -> Bool[Tensor, "B 1 H W"]:
        """True for the pixels of masked patches."""
        pixels = mask.unflatten(1, self.grid)[:, None]
        return pixels.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)


def build(seed: int = 0, **options: Any) -> UNetAutoencoder:
    """A newly initialised `UNetAutoencoder`; the global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return UNetAutoencoder(**options)


def load(folder: Path, *, image_size: tuple[int, int], patch_size: int, channels: int) -> UNet:
    """Loads an exported U-Net; its first convolution is converted if the number of channels differs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    features = tuple(config["model_args"].get("features", ()))
    unet = UNet(image_size=image_size, patch_size=patch_size, channels=channels, features=features)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    stem = "conv_0.conv_0.conv.weight"
    if weights[stem].shape[1] != channels:
        weights[stem] = adapt_input_conv(channels, weights[stem], base_chans=weights[stem].shape[1])
    unet.load_state_dict(weights)
    return unet

"""The residual-encoder U-Net of nnU-Net, and the autoencoder that reconstructs masked patches with it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ahm_gym.errors import InputError
from ahm_gym.model.conv_autoencoder import ConvAutoencoder, build_seeded
from ahm_gym.model.conv_network import ConvNetwork, check_halvings, load_network
from ahm_gym.model.masked_layers import make_maskable

FEATURES: tuple[int, ...] = (16, 32, 64, 128, 256)
"""Channels at each resolution, the finest first."""
BLOCKS: tuple[int, ...] = (1, 2, 2, 2, 2)
"""Number of residual blocks at each resolution."""


class ConvNorm(nn.Module):
    """A convolution and an instance norm, with the names of nnU-Net's ConvDropoutNormReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = True) -> None:
        super().__init__()
        self.conv: nn.Conv2d = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.norm: nn.InstanceNorm2d = nn.InstanceNorm2d(outputs, affine=True)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.norm(self.conv(maps))


class ConvNormReLU(ConvNorm):
    """The same, followed by a leaky ReLU."""

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return nn.functional.leaky_relu(super().forward(maps), inplace=True)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which averages before it changes the width (nnU-Net's BasicBlockD).

    After ResNet-D of "Bag of Tricks for Image Classification with Convolutional Neural Networks" (He et al.,
    CVPR 2019).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1: ConvNormReLU = ConvNormReLU(inputs, outputs, 3, stride)
        self.conv2: ConvNorm = ConvNorm(outputs, outputs, 3)
        shortcut: list[nn.Module] = [nn.AvgPool2d(stride, stride)] if stride != 1 else []
        if inputs != outputs:
            shortcut.append(ConvNorm(inputs, outputs, 1, bias=False))
        self.skip: nn.Sequential = nn.Sequential(*shortcut)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return nn.functional.leaky_relu(self.conv2(self.conv1(maps)) + self.skip(maps), inplace=True)


class Blocks(nn.Module):
    """A sequence of modules under one name."""

    def __init__(self, name: str, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.name: str = name
        setattr(self, name, nn.Sequential(*modules))

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return getattr(self, self.name)(maps)


class ResidualEncoder(nn.Module):
    """A stem and stages of residual blocks, each of which after the first halves the resolution."""

    def __init__(self, channels: int, features: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem: Blocks = Blocks("convs", [ConvNormReLU(channels, features[0], 3)])
        inputs = (features[0], *features)
        stages = [
            Blocks(
                "blocks",
                [ResidualBlock(before, width, min(level, 1) + 1)]
                + [ResidualBlock(width, width, 1) for _ in range(count - 1)],
            )
            for level, (before, width, count) in enumerate(zip(inputs, features, blocks, strict=False))
        ]
        self.stages: nn.Sequential = nn.Sequential(*stages)

    def forward(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        result, maps = self.stem(images), []
        for stage in self.stages:
            result = stage(result)
            maps.append(result)
        return maps


class UNetDecoder(nn.Module):
    """Doubles the resolution stage by stage, with the map of the encoder at each."""

    def __init__(self, features: tuple[int, ...]) -> None:
        super().__init__()
        coarse_to_fine = features[::-1]
        pairs = list(itertools.pairwise(coarse_to_fine))
        self.transpconvs: nn.ModuleList = nn.ModuleList(
            nn.ConvTranspose2d(below, width, 2, 2) for below, width in pairs
        )
        self.stages: nn.ModuleList = nn.ModuleList(
            Blocks("convs", [ConvNormReLU(2 * width, width, 3)]) for _, width in pairs
        )

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B D H W"]:
        *skips, result = maps
        for up, stage, skip in zip(self.transpconvs, self.stages, skips[::-1], strict=True):
            result = stage(torch.cat((up(result), skip), dim=1))
        return result


class ResEncUNet(ConvNetwork):
    """nnU-Net's residual-encoder U-Net without a head: it returns a feature map of the image's own size.

    After "nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation" (Isensee et al., MICCAI
    2024), in two dimensions. The weights have nnU-Net's names; `nnunet_weights` adds those that nnU-Net stores twice.

    Args:
        image_size: height and width in pixels of the images to train on; the weights fit any size.
        patch_size: side of a patch in pixels, for masks and `patch_features`.
        channels: number of image channels.
        features: channels at each resolution, the finest first; each resolution is half of the one before.
        blocks: number of residual blocks at each resolution.

    Raises:
        InputError: if the image size cannot be halved often enough, or only a single pixel would be left.
    """

    kind: ClassVar[str] = "resenc"
    stem: ClassVar[str] = "encoder.stem.convs.0.conv.weight"
    decoder_prefixes: ClassVar[tuple[str, ...]] = ("decoder.",)

    def __init__(
        self,
        *,
        image_size: tuple[int, ...],
        patch_size: int,
        channels: int,
        features: tuple[int, ...] = FEATURES,
        blocks: tuple[int, ...] = BLOCKS,
    ) -> None:
        if len(features) != len(blocks) or min(*features, *blocks) < 1:
            raise InputError(
                f"features {features} and blocks {blocks} of the residual U-Net differ in length or hold a number "
                "below 1: give one of each per resolution."
            )
        check_halvings(image_size, 2 ** (len(features) - 1), "the residual U-Net")
        super().__init__()
        self.blocks: tuple[int, ...] = tuple(blocks)
        self.encoder: ResidualEncoder = ResidualEncoder(channels, features, blocks)
        self.decoder: UNetDecoder = UNetDecoder(features)
        self._initialise()
        self.describe(image_size, patch_size, channels, features, features[0], make_maskable(self.encoder))

    def encode(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        return self.encoder(images)

    def decode(self, maps: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B D H W"]:
        return self.decoder(maps)

    def sizes(self) -> dict[str, Any]:
        return {"features": self.map_widths, "blocks": self.blocks}

    def _initialise(self) -> None:
        """He's initialisation for leaky ReLUs; the last norm of a block starts at 0, so that the block does nothing."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, a=1e-2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.norm.weight)


def nnunet_weights(network: ResEncUNet) -> dict[str, Tensor]:
    """The weights under all names that nnU-Net stores them by; `network_weights` of its checkpoints.

    nnU-Net keeps each convolution and norm a second time in a sequence, and the encoder also inside the decoder.
    """
    weights = dict(network.state_dict())
    for name, value in network.state_dict().items():
        for position, part in enumerate((".conv.", ".norm.")):
            if part in name:
                weights[name.replace(part, f".all_modules.{position}.")] = value
    return weights | {
        f"decoder.{name}": value for name, value in weights.items() if name.startswith("encoder.")
    }


def build(seed: int = 0, **options: Any) -> ConvAutoencoder:
    """A newly initialised autoencoder with a `ResEncUNet`; the global generator is not changed."""
    return build_seeded(ResEncUNet, seed, **options)


def load(folder: Path, *, image_size: tuple[int, ...], patch_size: int, channels: int) -> ResEncUNet:
    """Loads an exported U-Net; its first convolution is converted if the number of channels differs."""
    arguments = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_args"]
    sizes = {name: tuple(arguments[name]) for name in ("features", "blocks")}
    network = ResEncUNet(image_size=image_size, patch_size=patch_size, channels=channels, **sizes)
    return load_network(network, folder)

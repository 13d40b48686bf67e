"""The residual-encoder U-Net of nnU-Net, and the autoencoder that reconstructs masked patches with it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ahm_gym.errors import InputError
from ahm_gym.model.conv_autoencoder import ConvAutoencoder, build_seeded
from ahm_gym.model.conv_network import LAYERS, ConvNetwork, check_halvings, load_network
from ahm_gym.model.masked_layers import make_maskable

FEATURES: tuple[int, ...] = (16, 32, 64, 128, 256)
"""Channels at each resolution, the finest first."""
BLOCKS: tuple[int, ...] = (1, 2, 2, 2, 2)
"""Number of residual blocks at each resolution."""

Sides: TypeAlias = tuple[int, ...]
"""A length along each axis, in pixels of a map."""


class ConvNorm(nn.Module):
    """A convolution and an instance norm, with the names of nnU-Net's ConvDropoutNormReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sides, stride: Sides | int = 1, *, bias: bool = True
    ) -> None:
        super().__init__()
        layers, padding = LAYERS[len(kernel)], tuple(side // 2 for side in kernel)
        self.conv: nn.Conv2d | nn.Conv3d = layers.conv(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm: nn.InstanceNorm2d | nn.InstanceNorm3d = layers.norm(outputs, affine=True)

    def forward(self, maps: Float[Tensor, "B C *S"]) -> Float[Tensor, "B D *s"]:
        return self.norm(self.conv(maps))


class ConvNormReLU(ConvNorm):
    """The same, followed by a leaky ReLU."""

    def forward(self, maps: Float[Tensor, "B C *S"]) -> Float[Tensor, "B D *s"]:
        return nn.functional.leaky_relu(super().forward(maps), inplace=True)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which averages before it changes the width (nnU-Net's BasicBlockD).

    After ResNet-D of "Bag of Tricks for Image Classification with Convolutional Neural Networks" (He et al.,
    CVPR 2019).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sides, stride: Sides) -> None:
        super().__init__()
        axes = len(kernel)
        self.conv1: ConvNormReLU = ConvNormReLU(inputs, outputs, kernel, stride)
        self.conv2: ConvNorm = ConvNorm(outputs, outputs, kernel)
        shortcut: list[nn.Module] = [LAYERS[axes].average(stride, stride)] if max(stride) > 1 else []
        if inputs != outputs:
            shortcut.append(ConvNorm(inputs, outputs, (1,) * axes, bias=False))
        self.skip: nn.Sequential = nn.Sequential(*shortcut)

    def forward(self, maps: Float[Tensor, "B C *S"]) -> Float[Tensor, "B D *s"]:
        return nn.functional.leaky_relu(self.conv2(self.conv1(maps)) + self.skip(maps), inplace=True)


class Blocks(nn.Module):
    """A sequence of modules under one name."""

    def __init__(self, name: str, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.name: str = name
        setattr(self, name, nn.Sequential(*modules))

    def forward(self, maps: Float[Tensor, "B C *S"]) -> Float[Tensor, "B D *s"]:
        return getattr(self, self.name)(maps)


class ResidualEncoder(nn.Module):
    """A stem and stages of residual blocks; the first block of a stage lowers the resolution by its strides."""

    def __init__(
        self,
        channels: int,
        features: tuple[int, ...],
        blocks: tuple[int, ...],
        kernels: tuple[Sides, ...],
        strides: tuple[Sides, ...],
    ) -> None:
        super().__init__()
        self.stem: Blocks = Blocks("convs", [ConvNormReLU(channels, features[0], kernels[0])])
        inputs, whole = (features[0], *features), (1,) * len(kernels[0])
        stages = [
            Blocks(
                "blocks",
                [ResidualBlock(before, width, kernel, stride)]
                + [ResidualBlock(width, width, kernel, whole) for _ in range(count - 1)],
            )
            for before, width, count, kernel, stride in zip(
                inputs, features, blocks, kernels, strides, strict=False
            )
        ]
        self.stages: nn.Sequential = nn.Sequential(*stages)

    def forward(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B _ *_"]]:
        result, maps = self.stem(images), []
        for stage in self.stages:
            result = stage(result)
            maps.append(result)
        return maps


class UNetDecoder(nn.Module):
    """Raises the resolution stage by stage, with the map of the encoder at each."""

    def __init__(
        self, features: tuple[int, ...], kernels: tuple[Sides, ...], strides: tuple[Sides, ...]
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(features[::-1]))
        up = LAYERS[len(kernels[0])].transposed
        self.transpconvs: nn.ModuleList = nn.ModuleList(
            up(below, width, stride, stride)
            for (below, width), stride in zip(pairs, strides[:0:-1], strict=True)
        )
        self.stages: nn.ModuleList = nn.ModuleList(
            Blocks("convs", [ConvNormReLU(2 * width, width, kernel)])
            for (_, width), kernel in zip(pairs, kernels[-2::-1], strict=True)
        )

    def forward(self, maps: list[Float[Tensor, "B _ *_"]]) -> Float[Tensor, "B D *S"]:
        *skips, result = maps
        for up, stage, skip in zip(self.transpconvs, self.stages, skips[::-1], strict=True):
            result = stage(torch.cat((up(result), skip), dim=1))
        return result


class ResEncUNet(ConvNetwork):
    """nnU-Net's residual-encoder U-Net without a head: it returns a feature map of the image's own size.

    After "nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation" (Isensee et al., MICCAI
    2024), in two or three dimensions. The weights have nnU-Net's names; `nnunet_weights` adds those that nnU-Net
    stores twice.

    Args:
        image_size: length of each axis in pixels, two or three, of what it is trained on; the weights fit any size.
        patch_size: side of a patch in pixels, for masks and `patch_features`.
        channels: number of image channels.
        features: channels at each resolution, the finest first.
        blocks: number of residual blocks at each resolution.
        kernels: sides of the kernels at each resolution, along each axis; None: 3 everywhere.
        strides: how many pixels of the resolution before one covers, along each axis, with 1 for the finest; None:
            each resolution is half of the one before.

    Raises:
        InputError: if the sizes do not go together, the image size cannot be divided often enough, or only a single
            pixel would be left.
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
        kernels: tuple[Sides, ...] | None = None,
        strides: tuple[Sides, ...] | None = None,
    ) -> None:
        axes, levels = len(image_size), len(features)
        given = {
            name: value for name, value in (("kernels", kernels), ("strides", strides)) if value is not None
        }
        kernels = kernels or ((3,) * axes,) * levels
        strides = strides or ((1,) * axes, *((2,) * axes,) * (levels - 1))
        _check_sizes(axes, features, blocks, kernels, strides)
        coarsest = tuple(math.prod(steps) for steps in zip(*strides, strict=True))
        check_halvings(image_size, coarsest, "the residual U-Net")
        super().__init__()
        self.blocks: tuple[int, ...] = tuple(blocks)
        self.given: dict[str, tuple[Sides, ...]] = given
        """The kernels and strides that differ from the default."""
        self.encoder: ResidualEncoder = ResidualEncoder(channels, features, blocks, kernels, strides)
        self.decoder: UNetDecoder = UNetDecoder(features, kernels, strides)
        self._initialise()
        self.describe(image_size, patch_size, channels, features, features[0], make_maskable(self.encoder))

    def encode(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B _ *_"]]:
        return self.encoder(images)

    def decode(self, maps: list[Float[Tensor, "B _ *_"]]) -> Float[Tensor, "B D *S"]:
        return self.decoder(maps)

    def sizes(self) -> dict[str, Any]:
        return {"features": self.map_widths, "blocks": self.blocks, **self.given}

    def _initialise(self) -> None:
        """He's initialisation for leaky ReLUs; the last norm of a block starts at 0, so that the block does nothing."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                nn.init.kaiming_normal_(module.weight, a=1e-2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.norm.weight)


def _check_sizes(
    axes: int,
    features: tuple[int, ...],
    blocks: tuple[int, ...],
    kernels: tuple[Sides, ...],
    strides: tuple[Sides, ...],
) -> None:
    if len(features) != len(blocks) or min(*features, *blocks) < 1:
        raise InputError(
            f"features {features} and blocks {blocks} of the residual U-Net differ in length or hold a number "
            "below 1: give one of each per resolution."
        )
    for name, sides, odd in (("kernels", kernels, True), ("strides", strides, False)):
        wrong = [side for level in sides for side in level if side < 1 or (odd and side % 2 == 0)]
        if len(sides) != len(features) or {len(level) for level in sides} != {axes} or wrong:
            raise InputError(
                f"{name} {sides} of the residual U-Net do not fit: give {axes} {'odd ' if odd else ''}numbers of at "
                f"least 1 for each of the {len(features)} resolutions."
            )
    if set(strides[0]) != {1}:
        raise InputError(
            f"the finest resolution of the residual U-Net has strides {strides[0]}: expected 1 each."
        )


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
    sizes: dict[str, Any] = {name: tuple(arguments[name]) for name in ("features", "blocks")}
    for name in ("kernels", "strides"):
        if name in arguments:
            sizes[name] = tuple(tuple(level) for level in arguments[name])
    network = ResEncUNet(image_size=image_size, patch_size=patch_size, channels=channels, **sizes)
    return load_network(network, folder)

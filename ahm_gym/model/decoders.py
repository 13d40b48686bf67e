"""Decoders: from the feature maps of an encoder to class logits for every pixel, and the loss of these."""

from __future__ import annotations

from typing import Any

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Float, Int
from monai.losses.dice import DiceLoss
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.layers.factories import Conv
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.nn import functional

from ahm_gym.data.ignored import IGNORED, is_counted
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.model.encoder_base import NUM_MAPS, Encoder
from ahm_gym.model.patches import grid_of

DECODERS: tuple[str, ...] = ("unetr", "plain")
"""unetr also reads the image, and segments even without an encoder; plain reads the features alone, to measure them."""
INTERPOLATION: dict[int, str] = {2: "bilinear", 3: "trilinear"}
"""Linear interpolation by the number of axes."""
MIXED: dict[int, int] = {2: 4, 3: 2}
"""Width of the mixed features of `PlainDecoder` as a multiple of that at full resolution, by the number of axes.

In volumes 4 takes twice as long and was no better: 300 updates with 20 hippocampi from scratch gave a Dice of 0.593,
and 0.612 with 2.
"""


def default_decoder(encoder: Encoder) -> str:
    """The decoder that is taken unless one is chosen: unetr for images, plain for volumes.

    In volumes, UNETR's blocks at full resolution take fourteen times as long as the plain decoder: 823 and 60 ms for an
    update with 2 crops of 48 voxels a side, of which the encoder takes 69 ms. "Primus: Enforcing Attention Usage for 3D
    Medical Image Segmentation" (Wald et al. 2025) does without, too. Where the encoder has its own decoder, unetr is
    only a head.
    """
    return "unetr" if len(encoder.image_size) == 2 or encoder.has_decoder else "plain"


def build_decoder(name: str, encoder: Encoder, num_classes: int, feature_size: int = 16) -> nn.Module:
    """The decoder of that name for an encoder; only a head if the encoder has its own decoder.

    Args:
        name: one of `DECODERS`.
        encoder: encoder whose feature maps it reads.
        num_classes: number of classes including the background.
        feature_size: width at full resolution.

    Raises:
        InputError: if the name is unknown, or `plain` is asked for although the encoder has its own decoder.
    """
    if name not in DECODERS:
        raise unknown_name("decoder", name, DECODERS)
    if encoder.has_decoder and name == "plain":
        raise InputError(
            "`decoder=plain` goes with a vision transformer; a U-Net has its own decoder: leave it out."
        )
    axes = len(encoder.image_size)
    if encoder.has_decoder:
        return PixelHead(encoder.width, num_classes, axes)
    if name == "plain":
        return PlainDecoder(encoder.width, num_classes=num_classes, feature_size=feature_size, axes=axes)
    return UnetrDecoder(
        encoder.width,
        channels=encoder.channels,
        num_classes=num_classes,
        grid=grid_of(encoder.image_size, encoder.patch_size),
        patch_size=encoder.patch_size,
        feature_size=feature_size,
    )


class SegmentationLoss(nn.Module):
    """Dice loss plus cross-entropy, both without ignored pixels; without any other pixel it is 0.

    The Dice is taken over the whole batch, because a single image often lacks a class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice: DiceLoss = DiceLoss(include_background=False, batch=True)

    def forward(self, logits: Float[Tensor, "B K *S"], labels: Int[Tensor, "B 1 *S"]) -> Float[Tensor, ""]:
        """The loss of class logits for labels, of which those that are `IGNORED` do not count."""
        counted = is_counted(labels)
        classes = torch.where(counted, labels, 0)
        true = one_hot(classes, num_classes=logits.shape[1])
        dice = self.dice(logits.softmax(dim=1) * counted, true * counted)
        losses = functional.cross_entropy(logits, labels[:, 0], ignore_index=IGNORED, reduction="sum")
        return dice + losses / counted.sum().clamp(min=1)


class PixelHead(nn.Module):
    """Computes class logits from a feature map of the image's size, pixel by pixel, over 2 or 3 axes."""

    def __init__(self, width: int, num_classes: int, axes: int = 2) -> None:
        super().__init__()
        self.out: nn.Module = Conv["conv", axes](width, num_classes, 1)

    def forward(
        self, images: Float[Tensor, "B C *S"], features: list[Float[Tensor, "B D *S"]]
    ) -> Float[Tensor, "B K *S"]:
        return self.out(features[0])


class PlainDecoder(nn.Module):
    """Computes class logits from the feature maps alone: without a path from the pixels, it measures the features.

    The maps of all depths are normalised, mixed for every patch and upsampled: a linear map of each patch's features
    and two convolutions, in contrast to `UnetrDecoder`, which segments even without an encoder.

    Args:
        dim: width of a feature map.
        num_classes: number of classes including the background.
        feature_size: width at full resolution.
        axes: 2 for images, 3 for volumes.
    """

    def __init__(self, dim: int, *, num_classes: int, feature_size: int, axes: int = 2) -> None:
        super().__init__()
        width = MIXED[axes] * feature_size
        convolution: Any = Conv["conv", axes]
        self.normalise: nn.ModuleList = nn.ModuleList(nn.GroupNorm(1, dim) for _ in range(NUM_MAPS))
        self.mix: nn.Module = convolution(NUM_MAPS * dim, width, 1)
        self.refine: nn.Sequential = nn.Sequential(
            nn.GELU(), convolution(width, feature_size, 3, padding=1), nn.GELU()
        )
        self.out: nn.Module = convolution(feature_size, num_classes, 3, padding=1)

    def forward(
        self, images: Float[Tensor, "B C *S"], features: list[Float[Tensor, "B D *s"]]
    ) -> Float[Tensor, "B K *S"]:
        size = tuple(images.shape[2:])
        # The group norm of torch 2.13 crashes in the backward pass on some maps that are not contiguous.
        maps = [norm(feature.contiguous()) for norm, feature in zip(self.normalise, features, strict=True)]
        mixed = self.mix(torch.cat(maps, dim=1))
        half = tuple(max(side // 2, cells) for side, cells in zip(size, mixed.shape[2:], strict=True))
        return resize(self.out(self.refine(resize(mixed, half))), size)


class UnetrDecoder(nn.Module):
    """Computes class logits at full resolution from the feature maps and the image itself.

    After "UNETR: Transformers for 3D Medical Image Segmentation" (Hatamizadeh et al., WACV 2022), in two or three
    dimensions. Each level doubles the resolution, as often as the patch size allows; if the patch size is not a power
    of two, the rest is interpolated.
    """

    def __init__(
        self,
        dim: int,
        *,
        channels: int,
        num_classes: int,
        grid: tuple[int, ...],
        patch_size: int,
        feature_size: int,
    ) -> None:
        super().__init__()
        levels = max(patch_size.bit_length() - 1, 1)
        axes = len(grid)
        self.size: tuple[int, ...] = tuple(cells << levels for cells in grid)
        self.first: int = min(levels, NUM_MAPS) - 1
        """The feature maps from this index on, the deepest ones, enter at the resolution of the grid."""
        self.sources: list[int] = [max(self.first - level, 0) for level in range(1, levels)]
        """Index of the feature map that enters at each further level."""
        widths = [feature_size * min(2 ** (levels - level), 8) for level in range(1, levels + 1)]
        inputs = [dim * (NUM_MAPS - self.first), *widths]
        common: dict[str, Any] = {"spatial_dims": axes, "kernel_size": 3, "norm_name": "instance"}
        self.up: nn.ModuleList = nn.ModuleList(
            UnetrUpBlock(in_channels=before, out_channels=width, upsample_kernel_size=2, **common)
            for before, width in zip(inputs, widths, strict=False)
        )
        self.skips: nn.ModuleList = nn.ModuleList(
            UnetrPrUpBlock(
                in_channels=dim,
                out_channels=width,
                num_layer=depth,
                stride=1,
                upsample_kernel_size=2,
                **common,
            )
            for depth, width in enumerate(widths[:-1])
        )
        self.stem: nn.Module = UnetrBasicBlock(
            in_channels=channels, out_channels=feature_size, stride=1, **common
        )
        self.out: nn.Module = UnetOutBlock(
            spatial_dims=axes, in_channels=feature_size, out_channels=num_classes
        )

    def forward(
        self, images: Float[Tensor, "B C *S"], features: list[Float[Tensor, "B D *s"]]
    ) -> Float[Tensor, "B K *S"]:
        maps = torch.cat(features[self.first :], dim=1)
        skips = [skip(features[source]) for skip, source in zip(self.skips, self.sources, strict=True)]
        skips.append(self.stem(resize(images, self.size)))
        for up, skip in zip(self.up, skips, strict=True):
            maps = up(maps, skip)  # B width 2h 2w
        return resize(self.out(maps), tuple(images.shape[2:]))


def resize(images: Float[Tensor, "B C *S"], size: tuple[int, ...]) -> Float[Tensor, "B C *S2"]:
    """The images or volumes, resized linearly to `size`; images with antialiasing, which torch lacks for volumes."""
    if tuple(images.shape[2:]) == size:
        return images
    axes = len(size)
    return functional.interpolate(images, size, mode=INTERPOLATION[axes], antialias=axes == 2)

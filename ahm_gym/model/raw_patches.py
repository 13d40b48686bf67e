"""The mean and the deviation of the pixels of each patch, as an encoder without weights: what any encoder must beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ahm_gym.errors import InputError
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.encoder_base import NUM_MAPS, as_encoder, write_description
from ahm_gym.model.patches import grid_of, patchify


class RawPatches(nn.Module):
    """Describes each patch by the mean and the standard deviation of its pixels in every channel.

    Args:
        image_size: length of each axis in pixels.
        patch_size: side of a patch in pixels.
        channels: number of image channels.

    Raises:
        InputError: if the patch size does not divide the image size.
    """

    has_decoder: bool = False

    def __init__(self, *, image_size: tuple[int, ...], patch_size: int, channels: int) -> None:
        super().__init__()
        self.image_size: tuple[int, ...] = image_size
        self.patch_size: int = patch_size
        self.channels: int = channels
        self.width: int = 2 * channels
        self.grid: tuple[int, ...] = grid_of(image_size, patch_size)

    def patch_features(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """The means of all channels, then their standard deviations, in reading order."""
        patches = patchify(images, self.patch_size).unflatten(2, (-1, self.channels))  # B L pixels C
        deviation, mean = torch.std_mean(patches, dim=2, correction=0)
        return torch.cat((mean, deviation), dim=2)

    def feature_maps(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B D *s"]]:
        """The same map for every depth."""
        return [self.patch_features(images).transpose(1, 2).unflatten(2, self.grid)] * NUM_MAPS

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Empty: there is nothing to train."""
        return []

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes `config.json`; there are no weights."""
        write_description(self, "raw_patches", folder, statistics)


as_encoder.register(RawPatches, lambda network: network)


def build(seed: int = 0, **options: Any) -> Autoencoder:
    """Raises InputError: there is nothing to pretrain."""
    raise InputError("`model=raw_patches` has nothing to pretrain: choose tiny or unet, or probe it.")


def load(folder: Path, *, image_size: tuple[int, ...], patch_size: int, channels: int) -> RawPatches:
    """The encoder for images of this shape; nothing is read."""
    return RawPatches(image_size=image_size, patch_size=patch_size, channels=channels)

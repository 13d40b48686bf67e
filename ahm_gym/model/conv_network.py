"""What the convolutional networks share: they encode an image into maps, and decode these to full resolution."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import safetensors.torch
from jaxtyping import Float
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ahm_gym.errors import InputError
from ahm_gym.model.encoder_base import as_encoder, write_description
from ahm_gym.model.masked_layers import Visibility
from ahm_gym.model.patches import by
from ahm_gym.model.resampling import adapt_channels


class Layers(NamedTuple):
    """torch's layers for one number of axes."""

    conv: Any
    transposed: Any
    norm: Any
    average: Any


LAYERS: dict[int, Layers] = {
    2: Layers(nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d, nn.AvgPool2d),
    3: Layers(nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d, nn.AvgPool3d),
}
"""The layers for images and for volumes, by their number of axes."""


class ConvNetwork(nn.Module):
    """The base class of U-Nets without a head: they return a feature map of the image's own size.

    Such a network has a decoder, so pretraining and segmentation share all layers but the last. A subclass implements
    `encode` and `decode`, and calls `describe` at the end of its constructor.
    """

    has_decoder: bool = True
    can_compile: ClassVar[bool] = True
    kind: ClassVar[str]
    """Its name in `ARCHITECTURES`."""
    stem: ClassVar[str]
    """Name of the weights of the first convolution."""
    decoder_prefixes: ClassVar[tuple[str, ...]]
    """What the names of the decoder's weights start with."""

    def describe(
        self,
        image_size: tuple[int, ...],
        patch_size: int,
        channels: int,
        features: tuple[int, ...],
        width: int,
        visibility: Visibility,
    ) -> None:
        """Sets the attributes of an `Encoder`; `features` are the channels of the maps, the finest first.

        The feature map of the decoder has `width` channels.
        """
        self.image_size: tuple[int, ...] = image_size
        self.patch_size: int = patch_size
        self.channels: int = channels
        self.map_widths: tuple[int, ...] = tuple(features)
        self.width: int = width
        self.visibility: Visibility = visibility

    def encode(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B _ *_"]]:
        """The maps of all resolutions, the finest first."""
        raise NotImplementedError

    def decode(self, maps: list[Float[Tensor, "B _ *_"]]) -> Float[Tensor, "B D *S"]:
        """The feature map of the image's size, from what `encode` returned."""
        raise NotImplementedError

    def forward(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B D *S"]:
        return self.decode(self.encode(images))

    def patch_features(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """The feature map averaged over each patch, in reading order."""
        pool = LAYERS[len(self.image_size)].average(self.patch_size)
        return pool(self(images)).flatten(2).transpose(1, 2)

    def feature_maps(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B D *S"]]:
        """A single feature map, of the images' own size."""
        return [self(images)]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups with the same learning rate for all parameters."""
        return param_groups_weight_decay(self, weight_decay)

    def sizes(self) -> dict[str, Any]:
        """Arguments of the constructor beside the size, the patch size and the channels of the images."""
        raise NotImplementedError

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes `model.safetensors` and `config.json`, in the layout of timm's exports."""
        write_description(self, self.kind, folder, statistics, **self.sizes())
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")


as_encoder.register(ConvNetwork, lambda network: network)

Network = TypeVar("Network", bound=ConvNetwork)


def load_network(network: Network, folder: Path) -> Network:
    """Loads exported weights; the first convolution is converted if the number of channels differs."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights[network.stem] = adapt_channels(weights[network.stem], network.channels)
    network.load_state_dict(weights)
    return network


def renew_decoder(network: ConvNetwork, fresh: ConvNetwork) -> None:
    """Replaces the weights of the decoder by those of `fresh`, a new network of the same sizes."""
    new = fresh.state_dict()
    network.load_state_dict(
        {
            name: new[name] if name.startswith(network.decoder_prefixes) else value
            for name, value in network.state_dict().items()
        }
    )


def check_halvings(image_size: tuple[int, ...], stride: int | tuple[int, ...], name: str) -> None:
    """Raises InputError if a network with this largest stride, or one for each axis, does not fit the image size."""
    strides = (stride,) * len(image_size) if isinstance(stride, int) else stride
    fits = not any(length % step for length, step in zip(image_size, strides, strict=True))
    if fits and math.prod(image_size) > math.prod(strides):
        return
    if len(set(strides)) > 1:
        raise InputError(
            f"image size {by(image_size)} does not fit {name}, whose coarsest pixel covers {by(strides)}: choose "
            f"multiples of these numbers, at least one of them larger."
        )
    step = strides[0]
    halvings = {8: "three", 16: "four", 32: "five"}.get(step, f"{step.bit_length() - 1}")
    raise InputError(
        f"image size {by(image_size)} does not fit {name}, which halves it {halvings} times: choose multiples "
        f"of {step} such as {4 * step}, at least one of them above {step}."
    )

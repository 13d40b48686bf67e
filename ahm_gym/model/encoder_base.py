"""The interface of encoders of every architecture.

A new architecture is a module with its network (registered with `as_encoder`), its autoencoder, `build` and `load`,
and a line in `ARCHITECTURES`.
"""

from __future__ import annotations

import json
from functools import singledispatch
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ahm_gym.errors import InputError

ARCHITECTURES: dict[str, str] = {
    "unet": "ahm_gym.model.unet",
    "resenc": "ahm_gym.model.resenc",
    "tiny_conv": "ahm_gym.model.conv_stem",
    "raw_patches": "ahm_gym.model.raw_patches",
}
"""Modules of the models that do not come from timm, by name.

`build(seed, ...)` returns an autoencoder, `load(folder, ...)` an exported encoder. The modules are imported only when
they are needed, because importing MONAI takes a second.
"""
NUM_MAPS: int = 4
"""Number of feature maps of an encoder without a decoder of its own."""


@runtime_checkable
class Encoder(Protocol):
    """The interface through which the probe, the segmenter, mask policies and exports use an encoder.

    `as_encoder` returns it for a network. The network itself stays as timm or MONAI define it: `autoencoder.encoder`
    keeps their methods and the names of their weights.
    """

    image_size: tuple[int, ...]
    """Length of each axis in pixels: height and width, or depth, height and width."""
    patch_size: int
    """Side of a patch in pixels."""
    channels: int
    """Number of image channels."""
    width: int
    """Number of channels of a feature map."""
    has_decoder: bool
    """Whether the network itself returns to full resolution, so that a segmenter only adds a head."""

    def patch_features(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """One feature vector per patch, in reading order."""
        ...

    def feature_maps(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B D *s"]]:
        """`NUM_MAPS` maps with one position a patch, the shallowest first; with a decoder, one of the image size."""
        ...

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of trainable parameters for an optimiser; `lr_scale` multiplies the learning rate (default: 1)."""
        ...

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes the weights, and a `config.json` for `find_encoder` that includes the `statistics` of the images."""
        ...


@singledispatch
def as_encoder(network: nn.Module) -> Encoder:
    """The network as an `Encoder`.

    Raises:
        InputError: if the class of the network is not registered.
    """
    raise InputError(
        f"{type(network).__name__} is not a known encoder: use timm's plain VisionTransformer or a U-Net, or register "
        "the class with as_encoder (ahm_gym/model/encoder_base.py)."
    )


def write_description(
    encoder: Encoder, kind: str, folder: Path, statistics: dict[str, tuple[float, ...]], **sizes: Any
) -> None:
    """Writes the `config.json` of an exported encoder, in the layout of timm's exports; creates the folder.

    Args:
        encoder: encoder to describe.
        kind: its name in `ARCHITECTURES`.
        folder: folder of the export.
        statistics: mean and standard deviation of the images.
        sizes: further arguments that its network is built with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"img_size": encoder.image_size, "patch_size": encoder.patch_size, "in_chans": encoder.channels}
    config = {
        "kind": kind,
        "architecture": kind,
        "model_args": {**shape, **sizes},
        "pretrained_cfg": statistics,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

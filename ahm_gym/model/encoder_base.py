"""What every encoder offers, whatever its architecture.

A new architecture is one module with its network (registered with `as_encoder`), its autoencoder, `build` and
`load`, and a line in `ARCHITECTURES`.
"""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ahm_gym.errors import InputError

ARCHITECTURES = {"unet": "ahm_gym.model.unet"}
"""Modules of the models that are not timm's, by name: `build(seed, ...)` returns an autoencoder, `load(folder, ...)` an
exported encoder. They are imported when needed: MONAI takes a second."""
NUM_MAPS = 4
"""Feature maps of an encoder without a decoder of its own."""


@runtime_checkable
class Encoder(Protocol):
    """What the probe, the segmenter, mask policies and exports use of an encoder.

    `as_encoder` returns it for a network. The network itself stays what timm or MONAI define: `autoencoder.encoder`
    has their names of weights and their methods.
    """

    image_size: tuple[int, int]
    """Height and width in pixels."""
    patch_size: int
    """Side of a patch in pixels."""
    channels: int
    """Of the images."""
    width: int
    """Channels of a feature map."""
    has_decoder: bool
    """Whether the network itself returns to full resolution, so that a segmenter only adds a head."""

    def patch_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """One feature vector a patch, in reading order."""
        ...

    def feature_maps(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """`NUM_MAPS` maps with one value a patch, the shallowest first; one map of the image's size with a decoder."""
        ...

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of trained parameters for an optimiser; `lr_scale`, default: 1, multiplies the learning rate."""
        ...

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes the weights and a `config.json` that `find_encoder` reads; `statistics` of the images go into it."""
        ...


@singledispatch
def as_encoder(network: nn.Module) -> Encoder:
    """The network as an `Encoder`.

    Raises:
        InputError: for a network of a class that is not registered.
    """
    raise InputError(
        f"{type(network).__name__} is not a known encoder: use timm's plain VisionTransformer or a U-Net, or register "
        "the class with as_encoder (ahm_gym/model/encoder_base.py)."
    )

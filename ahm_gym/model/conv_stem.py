"""A vision transformer with a convolutional stem, which sees each patch alone, and its masked autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ahm_gym._compat  # noqa: F401

import safetensors.torch
import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d, PatchEmbed, resample_abs_pos_embed
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ahm_gym.errors import InputError
from ahm_gym.model.encoder_base import as_encoder, write_description
from ahm_gym.model.patches import grid_of, patchify
from ahm_gym.model.vit import MaskedAutoencoder
from ahm_gym.model.vit_encoder import ViTEncoder

KIND: str = "tiny_conv"
"""Its name in `ARCHITECTURES`."""
SIZES: dict[str, Any] = {"embed_dim": 128, "depth": 5, "num_heads": 4}
"""Width, blocks and heads: those of tiny, with a block less, which costs about as much as the stem."""
FIRST_CONVOLUTION: str = "patch_embed.proj.0.weight"
"""Name of its weights."""
LEAST_WIDTH: int = 8
"""Least number of channels of a convolution."""


class ConvStem(PatchEmbed):
    """Embeds each patch by convolutions of 3x3 pixels that halve it until one pixel is left.

    Each is followed by a LayerNorm over the channels and a GELU, and doubles the channels; a convolution of one pixel
    ends the stem. After "Early Convolutions Help Transformers See Better" (Xiao et al., NeurIPS 2021). Unlike there,
    the patches are padded at their borders one by one, so that no pixel reaches the token of another patch, and the
    norm is no batch norm, whose statistics would join the patches.

    Raises:
        InputError: if the patch size is not a power of two, or below 2.
    """

    def __init__(self, *, patch_size: int, in_chans: int, embed_dim: int, **options: Any) -> None:
        halvings = patch_size.bit_length() - 1
        if halvings < 1 or 2**halvings != patch_size:
            raise InputError(
                f"`model={KIND}` halves a patch down to one pixel, and `patch_size` is {patch_size}: choose a power "
                "of two, such as 8."
            )
        super().__init__(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, **options)
        self.side: int = patch_size
        layers: list[nn.Module] = []
        inputs = in_chans
        for halving in reversed(range(halvings)):
            width = max(embed_dim >> halving, LEAST_WIDTH)
            layers += [nn.Conv2d(inputs, width, 3, 2, 1), LayerNorm2d(width), nn.GELU()]
            inputs = width
        self.proj: nn.Sequential = nn.Sequential(*layers, nn.Conv2d(inputs, embed_dim, 1))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        return self.embed(patchify(images, self.side))

    def embed(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N D"]:
        """The tokens of these patches, which `patchify` returned."""
        pixels = patches.flatten(0, 1).unflatten(1, (self.side, self.side, -1))  # one small image per patch
        return self.proj(pixels.permute(0, 3, 1, 2)).reshape(patches.shape[0], patches.shape[1], -1)


class ConvStemTransformer(VisionTransformer):
    """timm's plain vision transformer with a `ConvStem` as its patch embedding, and without a head.

    Args:
        image_size: height and width in pixels.
        patch_size: side of a patch in pixels, a power of two.
        channels: number of image channels.

    Raises:
        InputError: if the patch size does not divide the image size, or is not a power of two, or there is a third
            axis.
    """

    def __init__(self, *, image_size: tuple[int, ...], patch_size: int, channels: int) -> None:
        if len(image_size) != 2:
            raise InputError(
                f"`model={KIND}` knows images and no volumes: choose tiny, small, base, unet or resenc."
            )
        grid_of(image_size, patch_size)
        super().__init__(
            img_size=(image_size[0], image_size[1]),
            patch_size=patch_size,
            in_chans=channels,
            num_classes=0,
            global_pool="",
            fc_norm=False,
            embed_layer=ConvStem,
            **SIZES,
        )


class ConvStemEncoder(ViTEncoder):
    """A `ConvStemTransformer` as an `Encoder`."""

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes `model.safetensors` and `config.json` for `load_encoder`; timm has no such model."""
        write_description(self, KIND, folder, statistics, **SIZES)
        weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")


as_encoder.register(ConvStemTransformer, ConvStemEncoder)


class ConvStemAutoencoder(MaskedAutoencoder):
    """The masked autoencoder of a `ConvStemTransformer`: hidden patches never enter the stem."""

    takes_published: bool = False

    def _project(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N D"]:
        stem = self.encoder.patch_embed
        assert isinstance(stem, ConvStem)
        return stem.embed(patches)


def build(seed: int = 0, **options: Any) -> ConvStemAutoencoder:
    """A newly initialised autoencoder; the global generator is not changed."""
    shape = {name: options.pop(name) for name in ("image_size", "patch_size", "channels")}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ConvStemAutoencoder(ConvStemTransformer(**shape), **options)


def load(folder: Path, *, image_size: tuple[int, ...], patch_size: int, channels: int) -> ConvStemTransformer:
    """Loads an exported encoder; position embedding and first convolution are converted if size or channels differ.

    Raises:
        InputError: if the patch size differs, which a convolutional stem cannot follow.
    """
    arguments = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_args"]
    if arguments["patch_size"] != patch_size:
        raise InputError(
            f"`patch_size` is {patch_size} and the convolutional stem in {folder} is made for patches of "
            f"{arguments['patch_size']} pixels: leave `patch_size` out, or choose another encoder."
        )
    network = ConvStemTransformer(image_size=image_size, patch_size=patch_size, channels=channels)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    first = weights[FIRST_CONVOLUTION]
    if first.shape[1] != channels:
        weights[FIRST_CONVOLUTION] = adapt_input_conv(channels, first, base_chans=first.shape[1])
    weights["pos_embed"] = resample_abs_pos_embed(
        weights["pos_embed"],
        new_size=list(grid_of(image_size, patch_size)),
        old_size=list(grid_of(tuple(arguments["img_size"]), patch_size)),
        num_prefix_tokens=network.num_prefix_tokens,
    )
    network.load_state_dict(weights)
    return network

"""The vision transformer as an encoder: timm's own, by preset or name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor

from ahm_gym.errors import InputError, unknown_name
from ahm_gym.model.encoder_base import ARCHITECTURES, NUM_MAPS, as_encoder
from ahm_gym.model.patches import grid_of

LAYER_DECAY = 0.75
"""Learning rate of a block as a share of the one after it, in fine-tuning."""


@dataclass(frozen=True)
class Preset:
    """An encoder by its timm name, and the decoder that goes with it."""

    name: str
    encoder: dict[str, Any]
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int


PRESETS = {
    "tiny": Preset("vit_tiny_patch16_224", {"embed_dim": 128, "depth": 6, "num_heads": 4}, 64, 2, 4),
    "small": Preset("vit_small_patch16_224", {}, 192, 4, 6),
    "base": Preset("vit_base_patch16_224", {}, 512, 8, 16),
}


class ViTEncoder:
    """timm's plain vision transformer as an `Encoder`; holds the network, and adds no weights."""

    has_decoder = False

    def __init__(self, network: VisionTransformer) -> None:
        (rows, columns), patch_size = network.patch_embed.grid_size, network.patch_embed.patch_size[0]
        self.network = network
        self.image_size: tuple[int, int] = (rows * patch_size, columns * patch_size)
        self.patch_size: int = patch_size
        self.channels: int = network.patch_embed.proj.in_channels
        self.width: int = network.embed_dim

    def patch_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """The normed patch tokens of the last block."""
        return self.network.forward_features(images)[:, self.network.num_prefix_tokens :]

    def feature_maps(self, images: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """The normed patch tokens of four depths."""
        depths = feature_depths(len(self.network.feature_info))
        taken = sorted(set(depths))
        maps: Any = self.network.forward_intermediates(
            images, indices=taken, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return [maps[taken.index(depth)] for depth in depths]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Learning rates decay from the last block down to the patch embedding."""
        return param_groups_layer_decay(
            self.network,
            weight_decay=weight_decay,
            no_weight_decay_list=self.network.no_weight_decay(),
            layer_decay=LAYER_DECAY,
        )

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes what `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""
        save_for_hf(self.network, str(folder), safe_serialization=True, data_config=statistics)


as_encoder.register(VisionTransformer, ViTEncoder)


def feature_depths(num_blocks: int) -> list[int]:
    """Indices of the blocks whose outputs are the feature maps: evenly spaced, the last block included."""
    return [max(round(num_blocks * (part + 1) / NUM_MAPS), 1) - 1 for part in range(NUM_MAPS)]


def build_encoder(
    model: str = "tiny", *, image_size: tuple[int, int] = (64, 64), patch_size: int = 8, channels: int = 1
) -> VisionTransformer:
    """timm's vision transformer of that name or preset, untrained, without a head.

    Raises:
        InputError: for a name that timm does not know or that is not a plain vision transformer.
    """
    grid_of(image_size, patch_size)
    preset = PRESETS.get(model, Preset(model, {}, 0, 0, 0))
    plain = [name for module in ("vision_transformer", "deit") for name in timm.list_models(module=module)]
    if not timm.is_model(preset.name):
        raise unknown_name("model", model, [*PRESETS, *ARCHITECTURES], unlisted=plain)
    refusal = InputError(
        f"model {model!r} is not one of timm's plain vision transformers: choose tiny, small, base or a name such "
        "as vit_small_patch16_224."
    )
    if preset.name not in plain:
        raise refusal
    encoder = timm.create_model(
        preset.name,
        img_size=image_size,
        patch_size=patch_size,
        in_chans=channels,
        num_classes=0,
        fc_norm=False,
        global_pool="",
        **preset.encoder,
    )
    if type(encoder) is not VisionTransformer or not isinstance(encoder.patch_embed, PatchEmbed):
        raise refusal
    return encoder


def load(folder: Path, *, image_size: tuple[int, int], patch_size: int, channels: int) -> VisionTransformer:
    """An exported vision transformer; position and patch embedding are resampled where the sizes differ.

    Raises:
        InputError: where it is another of timm's models.
    """
    encoder = timm.create_model(
        f"local-dir:{folder}",
        pretrained=True,
        num_classes=0,
        img_size=image_size,
        patch_size=patch_size,
        in_chans=channels,
    )
    if type(encoder) is not VisionTransformer:
        raise InputError(
            f"the encoder in {folder} cannot be used: expected timm's plain VisionTransformer, not "
            f"{type(encoder).__name__}."
        )
    return encoder

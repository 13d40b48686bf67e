"""timm's plain vision transformers as encoders, by preset or by name."""

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
from ahm_gym.model.volume_vit import export_volume_transformer, volume_transformer

LAYER_DECAY: float = 0.75
"""Learning rate of a block in fine-tuning, as a share of that of the next block."""


@dataclass(frozen=True)
class Preset:
    """A vision transformer of timm, and the decoder for its pretraining."""

    name: str
    """timm's name of the encoder."""
    encoder: dict[str, Any]
    """Keyword arguments for timm that change its size."""
    decoder_dim: int
    """Width of the decoder."""
    decoder_depth: int
    """Number of blocks of the decoder."""
    decoder_heads: int
    """Number of attention heads in each block of the decoder."""


WIDTHS: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 128, "depth": 6, "num_heads": 4},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}
"""What timm's names stand for, for volumes, which timm has no names for."""

PRESETS: dict[str, Preset] = {
    "tiny": Preset("vit_tiny_patch16_224", WIDTHS["tiny"], 64, 2, 4),
    "small": Preset("vit_small_patch16_224", {}, 192, 4, 6),
    "base": Preset("vit_base_patch16_224", {}, 512, 8, 16),
}


class ViTEncoder:
    """timm's plain vision transformer as an `Encoder`: it wraps the network and adds no weights."""

    has_decoder: bool = False

    def __init__(self, network: VisionTransformer) -> None:
        grid, patch_size = network.patch_embed.grid_size, network.patch_embed.patch_size[0]
        self.network: VisionTransformer = network
        self.grid: tuple[int, ...] = tuple(grid)
        self.image_size: tuple[int, ...] = tuple(length * patch_size for length in grid)
        self.patch_size: int = patch_size
        self.channels: int = network.in_chans
        self.width: int = network.embed_dim

    def patch_features(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """The patch tokens of the last block, after the final LayerNorm."""
        return self.network.forward_features(images)[:, self.network.num_prefix_tokens :]

    def feature_maps(self, images: Float[Tensor, "B C *S"]) -> list[Float[Tensor, "B D *s"]]:
        """The patch tokens at `NUM_MAPS` depths, after the final LayerNorm."""
        depths = feature_depths(len(self.network.feature_info))
        taken = sorted(set(depths))
        if len(self.grid) == 3:  # timm's method knows images only
            found = self._tokens_at(taken, images)
            return [found[depth].transpose(1, 2).unflatten(2, self.grid) for depth in depths]
        maps: Any = self.network.forward_intermediates(
            images, indices=taken, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return [maps[taken.index(depth)] for depth in depths]

    def _tokens_at(
        self, depths: list[int], images: Float[Tensor, "B C *S"]
    ) -> dict[int, Float[Tensor, "B L D"]]:
        """The patch tokens after some blocks and the final LayerNorm, by the number of the block."""
        network, found = self.network, {}
        tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
        blocks: Any = network.blocks
        for depth, block in enumerate(blocks):
            tokens = block(tokens)
            if depth in depths:
                found[depth] = network.norm(tokens)[:, network.num_prefix_tokens :]
        return found

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Groups whose learning rates decay from the last block down to the patch embedding."""
        return param_groups_layer_decay(
            self.network,
            weight_decay=weight_decay,
            no_weight_decay_list=self.network.no_weight_decay(),
            layer_decay=LAYER_DECAY,
        )

    def export(self, folder: Path, statistics: dict[str, tuple[float, ...]]) -> None:
        """Writes a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

        For volumes timm also needs `import ahm_gym.model.volume_vit`.
        """
        if len(self.grid) == 3:
            export_volume_transformer(self.network, folder, statistics)
            return
        save_for_hf(self.network, str(folder), safe_serialization=True, data_config=statistics)


as_encoder.register(VisionTransformer, ViTEncoder)


def feature_depths(num_blocks: int) -> list[int]:
    """Indices of the blocks that yield the feature maps: evenly spaced, up to the last block."""
    return [max(round(num_blocks * (part + 1) / NUM_MAPS), 1) - 1 for part in range(NUM_MAPS)]


def build_encoder(
    model: str = "tiny", *, image_size: tuple[int, ...] = (64, 64), patch_size: int = 8, channels: int = 1
) -> VisionTransformer:
    """An untrained vision transformer of timm without a head, by preset or by timm's name.

    Raises:
        InputError: if timm does not know the name, or it is not a plain vision transformer.
    """
    grid_of(image_size, patch_size)
    if len(image_size) == 3:
        return build_volume_encoder(model, image_size=image_size, patch_size=patch_size, channels=channels)
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


def build_volume_encoder(
    model: str, *, image_size: tuple[int, ...], patch_size: int, channels: int
) -> VisionTransformer:
    """An untrained vision transformer of timm for volumes; see `volume_transformer`.

    Raises:
        InputError: if the model is no preset, or the patch size does not divide the image size.
    """
    if model not in PRESETS:
        raise InputError(f"model {model!r} has no form for volumes: choose {', '.join(PRESETS)}.")
    widths: dict[str, Any] = WIDTHS[model]
    return volume_transformer(volume_size=image_size, patch_size=patch_size, in_chans=channels, **widths)


def load(folder: Path, *, image_size: tuple[int, ...], patch_size: int, channels: int) -> VisionTransformer:
    """Loads an exported vision transformer; position and patch embedding are resampled if the sizes differ.

    Raises:
        InputError: if the folder holds another kind of model.
    """
    size: dict[str, Any] = {"volume_size" if len(image_size) == 3 else "img_size": image_size}
    encoder = timm.create_model(
        f"local-dir:{folder}",
        pretrained=True,
        num_classes=0,
        **size,
        patch_size=patch_size,
        in_chans=channels,
    )
    if type(encoder) is not VisionTransformer:
        raise InputError(
            f"the encoder in {folder} cannot be used: expected timm's plain VisionTransformer, not "
            f"{type(encoder).__name__}."
        )
    return encoder

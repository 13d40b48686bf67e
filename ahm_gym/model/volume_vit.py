"""Vision transformers for volumes, in a form that timm can load: importing this module tells timm their name.

After `import ahm_gym.model.volume_vit`, `timm.create_model("local-dir:RUN_DIR/encoder", pretrained=True)` loads the
encoder of a run that was pretrained on volumes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ahm_gym.model.patch_embed3d import PatchEmbed3d
from ahm_gym.model.patches import grid_of
from ahm_gym.model.resampling import adapt_channels, resample_kernel, resample_positions

NAME: str = "ahm_vit3d"
"""timm's name of the model."""
NORM_EPS: float = 1e-6
"""Epsilon of every LayerNorm, unless another is given."""
STEM: str = "patch_embed.proj.weight"
"""Name of the weights of the patch embedding."""


def volume_transformer(
    *,
    volume_size: tuple[int, ...] | list[int],
    patch_size: int,
    in_chans: int = 1,
    num_classes: int = 0,
    global_pool: str = "",
    norm_eps: float = NORM_EPS,
    **sizes: Any,
) -> VisionTransformer:
    """timm's plain vision transformer for volumes, without a class token, so that MONAI's can take its weights.

    Args:
        volume_size: depth, height and width in voxels. timm would take a setting called `img_size` for rows and
            columns.
        patch_size: side of a patch in voxels.
        in_chans: number of channels.
        num_classes: number of outputs of a head; 0 for none.
        global_pool: how a head pools the patches, such as avg; empty: not at all.
        norm_eps: epsilon of every LayerNorm.
        sizes: `embed_dim`, `depth`, `num_heads` and other arguments of timm's `VisionTransformer`.

    Raises:
        InputError: if the patch size does not divide the size of the volume.
    """
    build: Any = VisionTransformer
    network: VisionTransformer = build(
        img_size=tuple(volume_size),
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        global_pool=global_pool,
        class_token=False,
        embed_layer=PatchEmbed3d,
        **({"fc_norm": False} | sizes),  # the pretrained norm stays also before a head
    )
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norm_eps
    return network


@register_model
def ahm_vit3d(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """The entry point that timm calls; `options` are those of `volume_transformer`, and timm's own."""
    return build_model_with_cfg(
        volume_transformer, NAME, pretrained, pretrained_filter_fn=fitted_weights, **options
    )


def fitted_weights(weights: dict[str, Tensor], network: VisionTransformer) -> dict[str, Tensor]:
    """Weights of another size, patch size or number of channels, converted to those of the network."""
    embedder, fitted = network.patch_embed, dict(weights)
    if (stem := weights.get(STEM)) is None or stem.ndim != 5:
        return fitted
    fitted[STEM] = resample_kernel(adapt_channels(stem, network.in_chans), embedder.patch_size[0])
    size = getattr(network, "pretrained_model_args", {}).get("volume_size")  # timm keeps those of the folder
    if size is not None and "pos_embed" in weights:
        old = grid_of(tuple(size), stem.shape[-1])
        fitted["pos_embed"] = resample_positions(weights["pos_embed"], old, tuple(embedder.grid_size))
    return fitted


def arguments_of(network: VisionTransformer) -> dict[str, Any]:
    """The arguments with which `volume_transformer` builds this network."""
    grid, side = network.patch_embed.grid_size, network.patch_embed.patch_size[0]
    blocks: Any = network.blocks
    norm: Any = network.norm
    return {
        "volume_size": [length * side for length in grid],
        "patch_size": side,
        "in_chans": network.in_chans,
        "embed_dim": network.embed_dim,
        "depth": len(blocks),
        "num_heads": blocks[0].attn.num_heads,
        "norm_eps": norm.eps,
    }


def export_volume_transformer(
    network: VisionTransformer, folder: Path, statistics: dict[str, tuple[float, ...]]
) -> None:
    """Writes `model.safetensors` and `config.json` in the layout of timm's exports, which timm writes for images only.

    Args:
        network: what `volume_transformer` returned.
        folder: folder to write to; created if it is missing.
        statistics: mean and standard deviation of the volumes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": NAME,
        "num_classes": 0,
        "num_features": network.num_features,
        "pretrained_cfg": {**statistics, "classifier": "head"},
        "model_args": arguments_of(network),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")

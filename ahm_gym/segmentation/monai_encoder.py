"""A pretrained encoder as a folder from which MONAI builds its own network and loads the weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import ahm_gym._compat  # noqa: F401

import monai.networks.nets
import safetensors.torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ahm_gym.errors import InputError, RunError
from ahm_gym.model.conv_network import LAYERS
from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.unet import UNet
from ahm_gym.model.volume_vit import arguments_of

RENAMED: dict[str, str] = {
    "patch_embed.proj.": "patch_embedding.patch_embeddings.",
    "pos_embed": "patch_embedding.position_embeddings",
    ".attn.proj.": ".attn.out_proj.",
    ".mlp.fc": ".mlp.linear",
}
"""Parts of the names of timm's weights, and what they are called in MONAI."""

NEW: str = r"^final_conv\.|cross_attn"
"""The weights that only MONAI has: the head of a U-Net, and, depending on the version, norms that a ViT never uses."""


class MonaiEncoder(NamedTuple):
    """An encoder in MONAI's terms."""

    definition: dict[str, Any]
    """`_target_` and arguments, from which MONAI's `ConfigParser` builds the network."""
    weights: dict[str, Tensor]
    """The weights under MONAI's names."""
    norm_eps: float | None
    """Epsilon of every LayerNorm, which differs from MONAI's; None if there is none."""

    @property
    def needs_einops(self) -> bool:
        """Whether MONAI builds this network only where einops is installed."""
        return self.norm_eps is not None

    def build(self) -> nn.Module:
        """The network with its weights; a U-Net also has a new `final_conv`.

        Raises:
            RunError: if this version of MONAI has a network with other weights.
        """
        arguments = {name: value for name, value in self.definition.items() if name != "_target_"}
        network = getattr(monai.networks.nets, self.definition["_target_"].rpartition(".")[2])(**arguments)
        for module in network.modules():
            if isinstance(module, nn.LayerNorm) and self.norm_eps is not None:
                module.eps = self.norm_eps
        left = network.load_state_dict(self.weights, strict=False)
        if wrong := [*left.unexpected_keys, *(key for key in left.missing_keys if not re.search(NEW, key))]:
            raise RunError(f"this version of MONAI has other weights, such as {wrong[0]}: not written.")
        return network.eval()


def as_monai(network: nn.Module, run: Path) -> MonaiEncoder:
    """The encoder of a pretraining run, for MONAI's ViT or BasicUNet.

    Raises:
        InputError: if MONAI has no such network.
    """
    if isinstance(network, VisionTransformer) and len(as_encoder(network).image_size) == 3:
        return _transformer(network)
    if isinstance(network, UNet):
        definition = {
            "_target_": "monai.networks.nets.BasicUNet",
            "spatial_dims": len(network.image_size),
            "in_channels": network.channels,
            "out_channels": 2,
            "features": list(network.features),
        }
        return MonaiEncoder(definition, network.state_dict(), None)
    raise InputError(
        f"`format=monai` is for segmenters, U-Nets of `model=unet` and transformers for volumes, and {run} pretrained "
        "another encoder, which MONAI does not have: choose another `format`."
    )


def _transformer(network: VisionTransformer) -> MonaiEncoder:
    sizes = arguments_of(network)
    blocks: Any = network.blocks
    definition = {
        "_target_": "monai.networks.nets.ViT",
        "in_channels": sizes["in_chans"],
        "img_size": sizes["volume_size"],
        "patch_size": sizes["patch_size"],
        "hidden_size": sizes["embed_dim"],
        "mlp_dim": blocks[0].mlp.fc1.out_features,
        "num_layers": sizes["depth"],
        "num_heads": sizes["num_heads"],
        "proj_type": "conv",
        "pos_embed_type": "learnable",
        "spatial_dims": 3,
        "qkv_bias": True,
    }
    weights = {}
    for name, value in network.state_dict().items():
        for timm, monais in RENAMED.items():
            name = name.replace(timm, monais)
        weights[name] = value
    return MonaiEncoder(definition, weights, sizes["norm_eps"])


def patch_features(
    built: nn.Module, volumes: Float[Tensor, "B C *S"], patch_size: int
) -> Float[Tensor, "B L D"]:
    """The features of each patch by a network that `MonaiEncoder.build` returned; `volumes` are normalised."""
    if isinstance(built, monai.networks.nets.ViT):
        return built(volumes)[0]
    built.final_conv = nn.Identity()
    pool = LAYERS[volumes.dim() - 2].average(patch_size)
    return pool(built(volumes)).flatten(2).transpose(1, 2)


def write_monai_encoder(
    folder: Path, encoder: MonaiEncoder, run: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Writes the weights, what MONAI builds the network from, and a page of text into an empty folder.

    Args:
        folder: where to write.
        encoder: the encoder in MONAI's terms.
        run: name of the run.
        mean: mean of each channel of the training images.
        std: standard deviation of each channel.
    """
    config = {"network_def": encoder.definition, "norm_eps": encoder.norm_eps, "mean": mean, "std": std}
    (folder / "network.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.contiguous() for name, value in encoder.weights.items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "README.md").write_text(_page(encoder, run), encoding="utf-8")


def _page(encoder: MonaiEncoder, run: str) -> str:
    load = OF_TRANSFORMER if encoder.needs_einops else OF_UNET
    packages = "monai, einops and safetensors" if encoder.needs_einops else "monai and safetensors"
    return f"""# {run}

An encoder that ahm-gym pretrained in the run {run}, for `{encoder.definition["_target_"]}`; it needs {packages}.

```python
import torch
from monai.bundle import ConfigParser
from safetensors.torch import load_file

parser = ConfigParser()
parser.read_config("network.json")
network = parser.get_parsed_content("network_def")
{load}```

Each of the `images` (B, C, ...) is clipped at its 0.5 and 99.5 percentiles over all channels, and scaled to 0 to 1.
From each channel the mean is then taken off, and it is divided by the standard deviation; both are in `network.json`.
"""


OF_TRANSFORMER: str = """for module in network.modules():
    if isinstance(module, torch.nn.LayerNorm):
        module.eps = parser["norm_eps"]  # MONAI has another
left = network.load_state_dict(load_file("model.safetensors"), strict=False)
assert all("cross_attn" in key for key in left.missing_keys) and not left.unexpected_keys  # a ViT never uses these
features, maps = network.eval()(images)  # features (B, L, D): one vector for each patch, in reading order
"""
OF_UNET: str = """left = network.load_state_dict(load_file("model.safetensors"), strict=False)
assert all("final_conv" in key for key in left.missing_keys) and not left.unexpected_keys  # the head is new
"""

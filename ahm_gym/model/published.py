"""Loads published weights, and those of other runs, into an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from ahm_gym.errors import InputError
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.resampling import adapt_channels
from ahm_gym.model.vit import OUTSIDE_ENCODER, MaskedAutoencoder
from ahm_gym.model.volume_vit import STEM, fitted_weights
from ahm_gym.runs.folder import RunFolder, resume_flags
from ahm_gym.runs.schema import Schema, checked
from ahm_gym.runs.storage import check_loaded


class PretrainerState(Schema):
    """The part of a checkpoint that `Pretrainer.state_dict` returns."""

    autoencoder: dict[str, Tensor]
    optimizer: dict[str, Any]
    updates: int


class PretrainState(Schema):
    """The state in a checkpoint of a pretraining run."""

    pretrainer: PretrainerState
    agent: dict[str, Any]
    env: dict[str, Any] | None
    sums: dict[str, Any]
    counts: dict[str, int]


@dataclass
class LoadReport:
    """Which weights of a published checkpoint were used, by name."""

    matched: list[str] = field(default_factory=list)
    """Copied as they are."""
    resized: list[str] = field(default_factory=list)
    """Converted to another size."""
    left_out: list[str] = field(default_factory=list)
    """In the checkpoint, but not used."""
    missing: list[str] = field(default_factory=list)
    """Not in the checkpoint: the autoencoder keeps its initial values."""

    def __str__(self) -> str:
        lines = [
            f"{len(self.matched)} tensors matched, {len(self.resized)} resized, "
            f"{len(self.left_out)} left out, {len(self.missing)} keep their initial values"
        ]
        for title in ("resized", "left_out", "missing"):
            names = getattr(self, title)
            if names:
                lines.append(f"  {title.replace('_', ' ')}: {', '.join(names)}")
        return "\n".join(lines)


def load_published(autoencoder: Autoencoder, path: Path) -> LoadReport:
    """Copies the weights of `path` into the autoencoder and reports which matched, were resized or left out.

    Accepts MAE checkpoints and timm's vision transformers (`.pth`, `.pt` or `.safetensors`). Weights for another
    image size, patch size or number of channels are converted with timm.

    Raises:
        InputError: if the autoencoder is a U-Net or has a convolutional stem, the file is missing or unreadable, its
            weights are for images and the autoencoder for volumes, or the reverse, or no encoder weight fits.
    """
    if not isinstance(autoencoder, MaskedAutoencoder):
        raise InputError(
            f"`init={path}` holds a vision transformer, and a U-Net cannot use published weights: leave `init` out, or "
            "choose another `model`."
        )
    if not autoencoder.takes_published:
        raise InputError(
            f"`init={path}` holds a vision transformer, and published weights do not fit one with a convolutional "
            "stem: leave `init` out, or choose another `model`."
        )
    published = read_weights(path)
    _check_axes(autoencoder, published, path)
    weights = autoencoder.state_dict()
    own = {key: value for key, value in weights.items() if not key.startswith("latent.teacher.")}
    encoder_keys = {key for key in own if not key.startswith(OUTSIDE_ENCODER)}
    encoder = _fit_encoder(autoencoder, {key: published[key] for key in published if key in encoder_keys})
    fitted = encoder | {key: published[key] for key in published if key in own and key not in encoder_keys}
    _fit_decoder_positions(autoencoder, fitted)

    report = LoadReport()
    for key, value in published.items():
        if key not in own or fitted[key].shape != own[key].shape:
            report.left_out.append(key)
        elif fitted[key].shape == value.shape and torch.equal(fitted[key], value):
            report.matched.append(key)
        else:
            report.resized.append(key)
    taken = {key: fitted[key] for key in report.matched + report.resized}
    report.missing = [key for key in own if key not in taken]
    if not any(key.startswith("blocks.") for key in taken):
        raise InputError(
            f"{path} does not fit this model: none of its {len(published)} tensors matches a block of the encoder; "
            "choose the `model` that the checkpoint was made with."
        )
    autoencoder.load_state_dict(weights | taken)
    if autoencoder.latent is not None:
        autoencoder.latent.restart()
    return report


def load_autoencoder(autoencoder: Autoencoder, run: Path) -> None:
    """Copies the weights of a pretraining run's last checkpoint into the autoencoder.

    Raises:
        InputError: if the folder is not a pretraining run, has no checkpoint, or trained another autoencoder.
    """
    folder = RunFolder.open(run, "pretrain")
    found = folder.read_checkpoint()
    if found is None:
        raise InputError(f"{run} has no checkpoint yet: resume it with pretrain {resume_flags(run)}.")
    own = {name: getattr(autoencoder, name) for name in ("image_size", "patch_size", "channels")}
    own["target"] = autoencoder.target.name
    # Runs of older versions have another name for the target.
    older = "normalised" if folder.config.get("normalise_target") else "pixels"
    saved = {"target": older} | {name: folder.config[name] for name in own if name in folder.config}
    saved["image_size"] = tuple(saved.get("image_size") or ())
    weights = checked(PretrainState, found[1], run / "checkpoint").pretrainer.autoencoder
    check_loaded(weights, run)
    shapes = ({name: value.shape for name, value in w.items()} for w in (weights, autoencoder.state_dict()))
    if own != saved or next(shapes) != next(shapes):
        raise InputError(
            f"the autoencoder of {run} (`model={folder.config.get('model')}`, {_plain(saved)}) differs from that of "
            f"this run ({_plain(own)}): choose the same `model` and sizes."
        )
    autoencoder.load_state_dict(weights)


def _plain(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name; only tensors are unpickled.

    Raises:
        InputError: if the file is missing, cannot be read or holds no tensors.
    """
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"checkpoint {path} {wrong}: give a .safetensors, .pth or .pt file.")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): give a .safetensors file or a .pth file "
            "that holds tensors only."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = (
        {str(key).removeprefix("module."): value for key, value in content.items()}
        if isinstance(content, dict)
        else {}
    )
    weights = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not weights:
        raise InputError(f"checkpoint {path} holds no tensors: give a file with a model's state dict.")
    check_loaded(weights, path)
    return weights


def _check_axes(autoencoder: MaskedAutoencoder, weights: dict[str, Tensor], path: Path) -> None:
    stem, axes = weights.get(STEM), len(autoencoder.grid)
    if stem is not None and stem.ndim in (4, 5) and stem.ndim != axes + 2:
        theirs, own = ("images", "volumes") if axes == 3 else ("volumes", "images")
        raise InputError(
            f"`init={path}` holds weights for {theirs}, and this run is on {own}: leave `init` out."
        )


def _fit_encoder(autoencoder: MaskedAutoencoder, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if len(autoencoder.grid) == 3:
        return fitted_weights(weights, autoencoder.encoder)
    weights = dict(weights)
    stem = weights.get(STEM)
    if stem is not None and stem.ndim == 4:
        weights[STEM] = adapt_channels(stem, autoencoder.channels)
    return checkpoint_filter_fn(weights, autoencoder.encoder)


def _fit_decoder_positions(autoencoder: MaskedAutoencoder, weights: dict[str, Tensor]) -> None:
    position = weights.get("decoder_pos_embed")
    if position is None or position.shape[1] == autoencoder.decoder_pos_embed.shape[1]:
        return
    weights["decoder_pos_embed"] = resample_abs_pos_embed(
        position, new_size=list(autoencoder.grid), num_prefix_tokens=autoencoder.num_prefix
    )

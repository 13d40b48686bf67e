"""Finds, loads and exports encoders."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import AliasChoices, Field
from safetensors import SafetensorError
from torch import nn

from ahm_gym.data.processing import PLAIN, Processing
from ahm_gym.errors import InputError, is_out_of_memory
from ahm_gym.model.encoder_base import ARCHITECTURES, as_encoder
from ahm_gym.model.patches import by, grid_of
from ahm_gym.model.raw_patches import RawPatches
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.model.vit_encoder import PRESETS, WIDTHS
from ahm_gym.model.volume_vit import NAME as VOLUME_TRANSFORMER
from ahm_gym.runs.folder import resume_flags
from ahm_gym.runs.schema import Schema, checked, read_object, shortened
from ahm_gym.runs.storage import as_os_error, check_loaded

Side: TypeAlias = Annotated[int, Field(ge=1, le=1 << 15)]
Width: TypeAlias = Annotated[int, Field(ge=1, le=1 << 14)]
Depth: TypeAlias = Annotated[int, Field(ge=1, le=1 << 9)]
Step: TypeAlias = Annotated[int, Field(ge=1, le=1 << 5)]


class ModelArguments(Schema):
    """The sizes of an exported encoder; one far beyond any real network is refused before it takes all memory."""

    img_size: Side | Annotated[list[Side], Field(min_length=2, max_length=3)] = Field(
        validation_alias=AliasChoices("img_size", "volume_size")
    )
    patch_size: Side
    in_chans: Width
    embed_dim: Width = 1
    depth: Depth = 1
    num_heads: Width = 1
    features: list[Width] | tuple[Width, ...] = ()
    blocks: list[Depth] | tuple[Depth, ...] = ()
    kernels: list[list[Step]] | tuple[()] = ()
    strides: list[list[Step]] | tuple[()] = ()


class EncoderFile(Schema):
    """The `config.json` of an exported encoder."""

    architecture: str
    model_args: ModelArguments


class RecipeFile(Schema):
    """The `config.json` of a recipe: the names of the folders of its stages."""

    stages: Annotated[list[Annotated[str, Field(pattern=r"^\w[\w-]*$")]], Field(min_length=1)]


class RunFile(Schema):
    """What later runs take from the `config.json` of a pretraining run."""

    data: str | None = None
    data_root: str | None = None
    patient_regex: str | None = None
    joint_labels: int | None = None
    seed: int = 0
    volumes: bool = False
    spacing: float | list[float] | None = None
    processing: Processing = PLAIN


@dataclass(frozen=True)
class EncoderFolder:
    """An exported encoder, and default settings for runs that start from it."""

    path: Path
    """Folder for `timm.create_model("local-dir:PATH", pretrained=True)`, or for `load_encoder` alone."""
    model: str
    """A name in `ARCHITECTURES`, the name of a preset, or timm's name of the model."""
    image_size: tuple[int, ...]
    """Height and width in pixels, or depth, height and width."""
    patch_size: int
    """Side of a patch in pixels."""
    channels: int
    """Number of image channels."""
    data: str | None
    """The data that the encoder was pretrained on, as in the settings of its run; None if unknown."""
    data_root: Path | None
    """Folder in which a relative name of the data is looked up; None if unknown."""
    patient_regex: str | None
    """The pattern by which the run found the patient of an image; None if it had none."""
    spacing: float | tuple[float, ...] | None = None
    """Millimetres to which its run was told to resample its images; None if it was not."""
    volume_spacing: float | tuple[float, ...] | None = None
    """Millimetres to which its run resampled its volumes; None if it did not, or had none."""
    joint_labels: tuple[int, int] | None = None
    """Number and seed of the labelled images that the encoder was pretrained with; None if there were none."""
    is_planned: bool = False
    """Whether the network has sizes of its own, by plans of nnU-Net, so that its name does not say all of it."""


def find_encoder(spec: Path) -> EncoderFolder:
    """Finds the encoder of a pretraining run, given the run folder or its `encoder` folder.

    Raises:
        InputError: if the folder is neither, or the run has not exported an encoder yet.
    """
    if not spec.is_dir():
        raise InputError(f"`encoder={spec}` does not exist: give the folder of a pretraining run, or none.")
    config = _read_config(spec)
    if config.get("kind") == "recipe":
        return _encoder_of_recipe(spec, config)
    kind = config.get("kind", "pretrain")
    plain = kind if isinstance(kind, str) else shortened(kind)
    if plain not in ("pretrain", *ARCHITECTURES):
        raise InputError(f"`encoder={spec}` is a {plain} run: give a pretraining run, or none.")
    if config.get("kind") != "pretrain":
        run = _read_config(spec.parent) if spec.name == "encoder" else {}
        return _described(spec, config, run if run.get("kind") == "pretrain" else {})
    exported = spec / "encoder"
    if not (exported / "config.json").is_file():
        raise InputError(
            f"`encoder={spec}` has exported no encoder yet: resume it with pretrain {resume_flags(spec)}."
        )
    return _described(exported, _read_config(exported), config)


def is_planned(folder: Path) -> bool:
    """Whether an exported encoder has sizes of its own, by plans of nnU-Net; False if the folder is gone."""
    return folder.is_dir() and find_encoder(folder).is_planned


def _encoder_of_recipe(spec: Path, config: dict[str, Any]) -> EncoderFolder:
    """The encoder that the last stage of a recipe exported."""
    stages = checked(RecipeFile, config, spec / "config.json").stages
    stage = spec / stages[-1]
    if not (stage / "encoder" / "config.json").is_file():
        raise InputError(
            f"`encoder={spec}` has not reached its last stage yet: resume it with pretrain {resume_flags(spec)}."
        )
    return find_encoder(stage)


def export_encoder(
    encoder: nn.Module, folder: Path, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Writes an encoder for `load_encoder`.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` can load a vision transformer, too, except `tiny_conv`.

    Args:
        encoder: encoder to write.
        folder: folder to write to; created if it is missing.
        mean: mean of each channel of the training images; saved with the encoder.
        std: standard deviation of each channel.
    """
    with as_os_error(folder):
        as_encoder(encoder).export(folder, {"mean": mean, "std": std})


def load_encoder(
    spec: Path | None,
    *,
    model: str | None = None,
    image_size: tuple[int, ...] | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """Loads the encoder of a pretraining run, or builds the untrained one with which pretraining starts.

    Args:
        spec: folder, see `find_encoder`; None for an untrained encoder.
        model: preset or timm name; default: that of `spec`, or tiny.
        image_size: length of each axis in pixels; default: those of `spec`, or 64 by 64. The position embedding is
            resampled if the size differs from that of `spec`.
        patch_size: side of a patch in pixels; default: that of `spec`, or 8. The patch embedding is resampled if
            it differs.
        channels: number of image channels; default: that of `spec`, or 1. The patch embedding is converted if it
            differs.
        seed: seed of the weights of an untrained encoder.

    Raises:
        InputError: if the folder holds no encoder, one of another model or number of axes, or one that cannot be read.
    """
    if spec is None:
        untrained: dict[str, Any] = {
            "image_size": image_size or (64, 64),
            "patch_size": 8 if patch_size is None else patch_size,
            "channels": channels or 1,
        }
        if model == "raw_patches":
            return RawPatches(**untrained)
        return build_autoencoder(model or "tiny", seed=seed, **untrained).encoder
    found = find_encoder(spec)
    if model is not None and _architecture(model) != _architecture(found.model):
        raise InputError(
            f"`model={model}` does not fit `encoder={spec}`, which is {found.model}: leave `model` out, or "
            "choose another encoder."
        )
    shape: dict[str, Any] = {
        "image_size": image_size or found.image_size,
        "patch_size": found.patch_size if patch_size is None else patch_size,
        "channels": channels or found.channels,
    }
    if len(shape["image_size"]) != len(found.image_size):
        raise InputError(
            f"`image_size={by(shape['image_size'])}` does not fit `encoder={spec}`, which was pretrained with "
            f"{by(found.image_size)}: give {len(found.image_size)} lengths, or choose another encoder."
        )
    grid_of(shape["image_size"], shape["patch_size"])
    module = import_module(ARCHITECTURES.get(found.model, "ahm_gym.model.vit_encoder"))
    try:
        # The network is initialised before its weights are loaded; this must not change the global generator.
        with torch.random.fork_rng(devices=[]):
            network = module.load(found.path, **shape)
    except (
        OSError,
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        AssertionError,
        SafetensorError,
    ) as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise InputError(
            f"the encoder in {found.path} cannot be used ({_first_line(error)}): export it again, or choose another."
        ) from error
    check_loaded(network.state_dict(), found.path)
    return network


def statistics_of(spec: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the images that an encoder was pretrained on.

    Args:
        spec: folder, see `find_encoder`.

    Raises:
        InputError: if the exported encoder does not state them.
    """
    folder = find_encoder(spec).path
    stated = read_object(folder / "config.json").get("pretrained_cfg", {})
    if "mean" not in stated or "std" not in stated:
        raise InputError(f"{folder} does not state mean and std of its images: export the encoder again.")
    return tuple(stated["mean"]), tuple(stated["std"])


def _described(folder: Path, exported: dict[str, Any], run: dict[str, Any]) -> EncoderFolder:
    arguments = exported.get("model_args", {})
    if "architecture" not in exported or "model_args" not in exported:
        raise InputError(
            f"`encoder={folder}` is neither a run folder nor an exported encoder: give the folder of a "
            "pretraining run, its encoder folder, or none."
        )
    described = checked(EncoderFile, exported, folder / "config.json")
    shape, origin = described.model_args, checked(RunFile, run, folder.parent / "config.json")
    size = shape.img_size
    return EncoderFolder(
        path=folder,
        model=_model_of(described.architecture, arguments),
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        patch_size=shape.patch_size,
        channels=shape.in_chans,
        data=origin.data,
        data_root=None if origin.data_root is None else Path(origin.data_root),
        joint_labels=None if origin.joint_labels is None else (origin.joint_labels, origin.seed),
        patient_regex=origin.patient_regex,
        spacing=tuple(told) if isinstance(told := origin.spacing, list) else told,
        volume_spacing=origin.processing.spacing if origin.volumes else None,
        is_planned=bool(shape.strides),
    )


def _model_of(architecture: str, arguments: dict[str, Any]) -> str:
    shape = {key: arguments.get(key) for key in ("embed_dim", "depth", "num_heads") if key in arguments}
    for name, preset in PRESETS.items():
        if (architecture, shape) in ((preset.name, preset.encoder), (VOLUME_TRANSFORMER, WIDTHS[name])):
            return name
    return architecture


def _architecture(model: str) -> tuple[str, dict[str, Any]]:
    preset = PRESETS.get(model)
    return (model, {}) if preset is None else (preset.name, preset.encoder)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_object(path) if path.is_file() else {}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

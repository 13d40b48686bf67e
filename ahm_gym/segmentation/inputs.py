"""Completes the settings of a probe or a fine-tuning run, and opens the data and the encoder that they name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.folds import describe_fold, with_fold
from ahm_gym.data.processing import in_mm
from ahm_gym.data.sources import absolute, stem_of
from ahm_gym.errors import InputError, check_numbers, check_seed, say, unknown_name
from ahm_gym.model.conv_autoencoder import build_seeded
from ahm_gym.model.conv_network import ConvNetwork, renew_decoder
from ahm_gym.model.encoders import EncoderFolder, find_encoder, load_encoder
from ahm_gym.model.patches import image_size_of
from ahm_gym.runs.folder import free_run_dir
from ahm_gym.runs.places import expanded
from ahm_gym.segmentation.comparison import NONE
from ahm_gym.segmentation.config import (
    HEADS,
    SELECTIONS,
    TRANSFERS,
    EvaluationConfig,
    FinetuneConfig,
    ProbeConfig,
)
from ahm_gym.segmentation.metrics import MISSED_DISTANCES

Config = TypeVar("Config", bound=EvaluationConfig)


def resolve(config: Config) -> Config:
    """The settings, with missing ones taken from the encoder's run or from the defaults.

    Raises:
        InputError: if a number is out of range, a name is unknown or the encoder cannot be found.
    """
    check_seed(config.seed)
    for name in ("labels", "labelled_patients", "patch_size"):
        if (number := getattr(config, name)) is not None:
            check_numbers("count", **{name: number})
    if config.labels is not None and config.labelled_patients is not None:
        raise InputError(
            f"`labels={config.labels}` draws single images and `labelled_patients={config.labelled_patients}` whole "
            "patients: give only one of the two."
        )
    if isinstance(config, FinetuneConfig):
        names = ("steps", "batch_size", "checkpoint_every")
        check_numbers("count", **{name: getattr(config, name) for name in names})
        check_numbers("size", learning_rate=config.learning_rate, encoder_rate=config.encoder_rate)
        check_numbers("cost", surface_tolerance=config.surface_tolerance)
        if config.missed_distance not in MISSED_DISTANCES:
            raise unknown_name("missed distance", config.missed_distance, MISSED_DISTANCES)
        if not 0 <= config.frozen_steps < config.steps:
            raise InputError(
                f"`frozen_steps` is {config.frozen_steps}: choose from 0 to {config.steps - 1}, one below `steps`."
            )
        if config.transfer not in TRANSFERS:
            raise unknown_name("transfer", config.transfer, TRANSFERS)
        check_validation(config)
        if config.compare == NONE == config.encoder:
            raise InputError(
                "`compare=none` compares an encoder with none, and `encoder` is none: name a pretraining run there, or "
                "another run to compare with."
            )
    if isinstance(config, ProbeConfig) and config.head not in HEADS:
        raise unknown_name("head", config.head, HEADS)
    config = spelled_out(config)
    if config.encoder == "none":
        return replace(
            config,
            model=config.model or "tiny",
            image_size=config.image_size or (64, 64),
            patch_size=8 if config.patch_size is None else config.patch_size,
        )
    found = find_encoder(Path(config.encoder))
    print_further_labels(config, found)
    if isinstance(config, FinetuneConfig) and config.compare == NONE and found.is_planned:
        raise InputError(
            "`compare=none` trains the same network from scratch, and does not know the sizes that the encoder has by "
            "nnU-Net's plans: leave it out."
        )
    return replace(
        config,
        data=found.data if config.data is None else config.data,
        data_root=found.data_root if config.data is None and config.data_root is None else config.data_root,
        patient_regex=(
            found.patient_regex
            if config.data is None and config.patient_regex is None
            else config.patient_regex
        ),
        model=config.model or found.model,
        image_size=config.image_size or found.image_size,
        spacing=spacing_of(config, found),
        patch_size=found.patch_size if config.patch_size is None else config.patch_size,
    )


def spacing_of(config: EvaluationConfig, found: EncoderFolder) -> float | tuple[float, ...] | None:
    """The spacing that was asked for, or else what the encoder's run asked for its images or found for volumes.

    The last is said, because it is of other data.
    """
    if config.spacing is not None:
        return config.spacing
    if config.data in (None, found.data):
        return found.spacing
    if found.volume_spacing is not None:
        say(
            f"note: the volumes of {config.data} are resampled to {in_mm(found.volume_spacing)}, as those were that "
            "the encoder was pretrained on; a `spacing` chooses another."
        )
    return found.volume_spacing


def print_further_labels(config: EvaluationConfig, found: EncoderFolder) -> None:
    """Prints a note if the encoder was pretrained with labels of this data that may not be among those of this run."""
    if found.joint_labels is None or config.labels is None or config.data not in (None, found.data):
        return
    number, seed = found.joint_labels
    if seed != config.seed or number > config.labels:
        say(
            f"note: the encoder was pretrained with {number} labels of this data, drawn with seed {seed}, which may "
            f"not all be among the {config.labels} of this run, drawn with seed {config.seed}: the score may be "
            f"that of more labels.",
        )


def check_validation(config: FinetuneConfig) -> None:
    """Raises InputError if the settings of validation or of folds do not go together."""
    if config.select not in SELECTIONS:
        raise unknown_name("selection", config.select, SELECTIONS)
    if config.validate_every is not None and config.validate_every < 0:
        raise InputError(
            f"`validate_every` is {config.validate_every}: choose a whole number, 0 for no validation."
        )
    if config.select == "best" and config.validate_every == 0:
        raise InputError(
            "`select=best` needs scores on val: leave `validate_every` out, or choose 1 or more."
        )
    if config.fold is None and config.folds != FinetuneConfig.folds:
        raise InputError(f"`folds={config.folds}` needs `fold`: give the number of the fold that is val.")


def spelled_out(config: Config) -> Config:
    """The same settings as they are written to `config.json`: a length for each axis, and absolute paths."""
    data, root = (None, config.data_root) if config.data is None else absolute(config.data, config.data_root)
    encoder = config.encoder if config.encoder == "none" else str(Path(config.encoder).absolute())
    size = None if config.image_size is None else image_size_of(config.image_size, axes_of(config))
    config = replace(config, encoder=encoder, image_size=size, data=data, data_root=root)
    if isinstance(config, FinetuneConfig) and config.compare not in (None, NONE):
        return replace(config, compare=str(expanded(config.compare).absolute()))
    return config


def axes_of(config: EvaluationConfig) -> int:
    """2 for images, 3 for volumes: as many as sides are given, or else as the encoder has."""
    size = config.image_size
    if isinstance(size, tuple) and len(size) > 1:
        return 3 if len(size) == 3 else 2
    return 2 if config.encoder == "none" else len(find_encoder(Path(config.encoder)).image_size)


def with_run_dir(config: Config, what: str) -> Config:
    """The settings with a run folder: the given one, or else the first free `runs/ENCODER-WHAT-N`.

    ENCODER is the name of the encoder's run folder, or DATA-scratch without an encoder.
    """
    if config.encoder == "none":
        start = f"{stem_of(config.data)}-scratch"
    else:
        folder = Path(os.fspath(config.encoder)).absolute()
        start = folder.parent.name if folder.name == "encoder" else folder.name
    return replace(config, run_dir=config.run_dir or free_run_dir(f"{start}-{what}"))


def shape_of(config: EvaluationConfig) -> tuple[tuple[int, ...], int]:
    """Image size and patch size of resolved settings."""
    assert config.image_size is not None and config.patch_size is not None, "resolved"
    return image_size_of(config.image_size, axes_of(config)), config.patch_size


def open_labelled(config: EvaluationConfig) -> ImageDataset:
    """The labelled images of resolved settings, divided anew if they name a fold; that is said.

    Raises:
        InputError: if the data cannot be used, or has too few patients for the folds.
    """
    dataset = open_data(
        config.data,
        root=config.data_root,
        image_size=shape_of(config)[0],
        native_resolution=isinstance(config, FinetuneConfig) and config.native_resolution,
        need_labels=True,
        patient_regex=config.patient_regex,
        spacing=config.spacing,
    )
    if not isinstance(config, FinetuneConfig) or config.fold is None:
        return dataset
    divided = with_fold(dataset, config.fold, config.folds)
    say(f"note: {dataset.name}: {describe_fold(divided, config.fold, config.folds)}.")
    return divided


def starting_encoder(config: EvaluationConfig, dataset: ImageDataset) -> nn.Module:
    """The encoder of resolved settings, for images of their size and the dataset's channels."""
    image_size, patch_size = shape_of(config)
    shape: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "channels": dataset.channels}
    spec = None if config.encoder == "none" else Path(config.encoder)
    network = load_encoder(spec, model=config.model, **shape, seed=config.seed)
    if isinstance(config, FinetuneConfig) and config.transfer == "encoder":
        if not isinstance(network, ConvNetwork):
            raise InputError(
                f"`transfer=encoder` leaves the decoder of a U-Net behind, and {config.model} has none: leave it out."
            )
        renew_decoder(network, build_seeded(type(network), config.seed, **shape, **network.sizes()).encoder)
    return network

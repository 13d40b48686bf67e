"""Settings that follow from others: steps from epochs, the learning rate from the model, and presets for a machine."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

from ahm_gym.data.wording import counted, verb
from ahm_gym.errors import InputError, check_numbers, unknown_name
from ahm_gym.pretraining.config import Pretrain, PretrainConfig

PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {},
    "gpu": {
        "model": "resenc",
        "image_size": 128,
        "patch_size": 16,
        "steps": 30_000,
        "compile": True,
        "checkpoint_every": 1000,
    },
}
"""Settings of each preset that differ from the defaults."""

RATES: dict[str, float] = {"tiny": 1e-3, "tiny_conv": 1e-3, "unet": 1e-3, "resenc": 1e-3, "small": 5e-4}
"""Learning rates by model, for batches of up to `BATCH` images. Those of tiny and the U-Nets were measured."""
LARGE_RATE: float = 3e-4
"""The learning rate of all other models: that of MAE for a ViT-B (2.4e-3 with 4,096 images), for `BATCH` images."""
BATCH: int = 64
"""Largest number of images in an update with the rates above."""


def with_preset(settings: Pretrain, given: Container[str]) -> Pretrain:
    """The settings, with those of their preset in place of settings that were not given.

    Raises:
        InputError: if the preset is unknown, or does not go with `resume` or `recipe`.
    """
    if settings.preset not in PRESETS:
        raise unknown_name("preset", settings.preset, PRESETS)
    if "preset" in given and (settings.resume or settings.recipe is not None):
        why = "a run keeps its settings" if settings.resume else "a recipe has its own"
        raise InputError(f"`preset={settings.preset}` chooses settings, and {why}: leave it out.")
    chosen = PRESETS[settings.preset]
    return replace(settings, **{name: value for name, value in chosen.items() if name not in given})


def completed(config: PretrainConfig, num_images: int) -> PretrainConfig:
    """The settings with the number of updates of `epochs`, and with a learning rate.

    Args:
        config: settings of a run.
        num_images: number of training images.

    Raises:
        InputError: if `epochs` is not a positive number.
    """
    config = with_learning_rate(config)
    if config.epochs is None:
        return config
    check_numbers("size", epochs=config.epochs)
    return replace(config, steps=max(1, math.ceil(config.epochs * num_images / config.batch_size)))


def with_learning_rate(config: PretrainConfig) -> PretrainConfig:
    """The settings with a learning rate: the given one, or that of the model, by the square root of the batch size.

    The rule of the square root is that of Adam (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient
    Algorithms", NeurIPS 2022). It is not applied below `BATCH` images, where it was not needed.
    """
    if config.learning_rate is not None:
        return config
    rate = RATES.get(config.model, LARGE_RATE) * math.sqrt(max(config.batch_size, BATCH) / BATCH)
    return replace(config, learning_rate=float(f"{rate:.3g}"))


def note_on_length(config: PretrainConfig, num_images: int) -> str | None:
    """A sentence for a run that does not show every training image; None if it does."""
    shown = config.steps * config.batch_size
    if shown >= num_images:
        return None
    show = verb(config.steps, "shows", "show")
    return (
        f"{counted(config.steps, 'update')} of {config.batch_size} {show} {shown} of {num_images} training images, "
        f"{shown / num_images:.2g} of an epoch: choose more `steps`, or `epochs`"
    )

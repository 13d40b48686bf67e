"""Tests of the settings that follow from others: epochs, the learning rate, and presets."""

from __future__ import annotations

import json

import pytest

from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import Pretrain, PretrainConfig
from ahm_gym.pretraining.defaults import PRESETS, completed, note_on_length, with_learning_rate, with_preset
from ahm_gym.pretraining.recipes import run_program
from ahm_gym.pretraining.run import pretrain


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1e-3),
        ({"batch_size": 16}, 1e-3),
        ({"batch_size": 256}, 2e-3),
        ({"model": "small"}, 5e-4),
        ({"model": "vit_base_patch16_224", "batch_size": 4096}, 2.4e-3),
        ({"model": "base", "learning_rate": 0.7, "batch_size": 256}, 0.7),
    ],
)
def test_the_learning_rate_follows_the_model_and_the_batch(settings, expected):
    assert with_learning_rate(PretrainConfig(**settings)).learning_rate == expected


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 4), (2.5, 10), (0.01, 1), (None, 1200)])
def test_epochs_give_the_number_of_updates(epochs, steps):
    assert completed(PretrainConfig(epochs=epochs, batch_size=25), num_images=100).steps == steps


@pytest.mark.parametrize("epochs", [0.0, -1.0, float("inf")])
def test_epochs_out_of_range_are_refused(epochs):
    with pytest.raises(InputError, match="`epochs` is"):
        completed(PretrainConfig(epochs=epochs), num_images=100)


def test_a_run_of_epochs_records_its_steps_and_its_learning_rate(config, tmp_path):
    small = Pretrain(
        **vars(config) | {"epochs": 0.1, "batch_size": 8, "run_dir": tmp_path / "run", "policy": "random"}
    )
    run = pretrain(
        PretrainConfig(**{name: getattr(small, name) for name in PretrainConfig.__dataclass_fields__})
    )
    saved = json.loads((run / "config.json").read_text())
    assert saved["learning_rate"] == 1e-3
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == saved["steps"] != PretrainConfig.steps


def test_a_run_below_one_epoch_is_told(config):
    assert note_on_length(PretrainConfig(steps=4, batch_size=25), num_images=100) is None
    note = note_on_length(PretrainConfig(steps=10, batch_size=64), num_images=100_000)
    assert note == (
        "10 updates of 64 show 640 of 100000 training images, 0.0064 of an epoch: choose more `steps`, or `epochs`"
    )


def test_a_preset_replaces_what_was_not_given():
    settings = with_preset(Pretrain(preset="gpu", image_size=96), {"preset", "image_size"})
    assert (settings.model, settings.image_size, settings.steps) == ("resenc", 96, PRESETS["gpu"]["steps"])
    assert with_preset(Pretrain(), set()) == Pretrain()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "gqu"}, "unknown preset 'gqu': did you mean 'gpu'"),
        ({"preset": "gpu", "recipe": "ahm2025"}, "a recipe has its own"),
        ({"preset": "gpu", "resume": True}, "a run keeps its settings"),
    ],
)
def test_presets_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        run_program(Pretrain(**settings), set(settings))

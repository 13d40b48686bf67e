"""Weights that are not finite are neither saved nor used."""

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from programs import write_discs

from ahm_gym.errors import InputError, RunError
from ahm_gym.model.encoders import load_encoder
from ahm_gym.model.published import read_weights
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.training import Training
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.segmenter import load_segmenter


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finite")
    data = write_discs(folder / "discs.npz")
    return PretrainConfig(
        data=str(data), image_size=32, batch_size=4, steps=2, policy="random", run_dir=folder / "run"
    )


@pytest.fixture(scope="module")
def run(config):
    return pretrain(config)


def damage(file):
    """Puts one NaN into the weights of a file."""
    weights = safetensors.torch.load_file(file)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name].view(-1)[0] = torch.nan
    metadata = {"format": "pt"}
    safetensors.torch.save_file(weights, file, metadata)


def test_an_encoder_with_one_nan_is_refused(run, tmp_path):
    copy = shutil.copytree(run / "encoder", tmp_path / "encoder")
    damage(copy / "model.safetensors")
    with pytest.raises(InputError, match=r"weights in .*encoder are not finite, first in .*: restore"):
        load_encoder(copy)


def test_published_weights_with_a_nan_are_refused(tmp_path):
    autoencoder = build_autoencoder("tiny", image_size=(32, 32), patch_size=8, channels=1)
    file = tmp_path / "mae.safetensors"
    safetensors.torch.save_file(autoencoder.state_dict(), file)
    damage(file)
    with pytest.raises(InputError, match="not finite"):
        read_weights(file)


def test_a_last_update_that_ruins_the_decoder_ends_fine_tuning_with_an_error(config, run, tmp_path):
    settings = FinetuneConfig(
        data=config.data, encoder=str(run), labels=4, batch_size=4, steps=1, learning_rate=1e300,
        run_dir=tmp_path / "finetune",
    )  # fmt: skip
    with pytest.raises(RunError, match="weights are not finite after step 1.*lower `learning_rate`"):
        finetune(settings)
    assert not (tmp_path / "finetune" / "results.json").exists()
    damage(tmp_path / "finetune" / "segmenter" / "decoder.safetensors")
    with pytest.raises(InputError, match="not finite"):
        load_segmenter(tmp_path / "finetune" / "segmenter")


def test_pretraining_saves_no_weights_that_are_not_finite(config, tmp_path, monkeypatch):
    save = Training.save

    def ruined(self, run, step, recorded):
        if step == 2:
            next(self.pretrainer.autoencoder.parameters()).data.fill_(torch.inf)
        save(self, run, step, recorded)

    monkeypatch.setattr(Training, "save", ruined)
    with pytest.raises(RunError, match="not finite after step 2"):
        pretrain(replace(config, run_dir=tmp_path / "run"))
    load_encoder(tmp_path / "run")

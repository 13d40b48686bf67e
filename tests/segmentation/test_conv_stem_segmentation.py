"""A vision transformer with a convolutional stem, from pretraining to segmentation."""

import dataclasses

import pytest
from pretraining_runs import Stop, comparable, stop_at
from programs import assert_same, final_state, write_discs

from ahm_gym.model.encoders import find_encoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain
from ahm_gym.segmentation.config import FinetuneConfig, ProbeConfig
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.probe_run import run_probe


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("stem")
    data = write_discs(folder / "discs.npz")
    return PretrainConfig(
        data=str(data), image_size=(32,), model="tiny_conv", policy="a3c", steps=8, batch_size=8, run_dir=folder / "run"
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(config):
    return pretrain(config)


def test_a_run_exports_its_encoder_and_its_agent_masks_another_run(config, run, tmp_path):
    assert find_encoder(run).model == "tiny_conv"
    frozen = dataclasses.replace(config, policy=f"agent:{run}", steps=2, run_dir=tmp_path / "frozen")
    assert len(comparable(pretrain(frozen))) > 0


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(config, run, monkeypatch, tmp_path):
    stopped = dataclasses.replace(config, checkpoint_every=2, run_dir=tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 5)
        pretrain(stopped)
    assert_same(final_state(pretrain(stopped, resume=True)), final_state(run))


@pytest.mark.parametrize("decoder", ["unetr", "plain"])
def test_a_few_labels_suffice_for_bright_discs_with_either_decoder(run, decoder, tmp_path):
    options = {"labels": 6, "steps": 40, "batch_size": 4, "decoder": decoder, "run_dir": tmp_path / "run"}
    results = finetune(FinetuneConfig(encoder=str(run), **options))
    assert results["dice"] > 0.7
    assert find_encoder(tmp_path / "run" / "segmenter" / "encoder").model == "tiny_conv"


@pytest.mark.parametrize("head", ["patch", "pixel"])
def test_the_probe_reads_bright_discs(run, head, tmp_path):
    results = run_probe(ProbeConfig(encoder=str(run), labels=10, head=head, run_dir=tmp_path / "probe"))
    assert results["patch_dice" if head == "patch" else "dice"] > 0.5

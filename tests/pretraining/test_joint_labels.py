"""Runs with `joint_labels`: every update also learns from the labelled images of fine-tuning."""

import dataclasses

import numpy as np
import pytest
from pretraining_runs import Stop, comparable, stop_at
from programs import assert_same, final_state

from ahm_gym.benchmark.config import BenchmarkConfig
from ahm_gym.benchmark.run import pretraining_of
from ahm_gym.errors import InputError
from ahm_gym.model.encoders import find_encoder
from ahm_gym.pretraining.recipes import configure
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.training import Training
from ahm_gym.segmentation.config import FinetuneConfig, ProbeConfig
from ahm_gym.segmentation.finetune import Finetuning
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.probe_run import run_probe


@pytest.fixture
def joint(config):
    return dataclasses.replace(config, policy="random", joint_labels=4, seed=2)


def test_pretraining_and_fine_tuning_draw_the_same_images(joint):
    path = pretrain(dataclasses.replace(joint, steps=1))
    finetuning = Finetuning(resolve(FinetuneConfig(encoder=str(path), labels=4, seed=2)))
    assert Training(joint).pretrainer.joint.batches.indices == finetuning.batches.indices


@pytest.mark.parametrize("model", ["tiny", "resenc"])
@pytest.mark.parametrize("policy", ["random", "a3c", "hard_patches"])
def test_a_run_with_any_policy_learns_and_logs_the_joint_loss(joint, policy, model, tmp_path):
    joint = dataclasses.replace(joint, policy=policy, model=model, steps=4)
    path = pretrain(joint)
    alone = pretrain(dataclasses.replace(joint, joint_labels=None, run_dir=tmp_path / "alone"))
    rows, others = ([row for row in comparable(run) if "loss" in row] for run in (path, alone))
    assert all(0 < row["joint_loss"] < 5 for row in rows) and len(rows) == 4
    assert rows[0].pop("joint_loss") and rows[0] == others[0]  # before the first update nothing differs
    assert rows[-1]["loss"] != others[-1]["loss"]
    (events,) = path.glob("events/events.out.tfevents.*")
    assert events.read_bytes().count(b"joint_loss") == 4
    exported = [sorted(item.name for item in (run / "encoder").iterdir()) for run in (path, alone)]
    assert exported[0] == exported[1]


@pytest.mark.parametrize("options", [{"policy": "a3c"}, {"model": "resenc"}, {"average": 0.9}], ids=str)
def test_a_resumed_joint_run_ends_bit_for_bit_like_one_that_was_not_stopped(
    joint, options, monkeypatch, tmp_path
):
    joint = dataclasses.replace(joint, joint_weight=0.5, **options)
    whole = pretrain(dataclasses.replace(joint, run_dir=tmp_path / "whole"))
    for update in (2, 6):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, update)
            pretrain(joint, resume=update != 2)
    resumed = pretrain(joint, resume=True)
    assert_same(final_state(resumed), final_state(whole))
    assert comparable(resumed) == comparable(whole)


def test_the_weight_changes_what_is_learned(joint, tmp_path):
    paths = [
        pretrain(dataclasses.replace(joint, joint_weight=weight, steps=2, run_dir=tmp_path / str(weight)))
        for weight in (1.0, 0.5)
    ]
    rows = [[row for row in comparable(path) if "loss" in row] for path in paths]
    assert rows[0][0] == rows[1][0] and rows[0][1]["joint_loss"] != rows[1][1]["joint_loss"]


def test_data_without_labels_is_refused(joint, tmp_path):
    np.savez(tmp_path / "bare.npz", train_images=np.arange(8 * 32 * 32).reshape(8, 32, 32).astype(np.uint8))
    with pytest.raises(InputError, match=r"bare has no training labels: .* Or leave `joint_labels` out\."):
        pretrain(dataclasses.replace(joint, data=str(tmp_path / "bare.npz")))
    assert not joint.run_dir.exists()


def test_a_recipe_leaves_them_out_of_the_stage_with_a_frozen_autoencoder(tmp_path):
    stages = configure("ahm2025", {"joint_labels": 4, "joint_weight": 0.5}, tmp_path)
    found = [(stage.config.joint_labels, stage.config.joint_weight) for stage in stages]
    assert found == [(4, 0.5), (None, 1.0), (4, 0.5)]


@pytest.mark.parametrize("policy", ["random", "a3c"])
def test_a_benchmark_gives_them_to_every_policy(joint, policy):
    settings = BenchmarkConfig(pretrain=joint)
    found = pretraining_of(settings, joint.data, "discs", policy, 1)
    assert (found.joint_labels, found.seed) == (4, 1)


@pytest.mark.parametrize(
    ("labels", "seed", "noted"), [(4, 2, False), (6, 2, False), (None, 0, False), (3, 2, True), (4, 0, True)]
)
def test_scores_with_labels_that_pretraining_did_not_share_come_with_a_note(
    joint, labels, seed, noted, tmp_path, capsys
):
    path = pretrain(dataclasses.replace(joint, steps=1))
    assert find_encoder(path).joint_labels == (4, 2)
    capsys.readouterr()
    run_probe(ProbeConfig(encoder=str(path), labels=labels, seed=seed, run_dir=tmp_path / "probe"))
    assert ("note: the encoder was pretrained with 4 labels of this data" in capsys.readouterr().err) is noted

import dataclasses
import errno
import os
import shutil
import signal

import pytest
import timm
import torch
from pretraining_runs import Stop, comparable, stop_at
from programs import assert_same, final_state

from ahm_gym.errors import InputError, Interrupted, RunError
from ahm_gym.masking.schedules import MixedMaskRatio
from ahm_gym.model.encoders import load_encoder
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.recorder import Recorder
from ahm_gym.pretraining.run import pretrain
from ahm_gym.runs import folder as runs
from ahm_gym.runs.storage import locked


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "a3c", "reward": "relative"},
        {"policy": "a3c", "reward": "progress", "masking_steps": 3, "guided_fraction": 1.0},
        pytest.param(
            {"policy": "a3c", "initial_mask_ratio": 0.3, "masking_steps": 3}, marks=pytest.mark.slow
        ),
        {"policy": "patch_ppo", "guided_fraction": 0.5},
        {"policy": "group", "guided_fraction": 0.5, "spread_fraction": 0.5},
        {"policy": "random"},
        {"policy": "random", "initial_mask_ratio": 0.1, "average": 0.9},
        {"policy": "a3c", "mask_ratio": (0.25, 0.5, 0.9), "masking_steps": 2},
        {"policy": "random", "target_fraction": 0.5},
        pytest.param(
            {"policy": "random", "target": "latent", "model": "unet", "average": 0.9}, marks=pytest.mark.slow
        ),
        {"policy": "a3c", "target": "latent"},
        {"policy": "block"},
        {"policy": "grid"},
        {"policy": "spread"},
        {"policy": "a3c", "spread_fraction": 0.5, "guided_fraction": 0.5, "guided_ramp": (0.0, 0.5)},
        {"policy": "hard_patches"},
        {"policy": "thompson", "agent_options": ("period=2",)},
        {"policy": "a3c", "model": "unet"},
        {"policy": "ahm2025", "model": "unet", "reward": "ahm2025", "agent_options": ("critic=relu6",)},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(config, options, monkeypatch, tmp_path):
    config = dataclasses.replace(config, **options)
    whole = pretrain(dataclasses.replace(config, run_dir=tmp_path / "whole"))
    for update in (2, 6):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, update)
            pretrain(config, resume=update != 2)
    resumed = pretrain(config, resume=True)
    assert_same(final_state(resumed), final_state(whole))
    assert comparable(resumed) == comparable(whole)


def counts_of_masked(config, monkeypatch):
    """Masked patches of an image in every update of a run; each update has the same number in all its images."""
    counts, step = [], Pretrainer.step

    def counted(self, images, masks):
        counts.append(masks.masked.sum(dim=1).unique().tolist())
        return step(self, images, masks)

    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "step", counted)
        pretrain(config)
    return counts


@pytest.mark.parametrize("policy", ["random", "block", "a3c", "ppo", "sac", "dqn"])
def test_the_mask_ratio_rises_over_the_run_with_every_policy(config, policy, monkeypatch):
    rising = dataclasses.replace(config, policy=policy, initial_mask_ratio=0.25, guided_fraction=1.0)
    assert counts_of_masked(rising, monkeypatch) == [[4 + i] for i in range(8)]


@pytest.mark.parametrize("policy", ["random", "spread", "a3c", "ppo"])
def test_mixed_mask_ratios_are_the_same_for_every_policy_and_seed(config, policy, monkeypatch):
    mixed = dataclasses.replace(
        config, policy=policy, mask_ratio=(0.25, 0.5, 0.75), guided_fraction=1.0, seed=3
    )
    ratio = MixedMaskRatio((0.25, 0.5, 0.75))
    assert counts_of_masked(mixed, monkeypatch) == [[round(16 * ratio(update / 8))] for update in range(8)]


def test_a_rising_mask_ratio_is_always_inspected_at_its_final_value(config, tmp_path):
    config = dataclasses.replace(config, policy="random", steps=1)
    constant = comparable(pretrain(config))
    rising = dataclasses.replace(config, initial_mask_ratio=0.1, run_dir=tmp_path / "rising")
    assert comparable(pretrain(rising))[0] == constant[0]


def test_a_frozen_agent_masks_in_a_run_of_its_own_and_resumes(config, monkeypatch, tmp_path):
    trained = pretrain(dataclasses.replace(config, run_dir=tmp_path / "trained"))
    config = dataclasses.replace(config, policy=f"agent:{trained}", steps=6, checkpoint_every=2)
    whole = pretrain(dataclasses.replace(config, run_dir=tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 3)
        pretrain(config)
    assert_same(final_state(pretrain(config, resume=True)), final_state(whole))
    assert not (whole / "agent").exists()


@pytest.mark.parametrize(
    ("trained", "own"),
    [({"model": "tiny"}, "unet"), ({"model": "unet", "policy": "ahm2025"}, "tiny")],
    ids=["a3c-for-unet", "ahm2025-for-vit"],
)
def test_an_agent_masks_for_another_model_than_the_one_it_was_trained_with(config, trained, own, tmp_path):
    config = dataclasses.replace(config, steps=2)
    folder = pretrain(dataclasses.replace(config, run_dir=tmp_path / "trained", **trained))
    path = pretrain(dataclasses.replace(config, policy=f"agent:{folder}", model=own))
    assert comparable(path)[-1]["step"] == 2


def test_an_agent_learns_against_the_frozen_autoencoder_of_a_run_and_resumes(config, monkeypatch, tmp_path):
    source = pretrain(dataclasses.replace(config, policy="random", run_dir=tmp_path / "source"))
    config = dataclasses.replace(config, reconstructor=source)
    whole = pretrain(dataclasses.replace(config, run_dir=tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 6)
        pretrain(config)
    expected = final_state(source)["pretrainer"]["autoencoder"]
    shutil.rmtree(source)
    assert_same(final_state(pretrain(config, resume=True)), final_state(whole))
    assert_same(final_state(whole)["pretrainer"]["autoencoder"], expected)
    assert final_state(whole)["pretrainer"]["updates"] == final_state(whole)["agent"]["writes"] == 8
    assert {row["guided"] for row in comparable(whole) if "guided" in row} == {1.0}


@pytest.mark.slow
def test_two_workers_learn_against_one_frozen_autoencoder(config, tmp_path):
    unet = dataclasses.replace(config, model="unet", steps=3)
    source = pretrain(dataclasses.replace(unet, policy="random", run_dir=tmp_path / "source"))
    state = final_state(
        pretrain(dataclasses.replace(unet, policy="ahm2025", reconstructor=source, num_workers=2, steps=6))
    )
    assert state["pretrainer"]["updates"] == state["agent"]["writes"] == 6
    assert_same(state["pretrainer"]["autoencoder"], final_state(source)["pretrainer"]["autoencoder"])


def test_options_of_the_agent_reach_it(config):
    config = dataclasses.replace(config, agent_options=("network=attention", "learning_rate=0.5"), steps=1)
    network = final_state(pretrain(config))["agent"]["network"]
    assert any(key.startswith("trunk.context.attn") for key in network)


@pytest.mark.parametrize(
    ("policy", "option", "message"),
    [
        ("a3c", "widht=3", "did you mean 'width'"),
        ("a3c", "width=2.5", "width=2.5`: expected a value like 32"),
        ("a3c", "gamma=null", "gamma=None`: expected a value like 1.0"),
        ("a3c", "learning_rate=-1", "`learning_rate` is -1.0: choose a positive number"),
        ("a3c", "seed=3", "unknown option of agent a3c 'seed'"),
        ("ppo", "policy=MlpPolicy", "unknown option of agent ppo 'policy'"),
        ("ppo", "device=cpu", "unknown option of agent ppo 'device'"),
        ("ppo", "n_steps=abc", "n_steps=abc`: expected a value like 2048"),
        ("ppo", "batch_size=0", "cannot be made with `agent_options=batch_size=0`"),
        ("dqn", "exploration_fraction=x", "exploration_fraction=x`: expected a value like 0.1"),
        ("td3", "action_noise=x", "action_noise=x`: expected a value like None"),
    ],
)
def test_options_that_the_agent_cannot_take_are_refused_and_leave_no_folder(config, policy, option, message):
    with pytest.raises(InputError) as refusal:
        pretrain(dataclasses.replace(config, policy=policy, agent_options=(option,)))
    assert message in str(refusal.value)
    assert not config.run_dir.exists()


def test_a_run_writes_what_it_promises(config, real_pictures):
    path = pretrain(config)
    rows = comparable(path)
    logged = {key for row in rows for key in row}
    assert {"loss", "reward", "val/spearman", "val/spearman_variance", "agent/draw_entropy", "val/overlap",
            "val/masked_foreground"} <= logged  # fmt: skip
    assert rows[0]["step"] == 0 and rows[-1]["step"] == 8
    steps_paid = [row["step"] for row in rows if "reward" in row]
    assert steps_paid == [1, 2, 3, 4]  # nothing is guided in the second half
    assert {p.name for p in (path / "checkpoint").iterdir()} == {"step-4", "step-8"}
    assert list(path.glob("events/events.out.tfevents.*"))
    for name in ("masks.png", "curves.png"):
        assert (path / "figures" / name).stat().st_size > 5000
    saved = final_state(path)["pretrainer"]["autoencoder"]
    encoder = timm.create_model(f"local-dir:{path / 'encoder'}", pretrained=True)
    assert encoder.num_classes == 0
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, saved[key])


def test_a_checkpoint_of_an_older_version_is_refused(config, monkeypatch):
    saved = runs.RunFolder.save_checkpoint

    def without_counts(self, step, state):
        saved(self, step, {key: value for key, value in state.items() if key != "counts"})
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(runs.RunFolder, "save_checkpoint", without_counts)
        pretrain(config)
    with pytest.raises(InputError, match="is of an older version: start again in another `run_dir`"):
        pretrain(config, resume=True)


def test_a_finished_run_stays_as_it_is(config):
    path = pretrain(config)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert pretrain(config, resume=True) == path
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*")}


def test_resume_needs_the_run_folder_alone(config):
    path = pretrain(dataclasses.replace(config, policy="grid", patch_size=16))
    assert pretrain(PretrainConfig(run_dir=path), resume=True) == path


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(config, monkeypatch):
    save_state, calls = runs.save_state, []

    def full(folder, state):
        calls.append(folder)
        save_state(folder, state)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(runs, "save_state", full)
        pretrain(config)
    assert {p.name for p in (config.run_dir / "checkpoint").iterdir()} == {"step-0", "step-4"}
    pretrain(config, resume=True)


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(config, monkeypatch):
    step = Pretrainer.step

    def poisoned(self, images, mask):
        return step(self, images * (float("nan") if self.updates == 6 else 1.0), mask)

    monkeypatch.setattr(Pretrainer, "step", poisoned)
    with pytest.raises(RunError, match=r"at update 7 \(batch 6"):
        pretrain(config)
    assert {p.name for p in (config.run_dir / "checkpoint").iterdir()} == {"step-0", "step-4"}


@pytest.mark.slow
def test_two_workers_stop_when_asked_save_their_state_and_continue(config, monkeypatch):
    config = dataclasses.replace(config, num_workers=2, data_workers=1, steps=20, checkpoint_every=5)
    # The mask ratio rises with the updates of both workers.
    config = dataclasses.replace(config, initial_mask_ratio=0.25, guided_fraction=1.0, average=0.9)
    call = Recorder.__call__

    def interrupted(self, metrics):
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, metrics)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Recorder, "__call__", interrupted)
        pretrain(config)
    folder = max((config.run_dir / "checkpoint").iterdir(), key=lambda item: int(item.name[5:]))
    saved = final_state(config.run_dir)
    assert (
        saved["pretrainer"]["updates"] == saved["agent"]["writes"] == int(folder.name.removeprefix("step-"))
    )
    assert 8 <= saved["pretrainer"]["updates"] < 20
    path = pretrain(config, resume=True)
    state = final_state(path)
    assert state["pretrainer"]["updates"] == state["agent"]["writes"] == 20
    averaged, last = state["pretrainer"]["average"]["network"], state["pretrainer"]["autoencoder"]
    assert any(not torch.equal(value, last[name]) for name, value in averaged.items())
    assert comparable(path)[-1]["step"] == 20


def test_a_half_written_checkpoint_is_ignored(config, tmp_path):
    path = pretrain(config)
    shutil.copytree(path / "checkpoint" / "step-8", path / "checkpoint" / ".step-99.tmp")
    assert runs.RunFolder.open(path, "pretrain").checkpoint_step() == 8


def test_a_run_continues_without_the_environment_variable_for_its_data(config, discs, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setenv("AHM_DATA", str(discs.parent))
        stop_at(patch, 5)
        pretrain(dataclasses.replace(config, data="discs.npz"))
    assert pretrain(PretrainConfig(run_dir=config.run_dir), resume=True) == config.run_dir


def test_a_second_program_in_the_same_run_folder_is_refused(config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 6)
        pretrain(config)
    before = final_state(config.run_dir)
    with locked(config.run_dir), pytest.raises(InputError, match="another program is at work in"):
        pretrain(config, resume=True)
    assert_same(final_state(config.run_dir), before)
    assert final_state(pretrain(config, resume=True))["pretrainer"]["updates"] == 8


def test_the_encoder_of_the_averaged_weights_is_exported(config):
    path = pretrain(dataclasses.replace(config, policy="random", average=0.9))
    state = final_state(path)["pretrainer"]
    exported = load_encoder(path).state_dict()
    averaged = state["average"]["network"]
    assert all(torch.equal(value, averaged[name]) for name, value in exported.items())
    last = state["autoencoder"]
    assert any(not torch.equal(value, last[name]) for name, value in exported.items())

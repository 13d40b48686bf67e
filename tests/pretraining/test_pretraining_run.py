import dataclasses
import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from programs import assert_same, final_state, run, start, wait_for, write_discs

from ahm_gym.cli import command_line
from ahm_gym.device.choice import count_data_workers
from ahm_gym.errors import InputError, Interrupted, RunError
from ahm_gym.flags import flags_in
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.recorder import Recorder
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.training import Training
from ahm_gym.runs import folder as runs
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.storage import locked


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    return write_discs(tmp_path_factory.mktemp("data") / "discs.npz")


@pytest.fixture
def config(discs, tmp_path):
    return PretrainConfig(
        data=str(discs),
        image_size=(32,),
        steps=8,
        batch_size=8,
        checkpoint_every=4,
        run_dir=tmp_path / "run",
    )


class Stop(Exception):
    pass


def stop_at(monkeypatch, update):
    """Lets the process fall over in the middle of that update, as a kill would."""
    step = Pretrainer.step

    def falls_over(self, images, mask):
        if self.updates == update:
            raise Stop
        return step(self, images, mask)

    monkeypatch.setattr(Pretrainer, "step", falls_over)


def comparable(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "a3c", "reward": "relative"},
        {"policy": "a3c", "reward": "progress", "masking_steps": 3, "guided_fraction": 1.0},
        {"policy": "a3c", "initial_mask_ratio": 0.3, "masking_steps": 3},
        {"policy": "random"},
        {"policy": "random", "initial_mask_ratio": 0.1},
        {"policy": "block"},
        {"policy": "grid"},
        {"policy": "spread"},
        {"policy": "a3c", "spread_fraction": 0.5, "guided_fraction": 0.5, "guided_ramp": (0.0, 0.5)},
        {"policy": "hard_patches"},
        {"policy": "a3c", "model": "unet"},
        {"policy": "ahm2025", "model": "unet", "reward": "ahm2025", "agent_options": ("critic=relu6",)},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_run_that_fell_over_and_was_resumed_ends_bit_for_bit_as_one_that_was_not(
    config, options, monkeypatch, tmp_path
):
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
def test_the_mask_ratio_rises_over_the_run_whoever_masks(config, policy, monkeypatch):
    rising = dataclasses.replace(config, policy=policy, initial_mask_ratio=0.25, guided_fraction=1.0)
    assert counts_of_masked(rising, monkeypatch) == [[4 + i] for i in range(8)]


def test_the_mask_ratio_rises_with_the_updates_of_all_workers(config, tmp_path):
    path = pretrain(dataclasses.replace(config, num_workers=2, initial_mask_ratio=0.25, guided_fraction=1.0))
    state = final_state(path)
    assert state["pretrainer"]["updates"] == state["agent"]["writes"] == 8


def test_a_rising_mask_ratio_is_inspected_at_its_final_value_from_the_beginning_on(config, tmp_path):
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


@pytest.mark.parametrize(
    ("other", "own"),
    [("tiny", {"model": "unet"}), ("unet", {"model": "tiny"}), ("tiny", {"patch_size": 16}),
     ("tiny", {"normalise_target": True}), ("tiny", {"model": "small"})],
)  # fmt: skip
def test_the_autoencoder_of_another_model_or_size_is_refused(config, other, own, tmp_path):
    source = dataclasses.replace(config, policy="random", model=other, steps=1, run_dir=tmp_path / "source")
    pretrain(source)
    with pytest.raises(InputError, match=f"`model={other}`, .* differs from that of this run"):
        pretrain(dataclasses.replace(config, reconstructor=tmp_path / "source", **own))
    assert not config.run_dir.exists()


def test_options_of_the_agent_reach_it(config):
    config = dataclasses.replace(config, agent_options=("network=attention", "learning_rate=0.5"), steps=1)
    network = final_state(pretrain(config))["agent"]["network"]
    assert any(key.startswith("trunk.context.attn") for key in network)


@pytest.mark.parametrize(
    ("policy", "option", "message"),
    [
        ("a3c", "widht=3", "did you mean 'width'"),
        ("a3c", "width=2.5", "width=2.5: expected a value like 32"),
        ("a3c", "gamma=null", "gamma=None: expected a value like 1.0"),
        ("a3c", "learning_rate=-1", "`learning_rate` is -1.0: choose a positive number"),
        ("a3c", "seed=3", "unknown option of agent a3c 'seed'"),
        ("ppo", "policy=MlpPolicy", "unknown option of agent ppo 'policy'"),
        ("ppo", "device=cpu", "unknown option of agent ppo 'device'"),
        ("ppo", "n_steps=abc", "n_steps=abc: expected a value like 2048"),
        ("ppo", "batch_size=0", "cannot be made with `agent_options=batch_size=0`"),
        ("dqn", "exploration_fraction=x", "exploration_fraction=x: expected a value like 0.1"),
        ("td3", "action_noise=x", "action_noise=x: expected a value like None"),
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
    assert [p.name for p in (path / "checkpoint").iterdir()] == ["step-8"]
    assert list(path.glob("events/events.out.tfevents.*"))
    for name in ("masks.png", "curves.png"):
        assert (path / "figures" / name).stat().st_size > 5000
    saved = final_state(path)["pretrainer"]["autoencoder"]
    encoder = timm.create_model(f"local-dir:{path / 'encoder'}", pretrained=True)
    assert encoder.num_classes == 0
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, saved[key])


def test_figures_of_training_images_are_called_so(config, discs, tmp_path, capsys):
    np.savez(tmp_path / "alone.npz", train_images=np.load(discs)["train_images"])
    short = dataclasses.replace(config, policy="random", steps=1)
    pretrain(short)
    said = capsys.readouterr().err
    assert "discs: 38 images (24 train, 6 val, 8 test), 38 with labels\n" in said
    assert "validation" not in said
    pretrain(dataclasses.replace(short, data=str(tmp_path / "alone.npz"), run_dir=tmp_path / "alone"))
    assert (
        "alone has no validation images: pictures and metrics under val/ show training"
        in capsys.readouterr().err
    )


def test_a_checkpoint_of_an_older_version_is_refused(config, monkeypatch):
    saved = runs.RunFolder.save_checkpoint

    def without_counts(self, step, state):
        saved(self, step, {key: value for key, value in state.items() if key != "counts"})
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(runs.RunFolder, "save_checkpoint", without_counts)
        pretrain(config)
    with pytest.raises(InputError, match="is of an older version: begin anew in another `run_dir`"):
        pretrain(config, resume=True)


def test_events_are_cut_back_with_the_metrics(config, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 6)
        pretrain(config)
    assert comparable(config.run_dir)[-1]["step"] == 6
    path = pretrain(config, resume=True)
    events = EventAccumulator(str(path / "events"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))


def test_a_finished_run_stays_as_it_is(config):
    path = pretrain(config)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert pretrain(config, resume=True) == path
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*")}


def test_resume_needs_the_run_folder_alone(config):
    path = pretrain(dataclasses.replace(config, policy="grid", patch_size=16))
    assert pretrain(PretrainConfig(run_dir=path), resume=True) == path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("steps", 50, "`steps=50` differs from the 8"), ("patch_size", 4, "`patch_size=4` differs from the 8")],
)
def test_settings_that_differ_from_the_run_are_refused_with_the_reason(config, field, value, message):
    config = dataclasses.replace(config, policy="random")
    path = pretrain(config)
    with pytest.raises(InputError, match=message):
        pretrain(PretrainConfig(run_dir=path, **{field: value}), resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.2}, "mask ratio 1.2"),
        ({"initial_mask_ratio": 0.0}, "initial mask ratio 0.0"),
        ({"initial_mask_ratio": 1.0}, "initial mask ratio 1.0"),
        ({"initial_mask_ratio": float("nan")}, "initial mask ratio nan"),
        ({"initial_mask_ratio": 0.8}, "initial mask ratio 0.8 is above the final mask ratio 0.75"),
        ({"policy": "random", "masking_steps": 2}, "--masking-steps 2 goes with a learning agent"),
        ({"initial_mask_ratio": 0.25, "masking_steps": 5}, "masking_steps is 5: choose from 1 to the 4"),
        ({"patch_size": 5}, "patch size 5 does not divide"),
        ({"policy": "a3d"}, "did you mean 'a3c'"),
        ({"model": "smal"}, "did you mean 'small'"),
        ({"reward": "progres"}, "did you mean 'progress'"),
        ({"guided_fraction": 1.5}, "guided fraction 1.5"),
        ({"spread_fraction": -0.5}, "spread fraction -0.5"),
        ({"guided_ramp": (0.0, 1.0)}, "--guided-ramp has no share to go to"),
        ({"spread_ramp": (0.0, 1.0)}, "--spread-ramp has no share to go from"),
        (
            {"guided_fraction": 0.5, "guided_ramp": (0.8, 0.2)},
            "--guided-ramp: a ramp from progress 0.8 to 0.2",
        ),
        ({"steps": 0}, "--steps is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"num_workers": 10_000}, "--num-workers 10000 is too many"),
        ({"data_workers": -1}, "--data-workers is -1"),
        ({"learning_rate": float("inf")}, "learning rate is inf"),
        ({"image_size": (32, 32, 3)}, "image size 32 32 3"),
        ({"device": "tpu"}, "--device tpu"),
        ({"data": "nowhere.npz"}, "nowhere.npz"),
        ({"num_workers": 2, "policy": "random"}, "policy random takes 1"),
        ({"init": "nothing.pth"}, "nothing.pth does not exist"),
        ({"policy": "agent:nowhere"}, "holds no trained agent"),
        ({"policy": "ahm2025"}, "agent ahm2025 sees the raw image, and --model tiny shows embeddings"),
        ({"model": "unet", "image_size": (24,)}, "image size 24x24 does not fit the U-Net"),
        ({"model": "unet", "init": "nothing.pth"}, "a U-Net takes no published weights"),
        ({"reconstructor": Path("nowhere")}, "there is no folder"),
        ({"reconstructor": Path("nowhere"), "policy": "random"}, "policy random learns nothing"),
        ({"reconstructor": Path("nowhere"), "init": "nothing.pth"}, "both set the initial weights"),
        ({"agent_options": ("critic",)}, "write NAME=VALUE"),
        ({"agent_options": ("gama=1",)}, "did you mean 'gamma'"),
        ({"agent_options": ("gamma=high",)}, "gamma=high: expected a value like 1.0"),
        ({"agent_options": ("network=3",)}, "network=3: expected a value like 'conv'"),
        ({"agent_options": ("gamma=1",), "policy": "random"}, "not with policy random"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_refused_run_leaves_no_folder_behind(config, options, message, tmp_path):
    options = {key: Path(value) if key == "init" else value for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        pretrain(dataclasses.replace(config, **options))
    assert not (tmp_path / "run").exists()


def test_a_flag_that_was_given_counts_even_where_it_is_the_default(config):
    path = pretrain(config)
    given = flags_in(["--resume", "--steps", str(PretrainConfig.steps), "--no-normalise-target"])
    assert {"steps", "normalise_target"} <= given
    with pytest.raises(InputError, match=f"`steps={PretrainConfig.steps}` differs from the 8"):
        pretrain(PretrainConfig(run_dir=path), resume=True, given=given)


def test_an_existing_folder_is_refused_and_left_alone(config):
    config.run_dir.mkdir()
    (config.run_dir / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="exists already"):
        pretrain(config)
    assert [p.name for p in config.run_dir.iterdir()] == ["thesis.tex"]


def test_resuming_what_is_no_run_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        pretrain(config, resume=True)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="is not a run folder"):
        pretrain(config, resume=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"kind": "finetune"}))
    with pytest.raises(InputError, match="is a finetune run"):
        pretrain(config, resume=True)
    with pytest.raises(InputError, match="`resume` needs `run_dir`"):
        pretrain(PretrainConfig(), resume=True)


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
    assert [p.name for p in (config.run_dir / "checkpoint").iterdir()] == ["step-4"]
    pretrain(config, resume=True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), 2),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_too_little_memory_is_one_sentence(error, code, capsys):
    with pytest.raises(SystemExit if code else RuntimeError) as end, command_line():
        raise error
    if code:
        assert end.value.code == code
        assert capsys.readouterr().err == (
            "error: out of memory: choose a smaller --batch-size, --image-size or --model.\n"
        )


def test_what_may_not_be_opened_is_named(capsys):
    with pytest.raises(SystemExit, match="2"), command_line():
        raise PermissionError(13, "Permission denied", "/scans/a.png")
    assert capsys.readouterr().err.startswith("error: /scans/a.png: Permission denied: expected")


def test_the_rate_counts_the_updates_of_its_own_session(config, monkeypatch):
    logged = []
    monkeypatch.setattr(RunFolder, "log", lambda self, step, row: logged.append((step, row)))
    training = Training(dataclasses.replace(config, steps=120))
    recorder = Recorder(
        training.config, RunFolder(config.run_dir, {}), training.inspection, lambda *_: None, start=115
    )
    recorder.log_every, recorder.inspect_every, recorder.snapshot_steps = 7, 1000, set()
    monkeypatch.setattr(recorder, "inspect", lambda: None)
    monkeypatch.setattr(recorder, "checkpoint", lambda: None)
    recorder.sums.update(loss=3.0)
    recorder.counts.update(loss=3)
    for since in (10.0, 10.0, 10.0, 10.0, 2.0):
        recorder.since = time.monotonic() - since
        recorder({"loss": 1.0})
    ((first, row), (last, rest)) = logged
    assert (first, last) == (119, 120) and row["loss"] == rest["loss"] == 1.0
    assert row["images_per_second"] == pytest.approx(4 * config.batch_size / 10, rel=0.05)
    assert rest["images_per_second"] == pytest.approx(config.batch_size / 2, rel=0.05)


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(config, monkeypatch):
    step = Pretrainer.step

    def poisoned(self, images, mask):
        return step(self, images * (float("nan") if self.updates == 6 else 1.0), mask)

    monkeypatch.setattr(Pretrainer, "step", poisoned)
    with pytest.raises(RunError, match=r"at update 7 \(batch 6"):
        pretrain(config)
    assert [p.name for p in (config.run_dir / "checkpoint").iterdir()] == ["step-4"]


def test_pretraining_sees_the_train_split_only(config, discs, tmp_path):
    arrays = dict(np.load(discs))
    for split in ("val", "test"):
        arrays[f"{split}_images"] = np.zeros_like(arrays[f"{split}_images"])
    np.savez_compressed(tmp_path / "other.npz", **arrays)
    first = pretrain(dataclasses.replace(config, policy="random"))
    second = pretrain(
        dataclasses.replace(
            config, policy="random", data=str(tmp_path / "other.npz"), run_dir=tmp_path / "second"
        )
    )
    assert_same(final_state(first)["pretrainer"], final_state(second)["pretrainer"])


def test_loading_processes_change_nothing(config, tmp_path):
    config = dataclasses.replace(config, policy="random", steps=3)
    alone = pretrain(config)
    helped = pretrain(dataclasses.replace(config, data_workers=1, run_dir=tmp_path / "helped"))
    assert_same(final_state(alone), final_state(helped))


def test_a_run_can_start_from_published_weights(config, tmp_path):
    published = build_autoencoder("tiny", image_size=(32, 32), seed=7).state_dict()
    torch.save({"model": published}, tmp_path / "mae.pth")
    config = dataclasses.replace(
        config, init=tmp_path / "mae.pth", policy="random", steps=1, learning_rate=1e-9
    )
    saved = final_state(pretrain(config))["pretrainer"]["autoencoder"]
    for key, value in published.items():
        torch.testing.assert_close(saved[key], value, atol=1e-6, rtol=0)


def test_normalised_targets_give_another_loss(config, tmp_path):
    config = dataclasses.replace(config, policy="random", steps=1)
    raw = comparable(pretrain(config))
    normalised = comparable(
        pretrain(dataclasses.replace(config, normalise_target=True, run_dir=tmp_path / "normalised"))
    )
    assert raw[0]["val/loss"] != normalised[0]["val/loss"]


def test_two_workers_stop_when_asked_save_what_they_did_and_go_on(config, monkeypatch):
    config = dataclasses.replace(config, num_workers=2, data_workers=1, steps=20, checkpoint_every=5)
    call = Recorder.__call__

    def interrupted(self, metrics):
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, metrics)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Recorder, "__call__", interrupted)
        pretrain(config)
    (folder,) = (config.run_dir / "checkpoint").iterdir()
    saved = final_state(config.run_dir)
    assert (
        saved["pretrainer"]["updates"] == saved["agent"]["writes"] == int(folder.name.removeprefix("step-"))
    )
    assert 8 <= saved["pretrainer"]["updates"] < 20
    path = pretrain(config, resume=True)
    assert final_state(path)["pretrainer"]["updates"] == 20
    assert comparable(path)[-1]["step"] == 20


@pytest.fixture(scope="module")
def uninterrupted(discs, tmp_path_factory):
    """A run of the program that nothing disturbs, and its arguments."""
    arguments = (
        "--data",
        discs,
        "--image-size",
        32,
        "--steps",
        60,
        "--batch-size",
        8,
        "--checkpoint-every",
        10,
    )
    folder = tmp_path_factory.mktemp("programs")
    result = run("pretrain.py", *arguments, "--run-dir", "whole", cwd=folder)
    assert result.returncode == 0, result.stderr
    return arguments, final_state(folder / "whole")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_program_survives_a_signal(number, uninterrupted, tmp_path):
    arguments, expected = uninterrupted
    process = start("pretrain.py", *arguments, "--run-dir", "run", cwd=tmp_path)
    wait_for((tmp_path / "run" / "checkpoint" / "step-10").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert "continue with: --resume --run-dir run" in err
        assert "Traceback" not in err
    resumed = run("pretrain.py", "--resume", "--run-dir", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "Next: python examples/segment.py --encoder run" in resumed.stdout
    assert_same(final_state(tmp_path / "run"), expected)


def test_the_program_ends_with_2_and_one_sentence_on_bad_input(tmp_path):
    result = run("pretrain.py", "--data", "missing", cwd=tmp_path)
    assert result.returncode == 2
    assert (
        result.stderr.startswith("error: ")
        and "missing" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_quickstart_runs(tmp_path):
    result = run("quickstart.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    losses = [
        float(line.split("loss ")[1].split(",")[0]) for line in result.stdout.splitlines() if "loss" in line
    ]
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_a_checkpoint_that_was_being_written_is_passed_over(config, tmp_path):
    path = pretrain(config)
    shutil.copytree(path / "checkpoint" / "step-8", path / "checkpoint" / ".step-99.tmp")
    assert runs.RunFolder.open(path, "pretrain").checkpoint_step() == 8


def test_a_run_goes_on_without_the_variable_that_named_its_data(config, discs, monkeypatch):
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


def test_an_agent_is_paid_what_is_asked_for_or_else_its_own_reward(config, tmp_path):
    def reward_of(**options):
        return Training(dataclasses.replace(config, **options)).describe()["reward"]

    assert reward_of(policy="a3c") == "progress"
    assert reward_of(policy="a3c", reward="loss") == "loss"
    assert reward_of(policy="ppo") == reward_of(policy="random") == "relative"
    source = pretrain(dataclasses.replace(config, policy="random", steps=1, run_dir=tmp_path / "source"))
    assert reward_of(policy="a3c", reconstructor=source) == "relative"


@pytest.mark.parametrize(
    ("asked", "device", "threads", "expected"),
    [(None, "cpu", 16, 0), (None, "cuda", 16, 8), (None, "cuda", 3, 3), (2, "cpu", 1, 2), (0, "cuda", 16, 0)],
)
def test_images_are_loaded_beside_a_gpu_and_between_the_updates_of_a_cpu(
    asked, device, threads, expected, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert count_data_workers(asked, torch.device(device)) == expected

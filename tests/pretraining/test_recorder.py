import dataclasses
import time

import numpy as np
import pytest
from pretraining_runs import Stop, comparable, stop_at

from ahm_gym.pretraining.recorder import Recorder
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.training import Training
from ahm_gym.runs.folder import RunFolder


def test_metrics_of_training_images_are_announced_as_such(config, discs, tmp_path, capsys):
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


def test_the_rate_counts_only_updates_since_the_run_was_resumed(config, monkeypatch):
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

import errno
import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ahm_gym.errors import InputError
from ahm_gym.runs import folder as runs
from ahm_gym.runs.folder import RunFolder, resume_flags


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "run", {"kind": "pretrain", "steps": 10})
    yield run
    run.close()


def event_steps(run, name):
    """The steps that TensorBoard reads of a scalar, sorted: files of the same second come in any order."""
    run.close()
    events = EventAccumulator(str(run.path / "events")).Reload()
    return sorted(event.step for event in events.Scalars(name)) if name in events.Tags()["scalars"] else []


def checkpoints(run):
    return sorted(path.name for path in (run.path / "checkpoint").iterdir())


def test_a_new_run_folder_can_be_opened_with_its_settings(tmp_path):
    path = tmp_path / "deep" / "run"
    RunFolder.create(path, {"kind": "pretrain", "image_size": (64, 64)})
    opened = RunFolder.open(path, "pretrain")
    assert opened.path == path
    assert opened.config == {"kind": "pretrain", "image_size": [64, 64]}
    assert {item.name for item in path.iterdir()} == {"config.json", ".lock"}


def test_an_empty_folder_becomes_a_run_folder(tmp_path):
    assert RunFolder.create(tmp_path, {"kind": "finetune"}).path == tmp_path


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already: choose another `run_dir`"):
        RunFolder.create(tmp_path, {"kind": "pretrain"})
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_a_run_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="exists already"):
        RunFolder.create(file, {"kind": "pretrain"})
    with pytest.raises(InputError, match="cannot be created"):
        RunFolder.create(file / "run", {"kind": "pretrain"})


def test_what_a_kill_before_the_run_began_has_left_is_no_run(tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"ki')
    (tmp_path / ".lock").touch()
    RunFolder.create(tmp_path, {"kind": "pretrain"})
    assert {item.name for item in tmp_path.iterdir()} == {"config.json", ".lock"}


def test_of_programs_that_find_a_folder_free_together_one_gets_it(tmp_path, monkeypatch):
    def slow(path, flag):
        path.mkdir(parents=True, exist_ok=True)
        start.wait()

    start = threading.Barrier(8)
    monkeypatch.setattr(runs, "make_folder", slow)

    def begin(number):
        try:
            return RunFolder.create(tmp_path / "run", {"kind": "pretrain", "number": number}).config["number"]
        except InputError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [number for number in pool.map(begin, range(8)) if number is not None]
    assert [RunFolder.open(tmp_path / "run", "pretrain").config["number"]] == won


def test_flags_to_resume_with_can_be_pasted_into_a_shell():
    assert resume_flags(Path("runs/my scans-1")) == "`resume` `run_dir='runs/my scans-1'`"
    assert resume_flags(Path("runs/scans-1")) == "`resume` `run_dir=runs/scans-1`"


def test_a_full_disk_leaves_no_run_folder_behind(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write_atomically", fail)
    with pytest.raises(OSError, match="No space"):
        RunFolder.create(tmp_path / "run", {"kind": "pretrain"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run folder, it has no config.json"),
        ("{", "is not JSON"),
        ("[1]", "is not a run folder"),
        ("{}", "is not a run folder"),
        ('{"kind": ["pretrain"]}', "is not a run folder"),
        ('{"a": ' * 100_000, "is nested too deeply: restore the file"),
        ('"\\ud800"', "is not a run folder"),
        ('{"kind": "finetune"}', "is a finetune run: give the folder of a pretrain run"),
    ],
)
def test_a_folder_without_a_run_of_that_kind_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        RunFolder.open(tmp_path, "pretrain")


def test_a_missing_run_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        RunFolder.open(tmp_path / "nowhere", "pretrain")
    assert not (tmp_path / "nowhere").exists()


def test_metrics_are_read_in_order_with_none_for_numbers_that_are_not_finite(run):
    run.log(1, {"loss": 0.5, "reward": float("nan")})
    run.log(1, {"val/loss": np.float32(2), "bound": float("inf")})
    assert run.metrics() == [
        {"step": 1, "loss": 0.5, "reward": None},
        {"step": 1, "val/loss": 2.0, "bound": None},
    ]
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_metrics_reach_tensorboard(run):
    for step in range(3):
        run.log(step, {"loss": 0.5, "odd": float("nan")})
    assert event_steps(run, "loss") == [0, 1, 2]
    assert event_steps(run, "odd") == []


def test_an_incomplete_last_line_is_not_a_row(run):
    run.log(1, {"loss": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in run.metrics()] == [1]


def test_logging_is_cheap(run):
    metrics = {f"metric {i}": 0.1 for i in range(10)}
    run.log(0, metrics)
    began = time.perf_counter()
    for step in range(200):
        run.log(step, metrics)
    assert (time.perf_counter() - began) / 200 < 0.01


def test_a_checkpoint_comes_back_and_only_the_one_before_it_is_kept(run):
    run.save_checkpoint(0, {"weight": torch.zeros(2)})
    run.save_checkpoint(5, {"weight": torch.zeros(2)})
    run.save_checkpoint(10, {"weight": torch.ones(2)})
    assert checkpoints(run) == ["step-10", "step-5"]
    step, state = RunFolder.open(run.path, "pretrain").load_checkpoint() or pytest.fail("no checkpoint")
    assert step == 10
    assert torch.equal(state["weight"], torch.ones(2))


def test_the_checkpoint_of_a_step_can_be_written_again(run):
    run.save_checkpoint(3, {"value": 1})
    run.save_checkpoint(3, {"value": 2})
    assert run.load_checkpoint() == (3, {"value": 2})


def test_without_a_checkpoint_there_is_none_and_the_log_starts_over(run):
    run.log(0, {"loss": 1.0})
    assert run.checkpoint_step() is None
    assert run.load_checkpoint() is None
    assert run.metrics() == []
    assert event_steps(run, "loss") == []


def test_the_older_checkpoint_is_there_until_the_new_one_is_complete(run, monkeypatch):
    run.save_checkpoint(1, {"value": 1})
    seen = []
    save_state = runs.save_state

    def watch(folder, state):
        seen.append(checkpoints(run))
        save_state(folder, state)
        seen.append(checkpoints(run))

    monkeypatch.setattr(runs, "save_state", watch)
    run.save_checkpoint(2, {"value": 2})
    assert seen == [[".step-2.tmp", "step-1"]] * 2
    assert checkpoints(run) == ["step-1", "step-2"]


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_temporary_folder(run, monkeypatch):
    run.save_checkpoint(1, {"value": 1})

    def fail(folder, state):
        (folder / "state.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_state", fail)
        with pytest.raises(OSError, match="No space") as caught:
            run.save_checkpoint(2, {"value": 2})
    assert caught.value.errno == errno.ENOSPC
    assert checkpoints(run) == ["step-1"]
    assert run.load_checkpoint() == (1, {"value": 1})


def test_after_a_kill_the_newest_complete_checkpoint_counts(run):
    run.save_checkpoint(9, {"value": 9})
    folder = run.path / "checkpoint"
    # The state after a kill between rename and deletion, and during the next write.
    (folder / "step-10").mkdir()
    runs.save_state(folder / "step-10", {"value": 10})
    (folder / ".step-11.tmp").mkdir()
    (folder / ".step-11.tmp" / "state.safetensors").write_bytes(b"half")
    (run.path / ".encoder.tmp").mkdir()
    (run.path / ".agent.old").mkdir()
    (run.path / ".metrics.jsonl.tmp").write_text("half")
    assert run.checkpoint_step() == 10
    assert run.load_checkpoint() == (10, {"value": 10})
    assert checkpoints(run) == ["step-10", "step-9"]
    assert {item.name for item in run.path.iterdir()} == {".lock", "agent", "checkpoint", "config.json"}


def test_a_damaged_checkpoint_is_named(run):
    run.save_checkpoint(4, {"value": 4})
    (run.path / "checkpoint" / "step-4" / "state.json").write_text("")
    with pytest.raises(InputError, match=r"step-4 holds no readable state"):
        run.load_checkpoint()


def test_the_checkpoint_before_a_damaged_one_is_used_and_a_note_says_so(run, capsys):
    for step in (2, 4):
        run.save_checkpoint(step, {"value": step})
    (run.path / "checkpoint" / "step-4" / "state.safetensors").write_bytes(b"half")
    assert run.load_checkpoint() == (2, {"value": 2})
    assert re.search(
        r"note: .*step-4 holds no readable state.* Step 2 is used instead\.", capsys.readouterr().err
    )
    run.save_checkpoint(3, {"value": 3})
    assert checkpoints(run) == ["step-2", "step-3"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("step-99999", "step-99999 holds step 4: rename it to step-4"), ("step-10", "step-10 holds step 4")],
)
def test_a_folder_of_another_step_is_no_checkpoint_of_it(run, name, message):
    run.save_checkpoint(4, {"value": 4})
    (run.path / "checkpoint" / "step-4").rename(run.path / "checkpoint" / name)
    assert not run.has_finished()
    with pytest.raises(InputError, match=message):
        run.load_checkpoint()


def test_an_empty_folder_does_not_count_as_a_finished_run(run):
    (run.path / "checkpoint" / "step-10").mkdir(parents=True)
    assert not run.has_finished()
    assert run.load_checkpoint() is None


def test_a_checkpoint_beyond_the_last_step_is_refused(run):
    run.save_checkpoint(11, {"value": 11})
    with pytest.raises(InputError, match="beyond the 10 steps of this run: restore .*config.json"):
        run.load_checkpoint()


def nested(depth):
    return '{"a": ' * depth + "0" + "}" * depth


@pytest.mark.parametrize(
    "content",
    ["[1, 2]", "3", '{"dict": 3}', '{"tensor": ["a"]}', '{"items": [3]}', '{"float": null}', '{"a": 1, "b": 2}',
     '{"tensor": "state/nowhere"}', nested(100_000)],
)  # fmt: skip
def test_a_state_that_is_none_is_named_with_its_folder(run, content):
    run.save_checkpoint(4, {"value": 4})
    (run.path / "checkpoint" / "step-4" / "state.json").write_text(content)
    with pytest.raises(InputError, match="step-4 holds no readable state"):
        run.load_checkpoint()


def test_damaged_lines_of_the_metrics_are_left_out_and_a_note_says_so(run, capsys):
    run.log(1, {"loss": 0.5})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[]\n{"loss": 1}\n{"step": 2, "loss": "low"}\n')
    run.log(3, {"loss": 0.25})
    assert [row["step"] for row in run.metrics()] == [1, 3]
    run.save_checkpoint(3, {})
    assert run.load_checkpoint() == (3, {})
    assert capsys.readouterr().err.count("note: 4 damaged lines of") == 1


def test_a_link_in_the_place_of_a_subfolder_is_replaced_and_its_target_is_kept(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    run.log(1, {"loss": 0.5})
    run.save_checkpoint(1, {})
    run.close()
    for name in ("events", "encoder"):
        shutil.rmtree(run.path / name, ignore_errors=True)
        (run.path / name).symlink_to(tmp_path / "mine")
    for _ in range(2):
        assert run.load_checkpoint() == (1, {})
        run.replace("encoder", lambda folder: (folder / "one").write_text("1"))
    assert event_steps(run, "loss") == [1]
    assert not (run.path / "encoder").is_symlink()
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_resuming_removes_what_was_logged_after_the_checkpoint(run):
    for step in range(6):
        run.log(step, {"loss": float(step), "odd": float("nan")})
        if step == 3:
            run.save_checkpoint(step, {})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run.close()
    again = RunFolder.open(run.path, "pretrain")
    again.load_checkpoint()
    assert [row["step"] for row in again.metrics()] == [0, 1, 2, 3]
    assert event_steps(again, "loss") == [0, 1, 2, 3]
    again.log(4, {"loss": 40.0})
    assert again.metrics()[-1] == {"step": 4, "loss": 40.0}
    assert event_steps(again, "loss") == [0, 1, 2, 3, 4]


def test_a_sub_folder_is_replaced_as_a_whole(run):
    run.replace("encoder", lambda folder: (folder / "one").write_text("1"))
    run.replace("encoder", lambda folder: (folder / "two").write_text("2"))
    assert [item.name for item in (run.path / "encoder").iterdir()] == ["two"]
    assert {item.name for item in run.path.iterdir()} == {".lock", "config.json", "encoder"}


def test_a_closed_run_folder_logs_again(run):
    run.log(1, {"loss": 1.0})
    run.close()
    run.close()
    run.log(2, {"loss": 2.0})
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_the_settings_are_plain_json(run):
    assert json.loads((run.path / "config.json").read_text()) == {"kind": "pretrain", "steps": 10}

"""A pretraining run on Weights & Biases, with a fake of its library: nothing reaches a network."""

import dataclasses
import json
import shutil
import sys
import types

import pytest

from ahm_gym.errors import InputError, Interrupted, RunError
from ahm_gym.pretraining.config import Pretrain, PretrainConfig
from ahm_gym.pretraining.recipes import run_program
from ahm_gym.pretraining.run import logged_to
from ahm_gym.runs.folder import RunFolder


class Library(types.ModuleType):
    """Stands in for the package wandb; remembers its runs."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.refuses = [], False

    def init(self, **options):
        if self.refuses:
            raise self.Error("api_key not configured (no-tty)")
        self.runs.append(Run(options))
        return self.runs[-1]


class Run:
    def __init__(self, options):
        self.options, self.rows, self.axes, self.exit_codes = options, [], [], []

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    return library


def settings(config, **more):
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(PretrainConfig)}
    return Pretrain(**values | more)


def program(config, **more):
    return run_program(settings(config, **more), set(more))


def test_a_run_is_logged_once_more_and_a_resumed_one_continues_there(config, library):
    path = program(config, wandb="masks")
    (run,) = library.runs
    saved = json.loads((path / "wandb.json").read_text())
    assert saved == {"project": "masks", "id": run.options["id"]}
    assert run.options["project"] == "masks" and run.options["dir"] == str(path)
    assert run.options["config"] == json.loads((path / "config.json").read_text())
    assert run.axes == [("*", "step")] and run.exit_codes == [0]
    rows = RunFolder.open(path, "pretrain").metrics()
    assert [row["step"] for row in run.rows] == [row["step"] for row in rows]
    assert run.rows[1]["rollout/ep_rew_mean"] == rows[1]["reward"] and "reward" not in run.rows[1]

    shutil.rmtree(path / "checkpoint" / "step-8")
    with pytest.raises(InputError, match="`wandb=other` differs from the masks that this run logs to"):
        program(PretrainConfig(run_dir=path), resume=True, wandb="other")
    program(PretrainConfig(run_dir=path), resume=True)
    _, again = library.runs
    assert (again.options["id"], again.options["project"]) == (saved["id"], "masks")
    assert again.options["resume"] == "allow" and {row["step"] for row in again.rows} == {5, 6, 7, 8}


@pytest.mark.slow
def test_a_run_without_a_project_has_the_same_folder_and_starts_nothing(config, library):
    with_it = program(config, wandb="masks")
    library.runs.clear()
    without = program(dataclasses.replace(config, run_dir=config.run_dir.with_name("plain")))
    assert not library.runs
    names = [{item.name for item in path.iterdir()} for path in (with_it, without)]
    assert names[0] - names[1] == {"wandb.json"} and not names[1] - names[0]
    kept = [json.loads((path / "config.json").read_text()) for path in (with_it, without)]
    assert "wandb" not in kept[1] and kept[0] | {"run_dir": ""} == kept[1] | {"run_dir": ""}


@pytest.mark.parametrize(
    ("absent", "name", "message"),
    [(True, "masks", r'not installed: pip install "ahm-gym\[wandb\]"'), (False, "", "`wandb` is empty")],
)
def test_a_project_that_cannot_be_used_is_refused_before_there_is_a_folder(
    config, library, monkeypatch, absent, name, message
):
    if absent:
        monkeypatch.setitem(sys.modules, "wandb", None)
    for more in ({}, {"recipe": "ahm2025"}):
        with pytest.raises(InputError, match=message):
            run_program(settings(config, wandb=name, **more), {"wandb"})
    assert not config.run_dir.exists()


def test_a_library_that_nobody_is_logged_in_to_ends_the_run_with_the_way_out(tmp_path, library):
    library.refuses = True
    run = RunFolder.create(tmp_path / "run", {"kind": "pretrain", "steps": 8})
    with pytest.raises(RunError, match="`wandb login`, or set WANDB_MODE=offline"), logged_to("masks", run):
        raise AssertionError("the run begins")


@pytest.mark.parametrize(("error", "code"), [(RunError("broken"), 1), (Interrupted("stopped", 2), 0)])
def test_a_run_that_fails_is_marked_as_failed_and_one_that_is_stopped_is_not(tmp_path, library, error, code):
    run = RunFolder.create(tmp_path / "run", {"kind": "pretrain", "steps": 8})
    with pytest.raises(type(error)), logged_to("masks", run):
        raise error
    assert library.runs[0].exit_codes == [code]


@pytest.mark.slow
def test_the_stages_of_a_recipe_are_runs_of_one_project(discs, tmp_path, library):
    program(
        PretrainConfig(), data=str(discs), image_size=32, steps=2, run_dir=tmp_path / "run", recipe="ahm2025",
        wandb="masks",
    )  # fmt: skip
    assert [run.options["name"] for run in library.runs] == ["1-reconstructor", "2-agent", "3-pretraining"]
    assert {run.options["project"] for run in library.runs} == {"masks"}
    assert len({run.options["id"] for run in library.runs}) == 3

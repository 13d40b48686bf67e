import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
from programs import assert_same, final_state, run, start, wait_for

from ahm_gym.errors import InputError, Interrupted
from ahm_gym.model.encoders import find_encoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.recipes import RECIPES, configure, is_recipe_run, run_recipe
from ahm_gym.pretraining.recorder import Recorder
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.inputs import resolve

STAGES = ("1-reconstructor", "2-agent", "3-pretraining")
NAME = "ahm2025"


@pytest.fixture
def config(discs, tmp_path):
    return PretrainConfig(data=str(discs), image_size=(32,), steps=2, batch_size=4, run_dir=tmp_path / "run")


@pytest.fixture(scope="module")
def whole(discs, tmp_path_factory):
    """The arguments, the folder and the output of an uninterrupted run of the program."""
    arguments = ("--recipe", NAME, "--data", discs, "--image-size", 32, "--steps", 16, "--batch-size", 4,
                 "--checkpoint-every", 4)  # fmt: skip
    folder = tmp_path_factory.mktemp("programs")
    result = run("pretrain.py", *arguments, "--run-dir", "whole", cwd=folder)
    assert result.returncode == 0, result.stderr
    return arguments, folder / "whole", result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"), [("2-agent", signal.SIGTERM), ("3-pretraining", signal.SIGKILL)]
)
def test_the_program_continues_exactly_in_the_stage_where_it_was_stopped(whole, stage, number, tmp_path):
    arguments, expected, _ = whole
    process = start("pretrain.py", *arguments, "--run-dir", "run", cwd=tmp_path)
    wait_for((tmp_path / "run" / stage / "checkpoint" / "step-4").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert f"stopped in stage {stage}; continue with: --resume --run-dir run" in err
    later = STAGES[STAGES.index(stage) + 1 :]
    assert not any((tmp_path / "run" / name).exists() for name in later)
    resumed = run("pretrain.py", "--resume", "--run-dir", "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for name in STAGES:
        assert_same(final_state(tmp_path / "run" / name), final_state(expected / name))


def test_the_progress_names_the_stage_and_the_output_ends_with_the_next_command(whole):
    _, path, result = whole
    for number, name in enumerate(("reconstructor", "agent", "pretraining"), start=1):
        assert f"ahm2025 {number}/3 {name} 16/16 (100%)" in result.stderr
    assert f"Next: ahm-gym finetune --encoder {path.name}" in result.stdout


def test_the_agent_learns_against_the_frozen_reconstructor_and_then_masks_for_a_new_u_net(whole):
    _, path, _ = whole
    reconstructor, agent, pretraining = (final_state(path / stage) for stage in STAGES)
    assert_same(agent["pretrainer"]["autoencoder"], reconstructor["pretrainer"]["autoencoder"])
    assert_same(pretraining["agent"]["policy"]["agent"], agent["agent"])
    weight = "encoder.conv_0.conv_0.conv.weight"
    assert not (
        pretraining["pretrainer"]["autoencoder"][weight] == agent["pretrainer"]["autoencoder"][weight]
    ).all()
    rows = [json.loads(line) for line in (path / "3-pretraining" / "metrics.jsonl").read_text().splitlines()]
    assert {row["guided"] for row in rows if "guided" in row} == {1.0}
    configs = (json.loads((path / stage / "config.json").read_text()) for stage in STAGES)
    assert {config["spread_fraction"] for config in configs} == {0.0}


def test_the_u_net_of_a_recipe_is_fine_tuned_and_probed(whole, tmp_path, real_pictures):
    _, path, _ = whole
    found = find_encoder(path)
    assert (found.model, found.path) == ("unet", path / "3-pretraining" / "encoder")
    flags = ["--encoder", path, "--labels", 4]
    tuned = run("segment.py", *flags, "--steps", 4, "--run-dir", "tuned", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    results = json.loads((tmp_path / "tuned" / "results.json").read_text())
    assert (results["num_cases"], results["config"]["model"]) == (8, "unet")
    assert (tmp_path / "tuned" / "figures" / "overlays.png").stat().st_size > 10_000
    probed = run("segment.py", *flags, "--probe", "--run-dir", "probed", cwd=tmp_path)
    assert probed.returncode == 0, probed.stderr
    assert json.loads((tmp_path / "probed" / "results.json").read_text())["patch_dice"] > 0.5


def test_a_finished_recipe_stays_as_it_is(whole):
    _, path, _ = whole
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert run_recipe(None, PretrainConfig(run_dir=path), resume=True) == path
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_a_signal_in_the_last_step_of_a_stage_stops_before_the_next(config, monkeypatch):
    call = Recorder.__call__

    def interrupted(self, metrics):
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)
        return call(self, metrics)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped in stage 1-reconstructor"):
        patch.setattr(Recorder, "__call__", interrupted)
        run_recipe(NAME, config)
    assert not (config.run_dir / "2-agent").exists()
    run_recipe(None, PretrainConfig(run_dir=config.run_dir), resume=True)
    assert (config.run_dir / "3-pretraining" / "encoder" / "model.safetensors").is_file()


def test_a_recipe_continues_exactly_in_another_folder(config, monkeypatch, tmp_path):
    call = Recorder.__call__

    def interrupted(self, metrics):
        if self.step == 0 and self.run.path.name == "3-pretraining":
            signal.raise_signal(signal.SIGINT)
        return call(self, metrics)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped in stage 3-pretraining"):
        patch.setattr(Recorder, "__call__", interrupted)
        run_recipe(NAME, config)
    moved = config.run_dir.rename(tmp_path / "moved")
    run_recipe(None, PretrainConfig(run_dir=moved), resume=True)
    run_recipe(NAME, dataclasses.replace(config, run_dir=tmp_path / "whole"))
    for name in STAGES:
        assert_same(final_state(moved / name), final_state(tmp_path / "whole" / name))


def test_a_stage_without_a_config_is_started_again(config, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("ahm_gym.pretraining.recipes.pretrain", lambda *_, **__: 1 / 0)
        run_recipe(NAME, config)
    (config.run_dir / "1-reconstructor").mkdir()
    (config.run_dir / "1-reconstructor" / ".config.json.tmp").write_text("{")
    assert is_recipe_run(config.run_dir)
    with pytest.raises(InputError, match="has not reached its last stage yet: .*`resume`"):
        resolve(FinetuneConfig(encoder=str(config.run_dir)))
    run_recipe(None, PretrainConfig(run_dir=config.run_dir), resume=True)


def test_settings_go_to_the_stages_that_they_concern():
    settings = {"steps": 5, "image_size": [320], "patch_size": 16, "num_workers": 2, "reward": "ahm2025:20",
                "agent_options": ["critic=relu6"], "initial_mask_ratio": 0.25}  # fmt: skip
    stages = [stage.config for stage in configure(NAME, settings, Path("/runs/R"))]
    assert {(config.steps, config.image_size, config.patch_size, config.model) for config in stages} == {
        (5, (320,), 16, "unet")
    }
    assert [config.num_workers for config in stages] == [1, 2, 1]
    assert {(config.initial_mask_ratio, config.mask_ratio) for config in stages} == {(0.25, 0.75)}
    assert [config.reward for config in stages] == [None, "ahm2025:20", None]
    assert [config.agent_options for config in stages] == [(), ("critic=relu6",), ()]
    assert [config.policy for config in stages] == ["random", "ahm2025", "agent:/runs/R/2-agent"]
    assert stages[1].reconstructor == Path("/runs/R/1-reconstructor")
    assert {config.batch_size for config in stages} == {12}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_differs_in_its_stages_names(name):
    names = [stage.name for stage in RECIPES[name]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "random"}, "`policy` does not go with `recipe=ahm2025`"),
        ({"model": "small"}, "`model` does not go with `recipe=ahm2025`"),
        ({"guided_fraction": 0.5}, "`guided_fraction` does not go with"),
        ({"guided_ramp": (0.0, 0.5)}, "`guided_ramp` does not go with"),
        ({"spread_fraction": 1.0}, "`spread_fraction` does not go with"),
        ({"spread_ramp": (0.0, 0.5)}, "`spread_ramp` does not go with"),
        (
            {"patch_size": 1, "image_size": (48,), "agent_options": ("critic=cubic",)},
            "unknown critic 'cubic'",
        ),
        ({"image_size": (36,), "patch_size": 12}, "does not fit the U-Net"),
        ({"image_size": (48,), "patch_size": 12}, "agent ahm2025 sees the raw image"),
        ({"steps": 0}, "`steps` is 0"),
        ({"initial_mask_ratio": 0.9}, "initial mask ratio 0.9 is above"),
        ({"reward": "progres"}, "did you mean 'progress'"),
    ],
)
def test_a_refused_recipe_leaves_no_folder_behind(config, options, message):
    with pytest.raises(InputError, match=message):
        run_recipe(NAME, dataclasses.replace(config, **options))
    assert not config.run_dir.exists()


def test_an_unknown_recipe_is_refused_with_the_nearest_name(config):
    with pytest.raises(InputError, match="did you mean 'ahm2025'"):
        run_recipe("ahm2024", config)


def test_flags_that_differ_from_the_run_are_refused_by_name(whole):
    _, path, _ = whole
    with pytest.raises(InputError, match="`steps` differs from what this run was started with"):
        run_recipe(None, PretrainConfig(run_dir=path, steps=5), resume=True)
    with pytest.raises(InputError, match="`seed` differs"):
        run_recipe(None, PretrainConfig(run_dir=path), resume=True, given={"seed"})
    with pytest.raises(InputError, match="`recipe=other` differs from the ahm2025"):
        run_recipe("other", PretrainConfig(run_dir=path), resume=True)
    with pytest.raises(InputError, match="`resume` needs `run_dir`"):
        run_recipe(NAME, PretrainConfig(), resume=True)
    assert run_recipe(NAME, PretrainConfig(run_dir=path, steps=16), resume=True) == path


def test_a_recipe_that_cannot_be_used_ends_with_2_and_one_sentence(tmp_path):
    result = run("pretrain.py", "--recipe", NAME, "--policy", "a3c", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: --policy does not go with --recipe ahm2025")
    assert list(tmp_path.iterdir()) == []


def test_the_run_of_a_recipe_is_recognised_among_other_folders(whole, tmp_path):
    _, path, _ = whole
    assert is_recipe_run(path)
    assert not is_recipe_run(path / "2-agent")
    assert not is_recipe_run(tmp_path)
    shutil.copy(path / "config.json", tmp_path)
    (tmp_path / "config.json").write_text("{torn")
    assert not is_recipe_run(tmp_path)

"""A sweep: its trials, their scores on val, how it continues, and its report."""

import csv
import dataclasses
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from programs import ROOT, write_discs

import ahm_gym
from ahm_gym.cli import main
from ahm_gym.errors import InputError, Interrupted, RunError
from ahm_gym.flags import nested_flag
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.segmentation.probe import Probe
from ahm_gym.sweeping import program, scores
from ahm_gym.sweeping.config import FINETUNING, SweepConfig
from ahm_gym.sweeping.program import best_of, run_sweep
from ahm_gym.sweeping.report import as_csv, commands, write_report
from ahm_gym.sweeping.space import parse_space, settings_of_trial
from ahm_gym.sweeping.study import DONE, FAILED, PRUNED, ended_trials, next_trial, open_study

SMALL = PretrainConfig(steps=2, batch_size=4, image_size=32)


@pytest.fixture
def config(discs, tmp_path):
    return SweepConfig(
        data=str(discs),
        policy="random",
        search=("learning_rate=1e-4..1e-2:log", "mask_ratio=0.5,0.75"),
        trials=4,
        labels=8,
        device="cpu",
        pretrain=SMALL,
        finetune=dataclasses.replace(FINETUNING, steps=2, batch_size=2),
        out=tmp_path / "out",
    )


@pytest.fixture
def quick(monkeypatch):
    """Replaces training by a score that follows from the settings; yields the settings of every call."""
    calls = []

    def score(objective, pretraining, finetuning, interrupt):
        calls.append((objective, pretraining, finetuning))
        return 1 - abs(np.log10(pretraining.learning_rate) + 3) - 0.1 * pretraining.seed

    monkeypatch.setattr(program, "trained", lambda config, interrupt: config.run_dir)
    monkeypatch.setattr(program, "score_of", score)
    return calls


def history(out):
    """Settings, score and state of every trial."""
    return [(trial.params, trial.value, trial.state) for trial in ended_trials(open_study(out))]


def test_every_trial_has_a_score_and_the_best_one_is_found(config, quick):
    config = dataclasses.replace(config, trials=25)
    assert run_sweep(config) == config.out
    found = history(config.out)
    assert len(found) == 25 and {state for *_, state in found} == {DONE}
    assert all(1e-4 <= params["learning_rate"] <= 1e-2 for params, *_ in found)
    assert {params["mask_ratio"] for params, *_ in found} == {"0.5", "0.75"}
    score, best = best_of(config.out)
    assert score == max(value for _, value, _ in found) > 0.9
    assert score == pytest.approx(1 - abs(np.log10(best["learning_rate"]) + 3))


def test_the_same_seed_proposes_the_same_trials_and_another_seed_others(config, quick, tmp_path):
    config = dataclasses.replace(config, trials=12)
    outs = [tmp_path / name for name in ("one", "two", "three")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        run_sweep(dataclasses.replace(config, out=out, seed=seed))
    one, two, three = map(history, outs)
    assert one == two and one[0] != three[0]


def test_more_trials_continue_a_sweep_and_repeat_none(config, quick, tmp_path):
    run_sweep(dataclasses.replace(config, trials=12))
    whole = history(config.out)
    part = dataclasses.replace(config, out=tmp_path / "part")
    run_sweep(dataclasses.replace(part, trials=11))
    quick.clear()
    run_sweep(dataclasses.replace(part, trials=12))
    assert len(quick) == 1 and history(part.out) == whole
    quick.clear()
    run_sweep(dataclasses.replace(part, trials=12))
    assert quick == [] and history(part.out) == whole


def test_a_trial_that_was_stopped_is_run_again_with_its_settings(config, quick, monkeypatch, tmp_path):
    run_sweep(config)
    whole = history(config.out)
    stopped = dataclasses.replace(config, out=tmp_path / "stopped")
    train = program.trained

    def stop(settings, interrupt):
        if len(quick) == len(whole) + 2:
            interrupt.signal = 15
            raise Interrupted("stopped", 15)
        return train(settings, interrupt)

    with monkeypatch.context() as patch:
        patch.setattr(program, "trained", stop)
        with pytest.raises(Interrupted, match="2 of 4 trials are left; run the same command again"):
            run_sweep(stopped)
    assert history(stopped.out) == whole[:2] and (stopped.out / "report.html").is_file()
    run_sweep(stopped)
    assert history(stopped.out) == whole
    assert [trial.number for trial in ended_trials(open_study(stopped.out))] == [0, 1, 2, 3]


def test_a_trial_that_was_killed_between_two_settings_is_completed(config, quick):
    config.out.mkdir()
    run_sweep(dataclasses.replace(config, trials=1))
    trial = next_trial(open_study(config.out), 2, config.seed)
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    run_sweep(dataclasses.replace(config, trials=2))
    params, value, state = history(config.out)[1]
    assert params["learning_rate"] == rate and "mask_ratio" in params and state == DONE and value is not None


def test_a_trial_that_fails_is_recorded_with_its_sentence(config, quick, monkeypatch):
    score = program.score_of

    def fail(objective, pretraining, finetuning, interrupt):
        if len(quick) == 1:
            quick.append(None)
            raise InputError("`mask_ratio=0.5` is too odd: choose another.")
        return score(objective, pretraining, finetuning, interrupt)

    monkeypatch.setattr(program, "score_of", fail)
    run_sweep(config)
    assert [state for *_, state in history(config.out)] == [DONE, FAILED, DONE, DONE]
    with (config.out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "failed", "done", "done"]
    assert rows[1]["note"] == "`mask_ratio=0.5` is too odd: choose another." and rows[1]["probe"] == "\u2013"
    assert "too odd" in (config.out / "trials.md").read_text()
    assert "Failed, and not shown: 1" in (config.out / "report.html").read_text()


def test_a_full_disk_is_no_fault_of_a_trial(config, quick, monkeypatch):
    run_sweep(config)
    whole = history(config.out)
    out = config.out.with_name("full")

    def fill(*given):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(program, "score_of", fill)
        with pytest.raises(OSError, match="No space left"):
            run_sweep(dataclasses.replace(config, out=out))
    run_sweep(dataclasses.replace(config, out=out))
    assert history(out) == whole


def test_a_sweep_of_failures_alone_ends_with_the_first_of_them(config, monkeypatch):
    monkeypatch.setattr(program, "trained", lambda config, interrupt: config.run_dir)

    def fail(*given):
        raise RunError("the loss is nan.")

    monkeypatch.setattr(program, "score_of", fail)
    with pytest.raises(RunError, match="no trial has a score; the first one failed: the loss is nan"):
        run_sweep(config)
    assert "No trial has a score" in (config.out / "report.html").read_text()


def test_the_score_is_the_mean_over_the_seeds_and_bad_trials_are_pruned(config, quick):
    config = dataclasses.replace(config, seeds=3, prune=True, trials=15)
    run_sweep(config)
    found = ended_trials(open_study(config.out))
    assert {trial.state for trial in found} == {DONE, PRUNED}
    for trial in found:
        first = trial.user_attrs["scores"][0]
        if trial.state == DONE:
            assert trial.value == pytest.approx(first - 0.1) and len(trial.user_attrs["scores"]) == 3
        else:
            others = [one.user_attrs["scores"][0] for one in found[: trial.number] if one.state == DONE]
            assert len(trial.user_attrs["scores"]) < 3 and first < np.median(others)
    assert sum(len(trial.user_attrs["scores"]) for trial in found) == len(quick)
    assert (
        f"Pruned, and not shown: {sum(trial.state == PRUNED for trial in found)}"
        in (config.out / "report.html").read_text()
    )


def test_a_folder_keeps_its_settings_and_its_data(config, quick, tmp_path):
    run_sweep(config)
    with pytest.raises(InputError, match="`labels=4` differs from the 8 of the sweep"):
        run_sweep(dataclasses.replace(config, labels=4))
    with pytest.raises(InputError, match="`pretrain.steps=3` differs from the 2"):
        run_sweep(dataclasses.replace(config, pretrain=dataclasses.replace(SMALL, steps=3)))
    other = write_discs(tmp_path / "discs.npz", count=20)
    with pytest.raises(InputError, match="is not what the sweep in .* was started with"):
        run_sweep(dataclasses.replace(config, data=str(other)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="is not the folder of a sweep"):
        run_sweep(dataclasses.replace(config, out=tmp_path / "full"))


def without(path, *names):
    """A copy of an .npz file without some of its arrays."""
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays if name not in names}
    copy = path.with_name("fewer.npz")
    np.savez(copy, **kept)
    return copy


def test_data_without_val_labels_is_refused_unless_the_reward_is_the_score(config, tmp_path):
    data = without(write_discs(tmp_path / "discs.npz"), "val_label")
    config = dataclasses.replace(config, data=str(data), trials=1)
    with pytest.raises(InputError, match=r"no labelled val images.*\(never by test images\)"):
        run_sweep(config)
    assert not config.out.exists()
    run_sweep(dataclasses.replace(config, objective="reward", policy="a3c"))
    ((_, value, state),) = history(config.out)
    (run,) = [path for path in (config.out / "runs").iterdir() if (path / "done.json").exists()]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert state == DONE and value == np.mean([row["reward"] for row in rows if "reward" in row])


@pytest.mark.parametrize("objective", ["probe", "finetune"])
def test_the_score_is_that_of_val_and_no_test_image_is_needed(config, tmp_path, objective):
    """With the test images left out, or replaced by noise, every score stays the same."""
    path = write_discs(tmp_path / "discs.npz")
    config = dataclasses.replace(config, objective=objective, trials=1, data=str(path))
    run_sweep(config)
    ((params, value, state),) = history(config.out)
    data = without(path, "test_images", "test_label")
    run_sweep(dataclasses.replace(config, data=str(data), out=tmp_path / "fewer"))
    assert history(tmp_path / "fewer") == [(params, value, state)] and 0 < value < 1


def test_val_dice_is_that_of_a_whole_probe(discs):
    from ahm_gym.data import open_data
    from ahm_gym.model.encoders import load_encoder

    dataset = open_data(str(discs), image_size=(32, 32), need_labels=True)
    encoder = load_encoder(None, image_size=(32, 32), patch_size=8, model="tiny")
    whole = Probe(encoder, dataset)(labels=8, seed=3)
    assert Probe(encoder, dataset, tested=False).val_dice(labels=8, seed=3) == whole["val_patch_dice"]


def test_trials_of_fine_tuning_alone_share_one_pretraining(config, monkeypatch):
    ran = []
    pretrain = scores.pretrain
    monkeypatch.setattr(
        scores, "pretrain", lambda *given, **options: ran.append(1) or pretrain(*given, **options)
    )
    config = dataclasses.replace(
        config, objective="finetune", search=("finetune.learning_rate=1e-4..1e-1:log",), trials=2
    )
    run_sweep(config)
    assert len(ran) == 1 and len({value for _, value, _ in history(config.out)}) == 2
    assert len(list((config.out / "runs").iterdir())) == 1


def test_the_best_command_repeats_the_settings(config):
    config = dataclasses.replace(
        config, objective="finetune", policy="a3c", search=("agent.width=8..64", "finetune.freeze=true,false")
    )
    values = {"agent.width": 16, "finetune.freeze": "true"}
    first, second = commands(config, *settings_of_trial(config, parse_space(config), values))
    assert shlex.split(first) == shlex.split(
        f"ahm-gym pretrain --data {config.data} --steps 2 --batch-size 4 --image-size 32 --agent-options width=16 "
        "--run-dir runs/best"
    )
    assert shlex.split(second) == shlex.split(
        "ahm-gym finetune --encoder runs/best --labels 8 --steps 2 --batch-size 2 --freeze"
    )


def test_no_name_in_the_report_is_live(config, quick, monkeypatch):
    odd = '"><img src=x onerror=alert(1)><script>1</script>|'

    def fail(*given):
        raise InputError(odd)

    score = program.score_of
    monkeypatch.setattr(program, "score_of", lambda *given: fail() if len(quick) == 3 else score(*given))
    run_sweep(config, command=odd)
    described = json.loads((config.out / "config.json").read_text())
    (config.out / "config.json").write_text(json.dumps(described | {"data_name": odd, "commit": odd}))
    page = write_report(config.out).read_text()
    assert "<img src=x" not in page and "<script" not in page and page.count("&lt;script&gt;1") == 5
    assert "<script" not in (config.out / "trials.md").read_text()
    assert as_csv(program_table("=1+1")).splitlines()[1] == "'=1+1,-2.5"


def program_table(odd):
    from ahm_gym.pages.page import Table

    return Table("", ["a", "b"], [[odd, "\u22122.5"]])


def test_flags_of_a_sweep_reach_the_nested_settings(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(
        program, "run_sweep", lambda settings, command: asked.append((settings, command)) or tmp_path
    )
    arguments = (
        "sweep --data x.npz --search mask_ratio=0.5,0.75 agent.width=8..64 --pretrain-steps 7 --batch-size 3"
    )
    main(
        [
            *arguments.split(),
            "--finetune.steps",
            "9",
            "--labels",
            "5",
            "--trials=2",
            "--prune",
            "--seeds",
            "2",
        ]
    )
    ((settings, command),) = asked
    assert settings.search == ("mask_ratio=0.5,0.75", "agent.width=8..64") and settings.prune
    assert (settings.pretrain.steps, settings.pretrain.batch_size, settings.finetune.steps) == (7, 3, 9)
    assert (settings.labels, settings.trials, settings.seeds) == (5, 2, 2)
    assert command.startswith("ahm-gym sweep --data x.npz") and "report.html" in capsys.readouterr().out
    assert (
        nested_flag("--policy", SweepConfig) == "--policy" and nested_flag("--seed", SweepConfig) == "--seed"
    )


def test_the_python_api_returns_the_best_trial(config, quick, capsys):
    result = ahm_gym.sweep(
        data=config.data, policy="random", search=config.search, trials=2, labels=8, out=config.out, device="cpu",
        pretrain={"steps": 2, "batch_size": 4, "image_size": 32},
    )  # fmt: skip
    assert (result.score, result.best) == best_of(config.out) and set(result.best) == {
        "learning_rate",
        "mask_ratio",
    }
    assert result.trials.is_file() and result.report.is_file() and result.run_dir == config.out
    result.report.write_text("stale")
    main(["report", str(config.out)])
    assert "Sweep: out" in result.report.read_text()


def test_without_optuna_the_command_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['optuna'] = None; from ahm_gym.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "sweep", "--search", "mask_ratio=0.5,0.75", "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert 'error: a sweep needs Optuna, which is not installed: pip install "ahm-gym[sweep]".' in done.stderr


class StopAfter(Interrupt):
    """Requests a stop once it has been asked a number of times."""

    def __init__(self, times):
        super().__init__()
        self.left = times

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("objective", "stops"), [("probe", (3,)), ("finetune", (3, 6))])
def test_a_trial_goes_on_from_its_last_checkpoint(config, objective, stops):
    """Stopped in pretraining, and once more after it was continued, it scores what it would have scored."""
    longer = dataclasses.replace(config.finetune, steps=4)
    config = dataclasses.replace(
        config, objective=objective, trials=1, pretrain=dataclasses.replace(SMALL, steps=4), finetune=longer
    )
    run_sweep(config)
    whole = history(config.out)
    out = config.out.with_name("stopped")
    config = dataclasses.replace(config, out=out)
    for times in stops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "Interrupt", lambda deadline, times=times: StopAfter(times))
            run_sweep(config)
        assert list(out.glob("runs/*/checkpoint/step-*")) or list(
            out.glob("runs/*/finetune-0/checkpoint/step-*")
        )
        assert not history(out)
    run_sweep(config)
    assert history(out) == whole
    assert sorted(path.name for path in out.glob("runs/*/*") if path.name in ("checkpoint", "done.json")) == [
        "done.json"
    ]

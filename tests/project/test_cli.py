"""The command line `ahm-gym`."""

import dataclasses
import pickle
import re
import subprocess
import sys

import pytest
import tyro
from benchmark_rows import DATA, FEW, make_rows, write_rows
from programs import ROOT

from ahm_gym import cli
from ahm_gym.benchmark import run as benchmark_run
from ahm_gym.benchmark.config import FINETUNING, PRETRAINING, BenchmarkConfig
from ahm_gym.cli import PROGRAMS, main
from ahm_gym.flags import (
    NESTED,
    WITH_NESTED,
    flags_in,
    nested_flag,
    scans_first,
    shown_settings,
    split_numbers,
    with_flags,
)

COMMANDS = (
    "look",
    "pretrain",
    "finetune",
    "probe",
    "predict",
    "evaluate",
    "export",
    "embed",
    "benchmark",
    "sweep",
    "maskbench",
    "report",
)
HEAVY = {
    "torch",
    "timm",
    "monai",
    "matplotlib",
    "stable_baselines3",
    "nilearn",
    "sklearn",
    "optuna",
    "submitit",
}


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    return code, *capsys.readouterr()


def options_in_help(capsys, command: str) -> str:
    """The part of the help that describes the options, on one line and without its frame."""
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    return " ".join(re.sub("[─│╭╮╰╯]", " ", out).partition("show this help message and exit")[2].split())


def described(text: str, flag: str) -> str:
    """The help text of a flag, without its default."""
    found = re.search(rf"{re.escape(flag)}(?:, --\S+)? (.*?)(?= --[a-z]|$)", text)
    assert found is not None, f"{flag} is not in the help"
    return found[1].partition("(default:")[0]


def settings_of(*arguments: str) -> BenchmarkConfig:
    """The settings of a benchmark with these flags."""
    return tyro.cli(shown_settings(BenchmarkConfig), args=list(map(nested_flag, arguments)))


def test_python_m_ahm_gym_is_the_command():
    command = [sys.executable, "-m", "ahm_gym", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{{{','.join(COMMANDS)}}}" in done.stdout


def test_the_help_imports_nothing_heavy():
    code = f"""
import sys
from ahm_gym.cli import main
for arguments in (["--help"], ["pretrain", "--help"], ["benchmark", "--help"], ["sweep", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
loaded = {HEAVY} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_help_lists_every_command_with_a_description(capsys):
    assert tuple(PROGRAMS) == COMMANDS
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        assert re.search(rf"• {command} +[A-Z][\w-]+ \w+", out), command


@pytest.mark.parametrize(
    "command", ["pretrain", "finetune", "probe", "export", "benchmark", "sweep", "maskbench"]
)
def test_every_setting_has_a_help_text(capsys, command):
    text = options_in_help(capsys, command)
    flags = []
    for item in dataclasses.fields(PROGRAMS[command][0]):
        if command in ("benchmark", "sweep") and item.name in NESTED:
            flags += [
                f"{item.name}.{own.name}"
                for own in dataclasses.fields(NESTED[item.name])
                if own.name not in WITH_NESTED[PROGRAMS[command][0]][item.name]
            ]
        else:
            flags.append(item.name)
    for flag in flags:
        words = re.findall(r"\b[a-z]{2,}\b", described(text, f"--{flag.replace('_', '-')}"))
        assert len(words) >= 3, (flag, words)


def test_the_folder_of_a_report_has_a_help_text(capsys):
    assert "Folder of the run, of the evaluation, of the benchmark, of MaskBench or of the sweep" in " ".join(
        run(capsys, "report", "--help")[1].replace("│", "").split()
    )


@pytest.mark.parametrize("command", ["benchmark", "sweep"])
def test_settings_that_the_program_chooses_are_not_in_its_help(capsys, command):
    text = options_in_help(capsys, command)
    for program, names in WITH_NESTED[PROGRAMS[command][0]].items():
        for name in names:
            assert not re.search(rf"--{program}\.(no-)?{name.replace('_', '-')}(?![\w-])", text)


@pytest.mark.parametrize(
    ("flag", "nested"),
    [
        ("--pretrain-steps", "--pretrain.steps"),
        ("--pretrain_steps", "--pretrain.steps"),
        ("--pretrain.steps", "--pretrain.steps"),
        ("--steps=5", "--pretrain.steps=5"),
        ("--batch-size", "--pretrain.batch-size"),
        ("--no-finetune-native-resolution", "--finetune.no-native-resolution"),
        ("--finetune_native_resolution", "--finetune.native-resolution"),
        ("--seed", "--seed"),
        ("--target", "--pretrain.target"),
        ("--finetune-steps", "--finetune.steps"),
        ("--finetune-learning-rate=0.1", "--finetune.learning-rate=0.1"),
        ("--finetune.steps", "--finetune.steps"),
        ("--data", "--data"),
        ("--data-root=here", "--data-root=here"),
        ("--device", "--device"),
        ("--freeze", "--freeze"),
        ("--help", "--help"),
        ("random", "random"),
        ("-1", "-1"),
    ],
)
def test_a_short_flag_of_a_benchmark_is_a_nested_setting(flag, nested):
    assert nested_flag(flag) == nested


@pytest.mark.parametrize(
    ("arguments", "program", "name", "value"),
    [
        (("--pretrain-steps", "7"), "pretrain", "steps", 7),
        (("--pretrain.steps", "7"), "pretrain", "steps", 7),
        (("--batch-size=7",), "pretrain", "batch_size", 7),
        (("--target", "hog"), "pretrain", "target", "hog"),
        (("--finetune-native-resolution",), "finetune", "native_resolution", True),
        (("--finetune.no-native-resolution",), "finetune", "native_resolution", False),
        (("--agent-options", "entropy_coef=0.1", "width=8"), "pretrain", "agent_options",
         ("entropy_coef=0.1", "width=8")),
        (("--finetune-steps", "7"), "finetune", "steps", 7),
        (("--finetune.batch-size", "7"), "finetune", "batch_size", 7),
    ],
)  # fmt: skip
def test_flags_of_a_benchmark_reach_the_nested_settings(arguments, program, name, value):
    settings = settings_of(*arguments)
    assert getattr(getattr(settings, program), name) == value
    changed = dataclasses.replace(
        getattr(settings, program), **{name: getattr(getattr(BenchmarkConfig, program), name)}
    )
    assert vars(changed) == vars(getattr(BenchmarkConfig, program))


def test_settings_in_a_message_become_flags():
    assert (
        with_flags("`batch_size=0` and `steps` and `pretrain.steps`")
        == "--batch-size 0 and --steps and --pretrain.steps"
    )
    assert with_flags("`nonsense` and `steps` 3") == "`nonsense` and --steps 3"


def test_the_flags_on_a_command_line_are_known_by_the_names_of_their_settings():
    assert flags_in(["pretrain", "--batch-size=3", "--steps", "4"]) == {"batch_size", "steps"}
    assert "native_resolution" in flags_in(["--no-native-resolution"])


def test_the_settings_of_a_benchmark_reach_other_processes(monkeypatch, capsys):
    """--jobs and --slurm pickle them, and classes that hide flags from the help cannot be pickled."""
    asked = []
    monkeypatch.setattr(benchmark_run, "run_benchmark", lambda config, command: asked.append(config) or "out")
    assert run(capsys, "benchmark", "--pretrain.steps", 7, "--finetune-steps", 9)[0] == 0
    (config,) = asked
    assert pickle.loads(pickle.dumps(config)) == config
    assert (config.pretrain, config.finetune) == (
        dataclasses.replace(PRETRAINING, steps=7), dataclasses.replace(FINETUNING, steps=9),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrain --steps 0 --run-dir out", "--steps is 0: choose a whole number"),
        ("pretrain --data nowhere.npz --run-dir out", "there is no data at"),
        ("pretrain --policy randm --run-dir out", "did you mean 'random'"),
        ("pretrain --resume --run-dir out", "there is no folder out"),
        ("pretrain --resume", "--resume needs --run-dir"),
        ("finetune --steps 0 --run-dir out", "--steps is 0: choose a whole number"),
        ("finetune --encoder nowhere --run-dir out", "nowhere"),
        ("probe --labels 0 --run-dir out", "--labels"),
        ("benchmark --pretrain-steps 0 --out out", "--pretrain.steps is 0: choose a whole number"),
        ("benchmark --finetune-steps 0 --out out", "--finetune.steps is 0: choose a whole number"),
        ("benchmark --seeds 0 --out out", "--seeds is 0: choose a whole number"),
        ("benchmark --tasks segment --out out", "--tasks segment"),
        ("sweep --out out", "--search is empty"),
        ("sweep --out out --search mask_ratio=0.5,0.75 --prune", "--prune compares trials"),
        ("sweep --out out --search mask_ratio=0.5,0.75 --pretrain.steps 0", "--steps is 0"),
        ("predict nowhere --run nowhere --out out", "there is no folder nowhere"),
        ("predict nowhere --run one two --out out", "there is no folder one"),
        ("evaluate nowhere --run nowhere --split tset --out out", "did you mean 'test'"),
        ("export --run nowhere --out out --format onxx", "did you mean 'onnx'"),
        ("embed nowhere --run nowhere --out out.csv", "choose one for --out"),
        ("report nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_with_the_flag_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments.split())
    assert code == 2
    *notes, error = err.splitlines()  # opening the data may say how it was understood
    assert all(line.startswith("note: ") for line in notes)
    assert error.startswith("error: ") and message in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["", "train", "pretrain --stepz 3", "pretrain --steps many", "report"])
def test_a_command_line_that_cannot_be_parsed_ends_with_exit_code_2(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments.split())
    assert code == 2 and out + err
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_rewritten_from_the_rows(tmp_path, capsys):
    out = write_rows(tmp_path / "bench", list(make_rows(DATA, FEW, seeds=2, cases=6)))
    rows = (out / "rows.jsonl").read_text()
    for name in ("report.html", "leaderboard.md", "leaderboard.csv"):
        (out / name).write_text("stale")
    code, text, _ = run(capsys, "report", out)
    assert code == 0 and f"Wrote {out}/: report.html, leaderboard.md, leaderboard.csv" in text
    for name in ("report.html", "leaderboard.md", "leaderboard.csv"):
        assert "a3c" in (out / name).read_text()
    assert (out / "rows.jsonl").read_text() == rows


def test_a_report_without_rows_is_refused_with_one_sentence(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("")
    code, _, err = run(capsys, "report", tmp_path)
    assert code == 2 and err.startswith("error: ") and str(tmp_path) in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["--mask-ratio", "0.25,0.5,.9"], ["--mask-ratio", "0.25", "0.5", ".9"]),
        (["--mask-ratio=0.25,0.5"], ["--mask-ratio", "0.25", "0.5"]),
        (["--mask-ratio=0.5", "--data", "a,b"], ["--mask-ratio=0.5", "--data", "a,b"]),
        (["--agent-options", "a=1,2"], ["--agent-options", "a=1,2"]),
    ],
)
def test_numbers_may_be_separated_by_commas(given, parsed):
    assert split_numbers(given) == parsed


@pytest.mark.parametrize(("num_patients", "few"), [(19, " (too narrow, because they are few)"), (20, "")])
def test_the_interval_and_what_was_missed_are_printed_with_the_scores(capsys, num_patients, few):
    results = {
        "intervals": {"dice": [0.25, 0.5]},
        "num_patients": num_patients,
        "missed": 3,
        "false_alarms": 0,
    }
    cli.show_reliability(results | {"missed_distance": "leave-out"})
    interval, counts = capsys.readouterr().out.splitlines()
    assert interval == f"95 % interval of the mean Dice over {num_patients} patients: 0.250 to 0.500{few}"
    assert counts == (
        "Structures missed: 3, found where there are none: 0; in the mean HD95 each counts as nothing."
    )
    cli.show_reliability({"intervals": {"dice": None}, "missed": 0, "false_alarms": 0})
    assert capsys.readouterr().out == ""


def test_the_scores_of_pixels_are_printed_with_chance_and_absent_classes(capsys):
    scores = {"ap": 0.5, "dice": None, "log_loss": 0.25}
    per_class = {"1": scores | {"share": 0.125}, "2": dict.fromkeys([*scores, "share"])}
    cli.show_pixel_scores(scores | {"per_class": per_class, "absent_classes": [2]})
    first, second, mean, absent = capsys.readouterr().out.splitlines()
    assert first == "class 1: average precision 0.500 (chance: 0.125), Dice undefined, log-loss 0.250"
    assert second.startswith("class 2: average precision undefined") and mean.startswith(
        "mean: average precision 0.5"
    )
    assert absent.startswith("No labelled training image contains class 2")


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("given", "runs"),
    [
        ("--run A new/ --out masks", ["A"]),
        ("--run A new/", ["A"]),
        ("--out masks --run A B new/", ["A", "B"]),
        ("--run A B new/ --device cpu --out masks", ["A", "B"]),
        ("new/ --run A B --out masks", ["A", "B"]),
        ("--run A B --out masks new/", ["A", "B"]),
        ("--run=A new/ --out masks", ["A"]),
    ],
)
def test_scans_may_stand_before_or_after_the_runs(monkeypatch, command, given, runs):
    seen = []
    kind, _ = PROGRAMS[command]
    monkeypatch.setitem(cli.PROGRAMS, command, (kind, lambda settings, argv: seen.append(settings)))
    main([command, *given.split()])
    assert str(seen[0].scans).rstrip("/") == "new" and [str(run) for run in seen[0].runs] == runs


def test_a_switch_before_the_scans_takes_no_value(monkeypatch):
    seen = []
    kind, _ = PROGRAMS["predict"]
    monkeypatch.setitem(cli.PROGRAMS, "predict", (kind, lambda settings, argv: seen.append(settings)))
    main(["predict", "--run", "A", "B", "--probabilities", "new"])
    assert seen[0].probabilities and [str(run) for run in seen[0].runs] == ["A", "B"]
    assert scans_first(["predict", "--run", "A"], kind) == ["predict", "--run", "A"]

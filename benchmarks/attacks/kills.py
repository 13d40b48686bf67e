"""Ends programs by SIGKILL at random times, continues them, and compares what they leave with a run left alone.

`python benchmarks/attacks/kills.py --kills 100` shares the kills between pretraining (A3C with two workers),
fine-tuning, prediction, a recipe of several stages and the benchmark. After every kill the same command continues the
run; when it is finished, its files have to be those of the undisturbed run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro
from scenes import build, labelled_folder
from trying import Outcome, fault_of, report, started


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Kill programs at random times."""

    kills: int = 100
    """Number of kills over all programs."""
    seed: int = 0
    """Seed of their times."""
    programs: tuple[str, ...] = ("pretrain", "finetune", "predict", "recipe", "benchmark")
    """Programs to kill, in turn."""
    out: Path = Path("runs/attacks/kills.jsonl")
    """File of all outcomes."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A command, how it continues, and what must be the same in the end."""

    argv: Callable[[Path], list[str]]
    """The arguments, given the folder of the run."""
    resume: bool
    """Whether it continues by --resume; otherwise by the same command again."""
    result: Callable[[Path], dict[str, str]]
    """Digests of the results in the folder of the run, by name."""
    begun: str
    """A file in the folder of the run; before it exists there is nothing to resume."""


def programs(folder: Path) -> dict[str, Program]:
    """The programs that are killed, on small data in `folder`."""
    data = ["--data", str(folder / "data")]
    pretrain = ["pretrain", *data, "--image-size", "32", "--batch-size", "4", "--checkpoint-every", "3"]
    finetune = ["finetune", *data, "--encoder", str(folder / "run"), "--steps", "40", "--batch-size", "2"]
    benchmark = ["benchmark", *data, "--policies", "random,hard_patches", "--seeds", "1", "--labels", "2"]
    benchmark += ["--tasks", "probe,finetune", "--pretrain-steps", "10", "--finetune-steps", "10"]
    benchmark += [
        "--batch-size",
        "2",
        "--image-size",
        "32",
        "--jobs",
        "1",
        "--pretrain-checkpoint-every",
        "3",
    ]
    return {
        "pretrain": Program(
            lambda run: [*pretrain, "--policy", "a3c", "--steps", "30", "--run-dir", str(run)],
            True,
            lambda run: _digests(run, "encoder/*.safetensors"),
            "config.json",
        ),
        "finetune": Program(
            lambda run: [*finetune, "--checkpoint-every", "3", "--run-dir", str(run)],
            True,
            lambda run: _digests(run, "segmenter/*.safetensors") | _scores(run / "results.json"),
            "config.json",
        ),
        "predict": Program(
            lambda run: [
                "predict",
                "--run",
                str(folder / "segmenter"),
                str(folder / "many"),
                "--out",
                str(run),
            ],
            False,
            lambda run: _digests(run, "**/*.png", "*.csv"),
            "",
        ),
        "recipe": Program(
            lambda run: [*pretrain, "--recipe", "ahm2025", "--steps", "12", "--run-dir", str(run)],
            True,
            lambda run: _digests(run, "*/encoder/*.safetensors"),
            "config.json",
        ),
        "benchmark": Program(
            lambda run: [*benchmark, "--out", str(run)],
            False,
            lambda run: _rows(run / "rows.jsonl"),
            "",
        ),
    }


def _digests(run: Path, *patterns: str) -> dict[str, str]:
    """The digests of files in a folder, by their path in it."""
    files = [path for pattern in patterns for path in run.glob(pattern)]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _scores(path: Path) -> dict[str, str]:
    """The scores in a results.json, which also names times and folders."""
    results = json.loads(path.read_text())
    return {name: repr(results[name]) for name in ("dice", "iou", "per_class")}


def _rows(path: Path) -> dict[str, str]:
    """The scores in the rows of a benchmark, by their cell."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    cells = [[row.get(name) for name in ("kind", "data", "policy", "labels", "seed")] for row in rows]
    if len(set(map(repr, cells))) != len(cells):
        raise AssertionError("a row stands twice")
    return {repr(cell): repr([row.get("dice"), row.get("ap")]) for cell, row in zip(cells, rows, strict=True)}


def tries(arguments: Arguments, folder: Path) -> Iterator[Outcome]:
    """Runs every program undisturbed, then killed again and again until its share of kills is used."""
    generator = random.Random(arguments.seed)
    share = arguments.kills // len(arguments.programs)
    for name in arguments.programs:
        program = programs(folder)[name]
        log = folder / f"{name}.log"
        whole = folder / name
        began = time.monotonic()
        if started(program.argv(whole), log).wait() != 0:
            raise SystemExit(f"{name} fails undisturbed: {log.read_text()[-2000:]}")
        seconds = time.monotonic() - began
        expected = program.result(whole)
        left = share
        while left:
            run = folder / f"{name}-{left}"
            kills, outcome = _killed_until_done(name, program, run, generator, seconds, left, expected)
            left -= kills
            yield outcome
            shutil.rmtree(run, ignore_errors=True)


def _killed_until_done(
    name: str,
    program: Program,
    run: Path,
    drawn: random.Random,
    seconds: float,
    limit: int,
    expected: dict[str, str],
) -> tuple[int, Outcome]:
    """Kills one run at most `limit` times, lets it end, and compares its results with the expected ones."""
    log = run.with_suffix(".log")
    began = time.monotonic()
    kills = 0
    while True:
        resume = ["--resume"] * (program.resume and (run / program.begun).exists())
        process = started([*program.argv(run), *resume], log)
        try:
            code = process.wait(timeout=None if kills == limit else drawn.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL) if drawn.random() < 0.5 else process.kill()
            process.wait()
            kills += 1
            continue
        break
    output = log.read_text(errors="replace")
    fault = fault_of(code, output) or (f"exit code {code}" if code else None)
    if fault is None and (found := program.result(run)) != expected:
        names = sorted(key for key in expected | found if expected.get(key) != found.get(key))
        fault = f"other results than undisturbed: {', '.join(names[:5])}"
    return max(kills, 1), Outcome(
        f"{name}: {kills} kills", code, time.monotonic() - began, output[-4000:], fault
    )


def main() -> None:
    """Runs the attack."""
    arguments = tyro.cli(Arguments)
    out = arguments.out.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        labelled_folder(folder / "more", images=150)
        shutil.move(folder / "more" / "images", folder / "many")
        sys.exit(report(tries(arguments, folder), out))


if __name__ == "__main__":
    main()

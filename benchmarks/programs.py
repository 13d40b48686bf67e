"""Runs the programs of examples/, each once; intervals over seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(program: str, folder: Path, finished: Path, options: list[str]) -> None:
    """Runs a program of examples/ with one thread into `folder`, unless `finished` is there already."""
    if finished.exists():
        return
    started = (folder / "config.json").exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        subprocess.run(
            [sys.executable, str(EXAMPLES / program), *options, "--run-dir", str(folder)]
            + ["--resume"] * started,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            check=True,
        )


def last_metric(folder: Path, name: str) -> float:
    """The newest value of a metric in a run folder."""
    values = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in values if name in row][-1]


def interval(differences: list[float]) -> str:
    """Mean paired difference and its 95 % t interval over seeds."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return f"{mean:+.4f}"
    half = t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"

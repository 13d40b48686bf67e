"""Runs pretraining in a process of its own, reads its metrics, and computes intervals over seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t


def pretrain(folder: Path, steps: int, options: list[str]) -> None:
    """Runs `ahm-gym pretrain` with one thread into `folder`, or resumes it, unless it is finished.

    It is a process and not a call of `ahm_gym.pretrain`, so that several can run at a time.

    Args:
        folder: run folder; the output goes to a `.log` file next to it.
        steps: updates of the autoencoder.
        options: further flags.
    """
    if (folder / "checkpoint" / f"step-{steps}").exists():
        return
    started = (folder / "config.json").exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "ahm_gym", "pretrain", *options]
            + ["--steps", str(steps), "--run-dir", str(folder)]
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
    """The mean paired difference and its 95 % t interval over seeds, as text."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return f"{mean:+.4f}"
    half = t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"

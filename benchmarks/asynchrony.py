"""Measures what asynchronous workers gain and lose: reward over updates and over time, and staleness.

`python benchmarks/asynchrony.py` trains A3C with 1, 2 and 4 workers of one thread each on the identity task and on
scans, one run after another, keeps finished results in `--out`, prints tables and draws curves.png. Staleness is the
number of updates by other workers between a worker's read of the weights and its write. With `--ray local`, or the
address of a Ray cluster, the same numbers of workers also run there.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from programs import pretrain

from ahm_gym.agents import make_agent
from ahm_gym.runs.storage import write_atomically
from ahm_gym.testing import IdentityTask, solved

IDENTITY_UPDATES = 400
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Points at which the curves on scans are read, as shares of the run."""
Curve = dict[str, list[float]]


@dataclass(frozen=True)
class Arguments:
    """A3C with several workers."""

    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of workers."""
    data: str = "hc18_128.npz"
    """Images, as for ahm-gym pretrain."""
    seeds: int = 3
    """Seeds 0, 1, ..."""
    steps: int = 500
    """Updates of the autoencoder on scans, with 32 images each."""
    ray: str | None = None
    """Ray cluster that is measured, too; local starts one on this machine."""
    out: Path = Path("runs/asynchrony")
    """Folder of finished parts."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = Path(arguments.data).stem
    variants = [None] if arguments.ray is None else [None, arguments.ray]
    parts = {
        "identity task, 64 patches: share of the way to the best reward": (identity_curve, "value"),
        f"{stem}: reward (mean loss of the masked patches)": (scan_curve, "reward"),
        f"{stem}: Spearman correlation with the true patch loss": (scan_curve, "value"),
    }
    _, axes = plt.subplots(len(parts), 2, figsize=(10, 10), layout="constrained")
    for row, (title, (curve_of, key)) in zip(axes, parts.items(), strict=True):
        print(f"\n{title}, mean over seeds 0-{arguments.seeds - 1}")
        for number, ray in [(number, ray) for ray in variants for number in arguments.workers]:
            label = f"{number} workers{' on Ray' if ray else ''}"
            curves = [curve_of(arguments, number, seed, ray) for seed in range(arguments.seeds)]
            updates, seconds, value, stale = (
                np.mean([curve[name] for curve in curves], axis=0)
                for name in ("updates", "seconds", key, "staleness")
            )
            shown = "  ".join(f"{u:.0f}: {v:.2f}" for u, v in zip(updates, value, strict=True))
            print(
                f"| {label} | {shown} | {seconds[-1]:.0f} s | staleness {stale.mean():.2f} |",
                flush=True,
            )
            row[0].plot(updates, value, label=label)
            row[1].plot(seconds, value, label=label)
        row[0].set(xlabel="updates", ylabel=title.partition(": ")[2], title=title.partition(":")[0])
        row[1].set(xlabel="seconds")
        row[0].legend()
    plt.savefig(arguments.out / "curves.png")


def identity_curve(arguments: Arguments, num_workers: int, seed: int, ray: str | None) -> Curve:
    path = arguments.out / f"identity-{num_workers}{'-ray' if ray else ''}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    agent = make_agent("a3c", (64, 8), num_workers=num_workers, seed=seed, ray=ray)
    rows: list[tuple[float, float, float]] = []

    def note(metrics: dict[str, float]) -> bool:
        rows.append((time.perf_counter(), metrics["reward"], metrics["agent/staleness"]))
        return False

    agent.learn(MakeTask(), IDENTITY_UPDATES, seed=seed, callback=note)
    times, rewards, staleness = np.array(rows).T
    marks = [25, 50, 100, 200, IDENTITY_UPDATES]
    curve = {
        "updates": [float(mark) for mark in marks],
        "seconds": [float(times[mark - 1] - times[0]) for mark in marks],
        "value": [solved(IdentityTask(), float(rewards[mark - 10 : mark].mean())) for mark in marks],
        "staleness": [float(staleness[:mark].mean()) for mark in marks],
    }
    write_atomically(path, json.dumps(curve))
    return curve


@dataclass(frozen=True)
class MakeTask:
    """Makes the identity task of a worker; picklable."""

    def __call__(self) -> IdentityTask:
        return IdentityTask(num_patches=64, num_targets=16)


def scan_curve(arguments: Arguments, num_workers: int, seed: int, ray: str | None) -> Curve:
    folder = arguments.out / f"{Path(arguments.data).stem}-{num_workers}{'-ray' if ray else ''}-{seed}"
    path = folder.with_name(f"{folder.name}-{arguments.steps}.json")
    if path.exists():
        return json.loads(path.read_text())
    options = [
        *("--data", arguments.data, "--seed", str(seed)),
        *("--batch-size", "32", "--reward", "loss", "--guided-fraction", "1", "--spread-fraction", "0"),
        *("--num-workers", str(num_workers)),
        *(("--ray", ray) if ray else ()),
    ]
    pretrain(folder, arguments.steps, options)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "images_per_second" in row]
    spearman = {row["step"]: row["val/spearman"] for row in rows if "val/spearman" in row}
    steps = np.array([0] + [row["step"] for row in trained])
    rates = np.array([row["images_per_second"] for row in trained])
    seconds = np.concatenate([[0.0], np.cumsum(32 * np.diff(steps) / rates)])
    marks = [min(spearman, key=lambda step: abs(step - share * arguments.steps)) for share in SHARES]
    curve = {
        "updates": [float(mark) for mark in marks],
        "seconds": [float(np.interp(mark, steps, seconds)) for mark in marks],
        "value": [spearman[mark] for mark in marks],
        "reward": np.interp(marks, steps[1:], [row["reward"] for row in trained]).tolist(),
        "staleness": [row["agent/staleness"] for row in trained],
    }
    write_atomically(path, json.dumps(curve))
    return curve


if __name__ == "__main__":
    main()

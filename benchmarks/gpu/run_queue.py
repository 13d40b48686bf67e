"""Runs the next items of the GPU queue, in order of worth, until the time is up.

`python benchmarks/gpu/run_queue.py --minutes 10` first runs the tests that need a GPU and the cost of a step, unless
they have been run at this commit on this hardware, then trains and evaluates the cells of the benchmarks below at
lengths that a CPU cannot reach. Every item continues where it stopped: give it ten minutes, or a day. Results are
appended to `benchmarks/gpu/queue.jsonl`, and to the `rows.jsonl` in the folder of each benchmark; commit both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ahm_gym.device.choice import pick_device
from ahm_gym.runs.provenance import commit, hardware, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MINIMUM = 1.0
"""Minutes below which no item is started."""
MEDIUM = "--pretrain-steps 5500 --batch-size 32"
LONG = "--pretrain-steps 60000 --batch-size 64"
CELLS: dict[str, str] = {
    "resenc": f"--model resenc --policies random,a3c --tasks finetune --compile {MEDIUM}",
    "tiny": f"--model tiny --policies random,a3c,hard_patches --tasks finetune,plain,probe {MEDIUM}",
    "unet": f"--model unet --policies random,a3c --tasks finetune {MEDIUM}",
    "resenc-long": f"--model resenc --policies random,a3c --tasks finetune --compile {LONG}",
    "tiny-long": f"--model tiny --policies random,a3c,hard_patches --tasks finetune,plain,probe {LONG}",
    "small-long": f"--model small --policies random,a3c --tasks finetune,plain,probe --compile {LONG}",
}
"""Benchmarks by name, the most valuable first: flags of `ahm-gym benchmark`."""
SHARED = "--seeds 5 --labels 10 --finetune-steps 1000 --pretrain-checkpoint-every 2000 --jobs 3"
"""What all of them share. More jobs gain little: processes on one GPU take turns."""


@dataclass(frozen=True)
class Arguments:
    """Run the next items of the GPU queue until the time is up."""

    minutes: float
    """Minutes until the last item stops; what is running then is saved."""
    data: tuple[str, ...] = ("hc18_128.npz", "dsb18_128.npz", "hippocampus_128.npz")
    """Labelled data sets, as for ahm-gym benchmark."""
    data_root: Path | None = None
    """Folder in which names of data are looked up. Default: that of the variable AHM_DATA."""
    items: tuple[str, ...] = ("tests", "step_cost", *CELLS)
    """Items to run, in this order."""
    flags: str = ""
    """More flags for the benchmarks, with an equals sign: "--flags=--pretrain-steps 1000"."""
    device: str = "cuda"
    """cuda, or cpu to try the queue."""
    out: Path = HERE
    """Folder of the results."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    unknown = set(arguments.items) - {"tests", "step_cost", *CELLS}
    if unknown:
        known = ", ".join(("tests", "step_cost", *CELLS))
        print(f"error: unknown items {', '.join(sorted(unknown))}: choose from {known}.", file=sys.stderr)
        sys.exit(2)
    device = pick_device(arguments.device)
    origin = {"commit": commit(), "hardware": hardware(device), **versions()}
    end = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    for item in arguments.items:
        left = (end - time.monotonic()) / 60
        if left < MINIMUM:
            print(f"{item}: not started, {left:.1f} minutes are left")
        elif item in CELLS:
            run_cells(item, left, arguments)
        elif done(item, origin, arguments.out):
            print(f"{item}: done before at this commit on this hardware")
        else:
            record(item, measure(item, left, arguments), origin, arguments.out)


def run_cells(item: str, minutes: float, arguments: Arguments) -> None:
    """Runs a benchmark within these minutes; its rows are appended in its own folder."""
    command = [sys.executable, "-m", "ahm_gym", "benchmark", "--data", *arguments.data]
    command += [*CELLS[item].split(), *SHARED.split(), *arguments.flags.split(), "--device", arguments.device]
    command += ["--out", str(arguments.out / item), "--time-budget", f"{max(minutes - 0.5, 0.1):.2f}"]
    if arguments.data_root is not None:
        command += ["--data-root", str(arguments.data_root)]
    print(f"{item}: {minutes:.1f} minutes are left", flush=True)
    code = subprocess.run(command, check=False).returncode
    print(f"{item}: ended with exit code {code}", flush=True)


def measure(item: str, minutes: float, arguments: Arguments) -> dict[str, Any]:
    """Runs the tests or measures the cost of a step; what it printed last is the result."""
    if item == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "tests/device", "tests/pretraining/test_training.py"]
    else:
        command = [sys.executable, "benchmarks/step_cost.py", "--device", arguments.device]
        command += ["--quick"] * (arguments.device == "cpu")
    print(f"{item}: {minutes:.1f} minutes are left", flush=True)
    began = time.monotonic()
    try:
        result = subprocess.run(
            command, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, timeout=60 * minutes
        )
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "seconds": round(time.monotonic() - began), "last": "the time was up"}
    last = next(iter(result.stdout.strip().splitlines()[::-1]), result.stderr[-500:])
    return {"exit_code": result.returncode, "seconds": round(time.monotonic() - began), "last": last}


def done(item: str, origin: dict[str, Any], out: Path) -> bool:
    """Whether the item has succeeded with this commit, hardware and versions."""
    path = out / "queue.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return any(
        row["item"] == item and row["exit_code"] == 0 and {name: row.get(name) for name in origin} == origin
        for row in rows
    )


def record(item: str, result: dict[str, Any], origin: dict[str, Any], out: Path) -> None:
    """Appends a result to `queue.jsonl`."""
    row = {"item": item, **result, **origin}
    with (out / "queue.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{item}: exit code {result['exit_code']}, {result['last']}", flush=True)


if __name__ == "__main__":
    main()

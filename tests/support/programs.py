"""Runs the example programs as a user would."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ahm_gym.runs.storage import load_state

ROOT = Path(__file__).resolve().parents[2]


def start(program: str, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Starts `examples/PROGRAM` in a new process, with one thread, in `cwd`."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / program), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `examples/PROGRAM` in this process, because a new one takes seconds for its imports."""
    argv = [str(ROOT / "examples" / program), *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", argv)
        patch.chdir(cwd)
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def write_discs(path: Path, count: int = 24, size: int = 32) -> Path:
    """Writes an .npz file of labelled bright discs on noise, with the keys of MedSegBench."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    rows, columns = np.mgrid[:size, :size]
    for split, number in (("train", count), ("val", 6), ("test", 8)):
        centre = rng.uniform(size * 0.3, size * 0.7, (2, number, 1, 1))
        radius = rng.uniform(size * 0.15, size * 0.3, (number, 1, 1))
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        noise = rng.normal(60, 20, (number, size, size))
        arrays[f"{split}_images"] = np.clip(noise + 120 * disc, 0, 255).astype(np.uint8)
        arrays[f"{split}_label"] = disc.astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return path


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Waits until the condition holds while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def final_state(path: Path) -> dict[Any, Any]:
    """The state in the newest checkpoint of a run."""
    folder = max((path / "checkpoint").iterdir(), key=lambda item: int(item.name[5:]))
    return load_state(folder)


def assert_same(one: Any, two: Any) -> None:
    """Fails unless two nested states are equal bit for bit."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_same(first, second)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def add_command(folder: Path) -> Path:
    """Writes the command `ahm-gym` into a folder, whether or not the package is installed; returns the folder."""
    command = folder / "ahm-gym"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ahm_gym "$@"\n')
    command.chmod(0o755)
    return folder

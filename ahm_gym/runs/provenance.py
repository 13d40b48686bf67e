"""Provenance of a result: commit, hardware and versions."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path

import torch

import ahm_gym


@functools.cache
def commit() -> str:
    """The commit at the first call, marked `-dirty` if files were changed; for an installed package its version."""
    folder = Path(ahm_gym.__file__).resolve().parents[1]
    installed = f"version {ahm_gym.__version__}"
    if not (folder / ".git").exists():  # installed, perhaps inside another repository
        return installed
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return installed
    return found.stdout.strip()


def hardware(device: torch.device) -> str:
    """The name of the GPU, or the name and the cores of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores of {_processor()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """The versions of this package, torch and Python."""
    return {"ahm_gym": ahm_gym.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

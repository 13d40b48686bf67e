"""Provenance of a result: commit, hardware and versions."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import ahm_gym
from ahm_gym.errors import InputError, say


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


def origin_of(data_digest: str) -> dict[str, Any]:
    """What the `config.json` of a run records of its origin: the data's digest, the versions and the threads."""
    return {"data_digest": data_digest, "versions": versions(), "threads": torch.get_num_threads()}


def check_origin(saved: dict[str, Any], data_digest: str, data: str) -> None:
    """Checks that a run resumes with the images it was started with; says what else has changed.

    Args:
        saved: the run's `config.json`; that of an older version records no digest, which a note says.
        data_digest: the digest of the images that are there now.
        data: what they are called.

    Raises:
        InputError: if the images have changed.
    """
    if "data_digest" not in saved:
        say(f"note: this run does not record its data, so {data} may have changed since.")
    elif saved["data_digest"] != data_digest:
        raise InputError(
            f"{data} has changed since this run was started (digest {data_digest}, formerly "
            f"{saved['data_digest']}): restore the images, name their place with `data`, or start a new run in "
            "another `run_dir`."
        )
    now = origin_of(data_digest)
    changed = [f"{name} {saved[name]!r}" for name in ("threads",) if saved.get(name, now[name]) != now[name]]
    kept = saved.get("versions")
    if isinstance(kept, dict) and kept.get("torch", torch.__version__) != torch.__version__:
        changed.append(f"torch {kept['torch']}")
    if changed:
        say(
            f"note: this run was started with {' and '.join(changed)}, and now has threads {now['threads']} and "
            f"torch {torch.__version__}: the last bits of its numbers may differ.",
        )


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

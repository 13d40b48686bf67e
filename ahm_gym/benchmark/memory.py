"""Peak memory of a part of a program."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        # If a sandbox forbids it, the peak is that since the start of the process.
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # resets the peak resident size to the current size


def peak_memory_mib(device: torch.device) -> float | None:
    """Peak memory in MiB since the reset: GPU allocations, or on a CPU the whole process; None outside Linux."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not _STATUS.exists():
        return None
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10

"""The most memory that a part of a program takes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Begins to measure anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        # Where a sandbox forbids it, the peak is that of the whole process.
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # sets the peak of the resident size back to its present value


def peak_memory_mib(device: torch.device) -> float | None:
    """MiB at the peak since then: of the GPU's allocations, or of the whole process; None off Linux."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not _STATUS.exists():
        return None
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10

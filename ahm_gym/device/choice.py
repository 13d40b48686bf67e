"""The device that a program runs on, and the processes that load images for it."""

from __future__ import annotations

import torch

from ahm_gym.errors import InputError

MOST_DATA_WORKERS = 8


def pick_device(name: str) -> torch.device:
    """The device of that name; auto takes a GPU where there is one.

    Raises:
        InputError: where it is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"`device={name}` is unknown: choose auto, cpu or cuda.") from error
    number = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= number:
        raise InputError(f"`device={name}` is not available here: choose auto or cpu.")
    return device


def count_data_workers(asked: int | None, device: torch.device) -> int:
    """Processes that load images; where nothing is asked for, as many as torch has threads, at most 8, for a GPU.

    A GPU is done with a batch before one process has cut out the next; on a CPU they would take the cores of the
    updates.
    """
    if asked is not None:
        return asked
    return min(torch.get_num_threads(), MOST_DATA_WORKERS) if device.type == "cuda" else 0

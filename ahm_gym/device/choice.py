"""Chooses the device of a program and the number of processes that load images for it."""

from __future__ import annotations

import torch

from ahm_gym.errors import InputError

MAX_DATA_WORKERS = 8


def pick_device(name: str) -> torch.device:
    """The device with that name; auto uses a GPU if there is one.

    Raises:
        InputError: if the name is unknown or the device is not available.
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
    """The number of processes that load images.

    Args:
        asked: the number that was asked for. None: 0 on a CPU, where they would take cores from the updates; on a
            GPU, which finishes a batch before one process has prepared the next, one per thread of torch, at
            most 8.
        device: the device of the updates.
    """
    if asked is not None:
        return asked
    return min(torch.get_num_threads(), MAX_DATA_WORKERS) if device.type == "cuda" else 0

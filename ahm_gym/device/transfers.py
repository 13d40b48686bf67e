"""Transfers between main memory and a GPU that do not wait for the GPU's current work."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Moves a tensor to a device. A copy to a GPU is queued behind the GPU's work; the CPU does not wait."""
    if device.type != "cuda":
        return tensor.to(device)
    if not (tensor.is_cuda or tensor.is_pinned()):
        # Copying from memory that is not pinned, or from a view with gaps, would wait for earlier work.
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


class Fetch:
    """A copy of a tensor to main memory, queued behind the GPU's current work; the CPU does not wait for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.detach().contiguous().to("cpu", non_blocking=True)
        self._arrival = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def wait(self) -> Tensor:
        """Waits for the copy and returns it; a tensor that is already in main memory is returned itself."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy

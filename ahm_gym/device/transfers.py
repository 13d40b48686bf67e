"""Tensors between main memory and a GPU, without waiting for what the GPU is busy with."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device; a GPU gets it in the order of its work, and nobody waits for the GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    if not (tensor.is_cuda or tensor.is_pinned()):
        # A copy from other memory, or of a view with gaps, would wait for the work before it.
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


class Fetch:
    """A tensor on its way to main memory: behind the GPU's work so far, while this process goes on."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.detach().contiguous().to("cpu", non_blocking=True)
        self._arrival = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def wait(self) -> Tensor:
        """The tensor in main memory, once it has arrived; where it was there already, the tensor itself."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy

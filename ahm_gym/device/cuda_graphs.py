"""Work of a GPU that is the same every time: recorded once, and then played back in one go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Replay:
    """Calls a function of tensors; on a GPU records it once their shapes have settled, and plays it back.

    A processor takes tens of milliseconds to ask for the thousand kernels of an update, one by one, and a small
    model's run faster than they are asked for. A recording (a CUDA graph) asks for all of them at once.

    Args:
        function: of tensors, gives back tensors, of which the caller gets copies. What else it reads or writes, such
            as weights and gradients, must stay where it is; and it must not wait for the GPU.
        records: False only ever calls the function.
    """

    settled = 20
    """Calls with the same shapes before one is recorded."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *, records: bool = True) -> None:
        self._function, self._records = function, records
        self._shapes: list[torch.Size] = []
        self._forget()

    @property
    def recorded(self) -> bool:
        """Whether the next call with the same shapes is played back."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = [value.shape for value in inputs]
        if shapes != self._shapes:
            self._shapes = shapes
            self._forget()
        self._num_calls += 1
        if self._num_calls <= self.settled or not (self._records and on_gpu(inputs[0])):
            return self._function(*inputs)
        if self._graph is None:
            self._graph = self._record(inputs)
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value, non_blocking=True)
        self._graph.replay()
        return tuple(value.clone() for value in self._outputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> Any:
        self._inputs = tuple(value.clone() for value in inputs)
        device, graph = inputs[0].device, torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins loaded images, may go on with what a recording could not hold.
        options: dict[str, Any] = {
            "stream": torch.cuda.Stream(device),
            "capture_error_mode": "thread_local",
        }
        with torch.cuda.device(device), torch.cuda.graph(graph, **options):
            self._outputs = self._function(*self._inputs)
        return graph

    def _forget(self) -> None:
        self._num_calls = 0
        self._graph: Any = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Without the recording, which stays in its process and with its tensors."""
        return {"_function": self._function, "_records": self._records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_function"], records=state["_records"])


def on_gpu(value: Tensor) -> bool:
    return value.is_cuda

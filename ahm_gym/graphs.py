"""Work of a GPU that is the same every time: recorded once, and then played back in one go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Replay:
    """Calls a function of tensors; on a GPU records it once their shapes have settled, and plays it back.

    A processor takes tens of milliseconds to ask for the hundreds of kernels of an update, one by one, and a small
    model's run faster than they are asked for. A recording (a CUDA graph) asks for all of them at once.

    Args:
        function: of tensors, gives back tensors, of which the caller gets copies. What else it reads or writes, such
            as weights and gradients, must stay where it is; and it must not wait for the GPU.
    """

    settled = 20
    """Calls with the same shapes before one is recorded."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._shapes: list[torch.Size] = []
        self._num_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = [value.shape for value in inputs]
        if shapes != self._shapes:
            self._shapes, self._num_calls, self._graph = shapes, 0, None
        self._num_calls += 1
        if self._num_calls <= self.settled or not inputs[0].is_cuda:
            return self._function(*inputs)
        if self._graph is None:
            self._graph = self._record(inputs)
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value, non_blocking=True)
        self._graph.replay()
        return tuple(value.clone() for value in self._outputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins loaded images, may go on with what a recording could not hold.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._outputs = self._function(*self._inputs)
        return graph

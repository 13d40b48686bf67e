"""CUDA graphs: GPU work that is the same in every call is recorded once and then replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ahm_gym.device import ranks


class Replay:
    """Calls a function of tensors. On a GPU, records it once the shapes have settled, and then replays it.

    The CPU takes tens of milliseconds to launch the thousand kernels of an update one by one; the kernels of a
    small model run faster than that. A recording (a CUDA graph) launches all of them at once.

    Args:
        function: takes tensors and returns tensors; the caller gets copies of a replay's results. It must not wait
            for the GPU, and other tensors that it reads or writes, such as weights and gradients, must stay at the
            same addresses.
        records: whether to record; if False, the function is always called.
    """

    settled: int = 20
    """Number of calls with the same shapes before one is recorded."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *, records: bool = True) -> None:
        self._function, self._records = function, records
        self._shapes: list[torch.Size] = []
        self._forget()

    @property
    def recorded(self) -> bool:
        """Whether the next call with the same shapes is a replay."""
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
        # Thread-local: other threads, such as the one that pins loaded images, may make calls that cannot be recorded.
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
        """Leaves out the recording, which is tied to its process and its tensors."""
        return {"_function": self._function, "_records": self._records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_function"], records=state["_records"])


class Gradients:
    """Computes the clipped gradients of a loss. On a GPU, both passes are recorded; see `Replay`.

    Args:
        loss: takes tensors and returns the loss and any other tensors.
        parameters: parameters of the model.
        max_norm: a gradient with a larger norm is scaled down to this norm.
        records: whether to record; never with several ranks.
        over_ranks: whether every rank computes the loss from its own rows of the batch, so that gradients are averaged
            over the ranks before they are clipped.
    """

    def __init__(
        self,
        loss: Callable[..., tuple[Tensor, ...]],
        parameters: list[nn.Parameter],
        max_norm: float,
        *,
        records: bool = True,
        over_ranks: bool = False,
    ) -> None:
        self._loss, self._parameters, self._max_norm = loss, parameters, max_norm
        self._over_ranks = over_ranks
        self._passes = Replay(self._compute, records=records and not (over_ranks and ranks.world_size() > 1))
        self._gradients: list[Tensor | None] = []

    @property
    def recorded(self) -> bool:
        """Whether the next call with the same shapes is a replay."""
        return self._passes.recorded

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `loss` returned, detached, and the norm before clipping. The parameters then have the gradients."""
        results = self._passes(*inputs)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # the tensor that a recording writes to, even if it was replaced since
        return results

    def _compute(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for parameter in self._parameters:
            parameter.grad = None
        results = self._loss(*inputs)
        results[0].backward()
        if self._over_ranks:
            ranks.average_gradients(self._parameters)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._gradients = [parameter.grad for parameter in self._parameters]
        return *(value.detach() for value in results), norm


def on_gpu(value: Tensor) -> bool:
    """Whether the tensor is on a GPU; tests replace this function."""
    return value.is_cuda

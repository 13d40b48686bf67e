"""Weights and optimiser state that several processes update together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ahm_gym.errors import InputError, RunError

try:
    import resource
except ImportError:  # not on Windows
    resource = None


def share(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Moves the model's weights and the optimiser's state into shared memory, in place.

    An optimiser without any state yet is taken for Adam, whose state is then made.

    Raises:
        InputError: if there is too little shared memory for them.
    """
    _allow_many_files()
    try:
        _share(model, optimizer)
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise InputError(
            "/dev/shm has too little room for the weights that worker processes share: choose `num_workers=1`, or "
            "enlarge it (docker run --shm-size=1g)."
        ) from error


def _share(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.share_memory()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:  # otherwise created at the first update, and not shared
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
            for value in optimizer.state[parameter].values():
                value.share_memory_()


def _allow_many_files() -> None:
    """Raises the limit of open files: every shared tensor is one, and the usual limit is 1,024."""
    if resource is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def read(local: nn.Module, shared: nn.Module) -> None:
    """Copies the shared parameters and buffers into the local ones."""
    load(local, weights_of(shared))


def weights_of(module: nn.Module) -> list[Tensor]:
    """The parameters and the buffers of a module, themselves and no copies."""
    return [*module.parameters(), *module.buffers()]


def load(module: nn.Module, weights: Sequence[Tensor]) -> None:
    """Copies weights, in the order of `weights_of`, into a module."""
    with torch.no_grad():
        for mine, theirs in zip(weights_of(module), weights, strict=True):
            mine.copy_(theirs)


def gradients_of(module: nn.Module) -> list[Tensor | None]:
    """The gradients of a module's parameters."""
    return [parameter.grad for parameter in module.parameters()]


def use_gradients(module: nn.Module, gradients: Sequence[Tensor | None]) -> None:
    """Lets the parameters of a module use gradients that were computed with a copy of it.

    Must be called for every update: zero_grad sets gradients to None, so a reference from an earlier
    update would point to old gradients.
    """
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient


@contextlib.contextmanager
def held(lock: Any, seconds: float = 60.0) -> Iterator[None]:
    """Holds a lock. If it is never released, the run ends instead of hanging.

    Raises:
        RunError: if the lock is not free after `seconds`, because a process died or hangs while it holds the lock.
    """
    if not lock.acquire(timeout=seconds):
        raise RunError(
            f"the shared weights stayed locked for {seconds:.0f} s: a worker died or hangs while it holds them; "
            "continue from the last checkpoint with `resume`."
        )
    try:
        yield
    finally:
        lock.release()

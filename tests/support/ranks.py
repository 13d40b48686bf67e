"""Runs functions in several processes, as torchrun would start them, but forked: they import nothing again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch
from jaxtyping import config as checks
from torch.distributed import TCPStore

from ahm_gym.device import ranks


@dataclass(frozen=True)
class Outcome:
    """What became of a rank."""

    value: Any = None
    error: str = ""
    """The type and the message of an exception."""
    exit_code: int | None = None
    """That of an `Interrupted`."""
    trace: str = ""
    died: bool = False
    """Whether the process ended without an answer."""


def outcomes(size: int, function: Callable[..., Any], *arguments: Any) -> list[Outcome]:
    """What becomes of every rank that calls the function."""
    processes: list[Any] = []
    try:
        port = _fork(processes, _keep_store).recv()
        environments = [environment_of(rank, size, port) for rank in range(size)]
        pipes = [_fork(processes, _work, environment, function, arguments) for environment in environments]
        return _answers(pipes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def in_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns in every rank; fails with the traceback of a rank that raises."""
    found = outcomes(size, function, *arguments)
    for outcome in sorted(found, key=lambda outcome: not outcome.error):
        assert not outcome.error and not outcome.died, outcome.trace
    return [outcome.value for outcome in found]


def _fork(processes: list[Any], target: Callable[..., None], *arguments: Any) -> Any:
    """Starts a process; returns the end of the pipe through which it answers."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(writer, *arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside a thread that watches the clock
        process.start()
    processes.append(process)
    writer.close()
    return reader


def _keep_store(pipe: Any) -> None:
    """Does the part of torchrun's agent. In a process of its own: forks beside the threads of a store may hang."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    signal.pause()


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    return {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def _answers(pipes: list[Any]) -> list[Outcome]:
    """What becomes of the ranks; those that still wait some time after another has failed count as dead."""
    found: dict[int, Outcome] = {}
    seconds = 120
    while len(found) < len(pipes):
        waiting = [pipe for number, pipe in enumerate(pipes) if number not in found]
        ready: Any = wait(waiting, seconds)
        for pipe in ready or waiting:
            found[pipes.index(pipe)] = _answer(pipe) if ready else Outcome(died=True, trace="it was silent")
        if any(outcome.error or outcome.died for outcome in found.values()):
            seconds = 10
    return [found[number] for number in range(len(pipes))]


def _answer(pipe: Any) -> Outcome:
    try:
        return pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionError):
        return Outcome(died=True)


def _work(
    pipe: Any, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    checks.update("jaxtyping_disable", True)  # as in the later part of any test
    os.environ |= environment
    try:
        with ranks.started():
            outcome = Outcome(function(*arguments))
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
        outcome = Outcome(None, told, getattr(error, "exit_code", None), traceback.format_exc())
    pipe.send_bytes(pickle.dumps(outcome))  # by itself: tensors that are sent to a process need their sender

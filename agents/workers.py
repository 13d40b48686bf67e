"""Worker processes of A3C: each acts in its own environment and updates the shared weights."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

from ahm_gym.agents.base import Callback, MakeEnv, Metrics, PausingCallback
from ahm_gym.agents.learner import Learner
from ahm_gym.errors import RunError

if TYPE_CHECKING:
    from ahm_gym.agents.a3c import A3C


def run_workers(
    agent: A3C,
    make_env: MakeEnv,
    num_steps: int,
    *,
    seed: int | None,
    callback: Callback | None,
) -> None:
    """Runs the agent's workers until the autoencoder has had `num_steps` more updates.

    A `PausingCallback` is called with all workers idle after each update that it has announced, so that weights,
    agent and number of updates are consistent.

    Raises:
        RunError: if a worker raises, with its traceback, or if a worker dies, with its exit code.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    agent.share_memory(context.Lock())
    try:
        claims, stop = Claims(context, num_steps, callback), context.Event()
        arguments = (agent, make_env, seed, claims, stop, writer, context.Lock(), os.getpid())
        with _ignored_by_children(), writer:
            workers = multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
                _work, arguments, nprocs=agent.num_workers, join=False, daemon=False
            )
        _watch_to_the_end(workers, reader, claims, stop, callback)
    finally:
        reader.close()
        agent.lock = None


def _watch_to_the_end(
    workers: Any, reader: Any, claims: Claims, stop: Any, callback: Callback | None
) -> None:
    """Watches the workers and leaves none behind; raises RunError if one of them failed."""
    try:
        _watch(workers, reader, claims, stop, callback)
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
        number = len(workers.processes)
        raise RunError(
            f"worker {error.error_index} of {number} failed and ended the run; continue from the last checkpoint "
            f"with `resume`. {error}"
        ) from error
    finally:
        for process, error_file in zip(workers.processes, workers.error_files, strict=True):
            if process.is_alive():
                process.kill()
            process.join()
            Path(error_file).unlink(missing_ok=True)


class Claims:
    """Permission to start updates: `num_steps` in total, and none beyond the next pause."""

    def __init__(self, context: Any, num_steps: int, callback: Callback | None) -> None:
        self.num_steps: int = num_steps
        self.callback: Callback | None = callback
        self.done: int = 0
        self.claimed: Any = context.Value("q", 0)
        self.limit: Any = context.Value("q", self._next_limit())

    def claim(self) -> bool | None:
        """Claims one update: True if it may start now, False if not yet, None if none is left."""
        with self.claimed.get_lock():
            if self.claimed.value >= self.num_steps:
                return None
            granted = self.claimed.value < self.limit.value
            self.claimed.value += granted
            return granted

    def finish_one(self) -> None:
        """Counts an update whose callback has returned; once all up to the limit are done, sets the next limit."""
        self.done += 1
        if self.done == self.limit.value:
            self.limit.value = self._next_limit()

    def _next_limit(self) -> int:
        if not isinstance(self.callback, PausingCallback):
            return self.num_steps
        return min(self.callback.next_pause(self.done), self.num_steps)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"callback": None}


def _watch(workers: Any, reader: Any, claims: Claims, stop: Any, callback: Callback | None) -> None:
    """Passes the workers' metrics to the callback until all workers have ended."""
    ended = False
    while not ended:
        ended = workers.join(timeout=0.05, grace_period=0.2)
        while (metrics := _receive(reader)) is not None:
            # Even after a stop: updates that others had started have changed the weights, so they count.
            if callback is not None and callback(metrics):
                stop.set()
            claims.finish_one()


def _receive(reader: Any) -> Metrics | None:
    try:
        return reader.recv() if reader.poll() else None
    except EOFError:  # every worker has closed its end
        return None


@contextlib.contextmanager
def _ignored_by_children() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C and SIGTERM from the beginning; their parent decides when to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(
    rank: int,
    agent: A3C,
    make_env: MakeEnv,
    seed: int | None,
    claims: Claims,
    stop: Any,
    writer: Any,
    write_lock: Any,
    parent: int,
) -> None:
    """One worker: claims an update, plays and learns, and reports, until all updates are claimed."""
    torch.set_num_threads(1)
    worker_seed = 1_000_003 * (rank + 1) + (int(agent.writes) if seed is None else seed)
    learner = Learner(agent, copy.deepcopy(agent.network), make_env(), torch.Generator(), worker_seed)
    while not stop.is_set() and os.getppid() == parent:
        granted = claims.claim()
        if granted is None:
            break
        if not granted:
            time.sleep(0.002)
            continue
        metrics = learner.episode()
        with write_lock:
            writer.send(metrics)
    learner.env.close()

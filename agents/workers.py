"""Worker processes of A3C: each acts in its own environment and updates the shared weights."""

from __future__ import annotations

import copy
import signal
import threading
import time
import traceback
from contextlib import closing
from multiprocessing.util import get_temp_dir
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

from ahm_gym.agents.base import Callback, MakeEnv, Metrics, PausingCallback
from ahm_gym.agents.learner import Learner
from ahm_gym.device.signals import ignored_by_children
from ahm_gym.errors import RunError
from ahm_gym.runs.interrupt import end_with_the_parent

if TYPE_CHECKING:
    from ahm_gym.agents.a3c import A3C

SILENCE: float = 60.0
"""Seconds without a sign of life after which a worker counts as hung, such as one that was stopped by a signal."""
START: float = 600.0
"""Seconds in which a worker must have started; the imports take long on a busy machine."""
STUCK: float = 1800.0
"""Seconds without any progress after which a worker no longer shows that it is alive."""
RESUME: str = "continue from the last checkpoint with `resume`"


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
        RunError: if a worker raises, with its traceback, dies, with the signal, or is silent for too long.
    """
    context = multiprocessing.get_context("spawn")
    get_temp_dir()  # one for all processes, which this one removes even if a worker is killed
    agent.share_memory(context.Lock())
    try:
        claims, stop, write_lock = Claims(context, num_steps, callback), context.Event(), context.Lock()
        reader, writer = context.Pipe(duplex=False)
        workers: list[Worker] = []
        with closing(reader):
            try:
                with ignored_by_children(signal.SIGINT, signal.SIGTERM), closing(writer):
                    for rank in range(agent.num_workers):
                        arguments = (rank, agent, make_env, seed, claims, stop, writer, write_lock)
                        workers.append(Worker(context, rank, arguments))
                _watch(workers, reader, claims, stop, callback)
            finally:
                for worker in workers:
                    worker.end()
    finally:
        agent.lock = None


class Worker:
    """A worker process, with a pipe for the reason of its failure and a counter that shows that it is alive."""

    def __init__(self, context: Any, rank: int, arguments: tuple[Any, ...]) -> None:
        self.name: str = f"worker {rank} of {arguments[1].num_workers}"
        reader, failed = context.Pipe(duplex=False)
        self.failure: Any = reader
        self.beats: Any = context.Value("q", 0, lock=False)
        self.process: Any = context.Process(target=_run_worker, args=(failed, self.beats, arguments))
        self.process.start()
        failed.close()
        self.seen: int = 0
        self.silent: float = 0.0
        """Seconds for which this process has watched and heard no beat: not those in which it slept itself."""

    def is_running(self, watched: float) -> bool:
        """Whether the worker still works.

        Args:
            watched: seconds since the last call.

        Raises:
            RunError: if it has failed, or has been silent for too long.
        """
        beats = self.beats.value
        self.silent = 0.0 if beats != self.seen else self.silent + min(watched, 1.0)
        self.seen = beats
        if self.process.is_alive():
            if self.silent > (SILENCE if beats else START):
                raise RunError(
                    f"{self.name} has been silent for {self.silent:.0f} s and is stopped, which ends the run; {RESUME}."
                )
            return True
        if code := self.process.exitcode:
            raise RunError(f"{self.name} failed and ended the run; {RESUME}. {self._reason(code)}")
        return False

    def _reason(self, code: int) -> str:
        try:
            return self.failure.recv_bytes().decode(errors="replace") if self.failure.poll() else _ended(code)
        except (EOFError, OSError):
            return _ended(code)

    def end(self) -> None:
        """Leaves nothing of the process behind."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.failure.close()


def _ended(code: int) -> str:
    """What an exit code says."""
    return f"It ended with {signal.Signals(-code).name}." if code < 0 else f"It ended with exit code {code}."


def _run_worker(failed: Any, beats: Any, arguments: tuple[Any, ...]) -> None:
    """The process of a worker: it shows that it is alive, ends with its parent, and reports why it failed."""
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    progress = Progress()
    threading.Thread(target=progress.beat, args=(beats,), daemon=True).start()
    try:
        _work(*arguments, progress=progress)
    except BaseException:
        failed.send_bytes(traceback.format_exc().encode()[-30_000:])  # a pipe holds 64 KiB
        raise SystemExit(1) from None


class Progress:
    """When a worker last made progress; its heart beats only as long as that is not too long ago."""

    def __init__(self) -> None:
        self.last: float = time.monotonic()

    def made(self) -> None:
        """Notes progress."""
        self.last = time.monotonic()

    def is_recent(self, now: float) -> bool:
        """Whether the last progress was less than `STUCK` seconds ago."""
        return now - self.last < STUCK

    def beat(self, beats: Any) -> None:
        """Counts once a second; runs in a thread of its own."""
        while True:
            beats.value += self.is_recent(time.monotonic())
            time.sleep(1)


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


def _watch(workers: list[Worker], reader: Any, claims: Claims, stop: Any, callback: Callback | None) -> None:
    """Passes the workers' metrics to the callback until all workers have ended."""
    last = time.monotonic()
    running = True
    while running:
        time.sleep(0.02)
        now = time.monotonic()
        running = sum(worker.is_running(now - last) for worker in workers) > 0
        last = now
        while (metrics := _receive(reader)) is not None:
            # Even after a stop: updates that others had started have changed the weights, so they count.
            if callback is not None and callback(metrics):
                stop.set()
            claims.finish_one()
            last = time.monotonic()


def _receive(reader: Any) -> Metrics | None:
    try:
        return reader.recv() if reader.poll() else None
    except EOFError:  # every worker has closed its end
        return None


def _work(
    rank: int,
    agent: A3C,
    make_env: MakeEnv,
    seed: int | None,
    claims: Claims,
    stop: Any,
    writer: Any,
    write_lock: Any,
    progress: Progress,
) -> None:
    """One worker: claims an update, plays and learns, and reports, until all updates are claimed."""
    torch.set_num_threads(1)
    worker_seed = 1_000_003 * (rank + 1) + (int(agent.writes) if seed is None else seed)
    learner = Learner(agent, copy.deepcopy(agent.network), make_env(), torch.Generator(), worker_seed)
    while not stop.is_set():
        progress.made()
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

"""Runs groups of jobs one after another in this process, or several at a time in their own processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ahm_gym.benchmark.jobs import Failure, Job, run_group
from ahm_gym.errors import Interrupted
from ahm_gym.runs.interrupt import Interrupt, end_with_the_parent
from ahm_gym.runs.storage import file_name


@runtime_checkable
class Work(Protocol):
    """A group of jobs that run one after another in one process; its text names it."""

    @property
    def jobs(self) -> Sequence[Job]: ...

    @property
    def out(self) -> Path: ...


Run = Callable[[Any, Interrupt], Iterator[Any]]
"""Runs one group and yields the row or the failure of each of its jobs, as `run_group` does; picklable."""


def run_groups(
    groups: Sequence[Work], num_processes: int, interrupt: Interrupt, run: Run = run_group
) -> Iterator[Any]:
    """Yields the row or the failure of every job; ends early, with everything saved, after a request to stop.

    Args:
        groups: groups in the order in which they start.
        num_processes: number of groups that run at the same time and share the cores evenly; 1 starts no process.
        interrupt: request to stop; the processes get its deadline too.
        run: what runs a group.
    """
    if num_processes > 1:
        yield from Processes(groups, num_processes, interrupt, run).run()
        return
    with contextlib.suppress(Interrupted):
        for group in groups:
            if interrupt.requested:
                return
            yield from run(group, interrupt)


class Processes:
    """Runs each group in its own process; if a process dies, only the jobs of its group fail."""

    def __init__(
        self, groups: Sequence[Work], num_processes: int, interrupt: Interrupt, run: Run = run_group
    ) -> None:
        self.waiting: deque[Work] = deque(groups)
        self._run_group = run
        self.num_processes: int = num_processes
        self.interrupt: Interrupt = interrupt
        self.running: dict[Connection, tuple[BaseProcess, dict[Any, Any]]] = {}
        self._context = multiprocessing.get_context("spawn")

    def run(self) -> Iterator[Any]:
        """Yields the row or the failure of every job."""
        stopping = False
        try:
            while self.running or (self.waiting and not self.interrupt.requested):
                while (
                    self.waiting and len(self.running) < self.num_processes and not self.interrupt.requested
                ):
                    self._start(self.waiting.popleft())
                if self.interrupt.signal is not None and not stopping:
                    stopping = True
                    for process, _ in self.running.values():
                        process.terminate()
                for connection in wait(list(self.running), timeout=0.5):
                    assert isinstance(connection, Connection)
                    yield from self.receive(connection)
        finally:
            for process, _ in self.running.values():
                process.kill()

    def _start(self, group: Work) -> None:
        reader, writer = self._context.Pipe(duplex=False)
        threads = max((os.cpu_count() or 1) // self.num_processes, 1)
        given = (group, self._run_group, threads, self.interrupt.deadline, writer)
        process = self._context.Process(target=_work, args=given, name=str(group))
        process.start()
        writer.close()
        self.running[reader] = process, {job.key: job for job in group.jobs}

    def receive(self, connection: Connection) -> Iterator[Any]:
        """Yields the next outcome of a process, or the failures of its remaining jobs if it has died."""
        process, jobs = self.running[connection]
        try:
            outcome = connection.recv()
        except (EOFError, OSError):  # OSError if the process was killed in the middle of a row
            process.join()
            del self.running[connection]
            connection.close()
            if process.exitcode and self.interrupt.signal is None:
                reason = f"its process ended with exit code {process.exitcode} (-9 is a kill: out of memory?)"
                yield from (Failure(job, reason) for job in jobs.values())
            return
        jobs.pop(outcome.job.key if isinstance(outcome, Failure) else outcome.key)
        yield outcome


def _work(group: Work, run: Run, threads: int, deadline: float, writer: Connection) -> None:
    """Runs one group; its output goes to its own log file."""
    torch.set_num_threads(threads)
    # Alone, the process could not store rows and would keep the run folder locked.
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    path = group.out / "logs" / f"{file_name(str(group))}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        with contextlib.suppress(Interrupted):
            for outcome in run(group, Interrupt(deadline)):
                writer.send(outcome)

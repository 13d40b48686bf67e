"""Groups of jobs, one after another in this process, or several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ahm_gym.benchmark.jobs import Failure, Group, run_group
from ahm_gym.benchmark.rows import Row
from ahm_gym.errors import Interrupted
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.storage import file_name


def run_groups(groups: list[Group], num_processes: int, interrupt: Interrupt) -> Iterator[Row | Failure]:
    """Yields the row or the failure of every job; ends early, with everything saved, after a request to stop.

    Args:
        groups: in the order in which they begin.
        num_processes: 1 spawns none; more run that many groups at a time, which share the processor's cores evenly.
        interrupt: asks to stop; its deadline goes to the processes too.
    """
    if num_processes > 1:
        yield from Processes(groups, num_processes, interrupt).run()
        return
    with contextlib.suppress(Interrupted):
        for group in groups:
            if interrupt.requested:
                return
            yield from run_group(group, interrupt)


class Processes:
    """One process a group; one that dies takes the jobs of its group along, and no others."""

    def __init__(self, groups: list[Group], num_processes: int, interrupt: Interrupt) -> None:
        self.waiting, self.num_processes, self.interrupt = deque(groups), num_processes, interrupt
        self.running: dict[Connection, tuple[BaseProcess, dict[Any, Any]]] = {}
        self.context = multiprocessing.get_context("spawn")

    def run(self) -> Iterator[Row | Failure]:
        told = False
        try:
            while self.running or (self.waiting and not self.interrupt.requested):
                while (
                    self.waiting and len(self.running) < self.num_processes and not self.interrupt.requested
                ):
                    self._start(self.waiting.popleft())
                if self.interrupt.signal is not None and not told:
                    told = True
                    for process, _ in self.running.values():
                        process.terminate()
                for connection in wait(list(self.running), timeout=0.5):
                    assert isinstance(connection, Connection)
                    yield from self._receive(connection)
        finally:
            for process, _ in self.running.values():
                process.kill()

    def _start(self, group: Group) -> None:
        reader, writer = self.context.Pipe(duplex=False)
        threads = max((os.cpu_count() or 1) // self.num_processes, 1)
        process = self.context.Process(
            target=_work, args=(group, threads, self.interrupt.deadline, writer), name=str(group)
        )
        process.start()
        writer.close()
        self.running[reader] = process, {job.key: job for job in group.jobs}

    def _receive(self, connection: Connection) -> Iterator[Row | Failure]:
        process, jobs = self.running[connection]
        try:
            outcome = connection.recv()
        except (EOFError, OSError):  # the latter where it was killed in the middle of a row
            process.join()
            del self.running[connection]
            connection.close()
            if process.exitcode and self.interrupt.signal is None:
                reason = f"its process ended with exit code {process.exitcode} (-9 is a kill: out of memory?)"
                yield from (Failure(job, reason) for job in jobs.values())
            return
        jobs.pop(outcome.job.key if isinstance(outcome, Failure) else outcome.key)
        yield outcome


def _work(group: Group, threads: int, deadline: float, writer: Connection) -> None:
    """One group; what it prints goes into a file of its own."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    path = group.out / "logs" / f"{file_name(str(group))}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        with contextlib.suppress(Interrupted):
            for outcome in run_group(group, Interrupt(deadline)):
                writer.send(outcome)


def _end_with_the_parent() -> None:
    """Without its parent a process cannot store rows, and it would block the run folder for the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child"
    wait([parent.sentinel])
    os._exit(1)

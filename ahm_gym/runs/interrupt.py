"""Stops a program on a signal or at a deadline without loss of work."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait
from types import FrameType, TracebackType
from typing import Any


def end_with_the_parent() -> None:
    """Waits for the end of the parent, however it ends, then ends this process; runs in a thread of its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child"
    wait([parent.sentinel])
    os._exit(1)


class Interrupt:
    """A context in which Ctrl-C and SIGTERM only request a stop. A second Ctrl-C stops at once.

    Outside the main thread, where no signal arrives, the context does nothing.

    Args:
        deadline: time at which a stop is requested, in seconds since the epoch.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline: float = deadline
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._depth = 0

    @property
    def requested(self) -> bool:
        """Whether the program should stop at the next point at which no work is lost."""
        return self.signal is not None or time.time() >= self.deadline

    def __enter__(self) -> Interrupt:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

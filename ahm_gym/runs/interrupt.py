"""Stopping a program by a signal or a deadline without losing what it has done."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While entered, Ctrl-C and SIGTERM ask to stop instead of stopping; a second Ctrl-C stops at once.

    Outside the main thread, where no signal arrives, it does nothing. A deadline asks to stop, too.

    Args:
        deadline: in seconds, as `time.time()` counts them.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._depth = 0

    @property
    def requested(self) -> bool:
        """Whether to stop at the next point where nothing is lost."""
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

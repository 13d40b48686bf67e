"""Handlers of signals that are as before once a context ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def handlers_kept(*numbers: signal.Signals) -> Iterator[None]:
    """Restores this process's handlers of these signals at the end, which is only possible in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ignored_by_children(*numbers: signal.Signals) -> Iterator[None]:
    """Processes started inside ignore these signals from the beginning; their parent decides when they stop."""
    with handlers_kept(*numbers):
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
        yield

"""A progress bar with rate and remaining time in a terminal, and plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

LINE_EVERY = 30.0
"""Seconds between two plain lines."""


class Progress:
    """Shows the progress of a loop: a bar in a terminal, otherwise a line every 30 s and one at the end.

    Args:
        description: name of the work, in a word or two.
        total: the last step.
        start: the step at which the loop starts.
        images_per_step: number of images in a step; if given, the rate includes images per second.
        console: where progress is shown; default: standard error.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int,
        start: int = 0,
        images_per_step: int | None = None,
        console: Console | None = None,
    ) -> None:
        self.description: str = description
        self.total: int = total
        self.start: int = start
        self.images_per_step: int | None = images_per_step
        self.console: Console = Console(stderr=True) if console is None else console
        self._step = start
        self._metrics: dict[str, float | int] = {}
        self._bar: Bar | None = None
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        self._began = self._shown = time.monotonic()
        if self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            status = TextColumn("{task.fields[status]}", markup=False, table_column=rest)
            self._bar = Bar(*columns, status, console=self.console, refresh_per_second=4, expand=True)
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.start, status=""
            )
            self._bar.start()
        return self

    def advance(self, step: int, **metrics: float | int) -> None:
        """Moves to a step and shows these metrics with it."""
        self._step, self._metrics = step, metrics
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=self._status(now - self._began))
        elif now - self._shown >= LINE_EVERY:
            self._shown = now
            self._print_line(now - self._began)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print_line(time.monotonic() - self._began)

    def _print_line(self, seconds: float) -> None:
        share = self._step / max(self.total, 1)
        line = f"{self.description} {self._step}/{self.total} ({share:.0%}), {self._status(seconds)}"
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _status(self, seconds: float) -> str:
        rate = (self._step - self.start) / max(seconds, 1e-9)
        parts = [f"{rate:.2f} steps/s" if rate < 10 else f"{rate:.0f} steps/s"]
        if self.images_per_step is not None:
            parts.append(f"{rate * self.images_per_step:.0f} images/s")
        remaining = self.total - self._step
        if remaining <= 0:
            parts.append(f"took {clock(seconds)}")
        elif rate > 0:
            parts.append(f"{clock(remaining / rate)} left")
        parts += [f"{name} {value:.4g}" for name, value in self._metrics.items()]
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Formats seconds as minutes:seconds, or as hours:minutes:seconds for an hour or more."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""The finished rows of a benchmark, and how far it is."""

from __future__ import annotations

import sys
from pathlib import Path

from ahm_gym.benchmark.jobs import Failure, Group
from ahm_gym.benchmark.rows import UNTRAINED, Row, ScoreRow, read_lines
from ahm_gym.runs.storage import sync


def append_row(out: Path, row: Row) -> None:
    """Adds a finished row; it is on the disk when this returns."""
    path = out / "rows.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(row.line())
    sync(path)


class BenchmarkProgress:
    """Prints every job as it ends, how many are left, and about how long they take."""

    def __init__(self, out: Path, groups: list[Group], num_processes: int) -> None:
        jobs = [job for group in groups for job in group.jobs]
        self.missing = {job.key: job for job in jobs}
        rows = read_lines(out)
        self.total = len(rows) + len(jobs)
        self.num_processes = num_processes
        self.seconds: dict[str, list[float]] = {}
        for row in rows:
            self._note(row)

    @property
    def left(self) -> int:
        return len(self.missing)

    def show(self, outcome: Row | Failure) -> None:
        """One line on standard error."""
        if isinstance(outcome, Failure):
            told = f"{outcome.job} FAILED: {outcome.reason}"
        else:
            job = self.missing.pop(outcome.key)
            self._note(outcome)
            dice = outcome.dice if isinstance(outcome, ScoreRow) else None
            score = "" if dice is None else f", Dice {dice:.3f}"
            told = f"{job}{score}, {outcome.seconds:.0f} s"
        done = self.total - self.left
        print(f"{done} of {self.total} | {told} | {self._time_left()}", file=sys.stderr, flush=True)

    def _note(self, row: Row) -> None:
        if row.policy != UNTRAINED or row.kind != "pretrain":
            self.seconds.setdefault(row.kind, []).append(row.seconds)

    def _time_left(self) -> str:
        known = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        missing = [job for job in self.missing.values() if job.kind != "pretrain" or job.policy != UNTRAINED]
        if not all(job.kind in known for job in missing):
            return "time left not known yet"
        minutes = sum(known[job.kind] for job in missing) / self.num_processes / 60
        return f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"

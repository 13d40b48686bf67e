"""Stores the finished rows of a benchmark and shows its progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ahm_gym.benchmark.jobs import Failure, Job
from ahm_gym.benchmark.processes import Work
from ahm_gym.benchmark.rows import UNTRAINED, BaseRow, read_lines
from ahm_gym.errors import say
from ahm_gym.runs.storage import sync


def append_row(out: Path, row: BaseRow) -> None:
    """Appends a finished row and waits until it is on the disk."""
    path = out / "rows.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(row.line())
    sync(path)


class BenchmarkProgress:
    """Prints each job as it ends, the number of finished jobs, and an estimate of the time left.

    Args:
        out: folder of the benchmark.
        groups: what is left to do.
        num_processes: number of groups that run at the same time.
        rows: what is done; default: the rows of the folder.
    """

    def __init__(
        self,
        out: Path,
        groups: Sequence[Work],
        num_processes: int,
        rows: Sequence[BaseRow] | None = None,
    ) -> None:
        jobs = [job for group in groups for job in group.jobs]
        self.missing: dict[tuple[str, str, str, int, int | None], Job] = {job.key: job for job in jobs}
        rows = read_lines(out) if rows is None else rows
        self.total: int = len(rows) + len(jobs)
        self.num_processes: int = num_processes
        self.seconds: dict[str, list[float]] = {}
        for row in rows:
            self._note(row)

    @property
    def left(self) -> int:
        """Number of jobs without a row."""
        return len(self.missing)

    def show(self, outcome: BaseRow | Failure) -> None:
        """Prints one line on standard error."""
        if isinstance(outcome, Failure):
            result = f"{outcome.job} FAILED: {outcome.reason}"
        else:
            job = self.missing.pop(outcome.key)
            self._note(outcome)
            score = f", {outcome.result}" if outcome.result else ""
            result = f"{job}{score}, {outcome.seconds:.0f} s"
        done = self.total - self.left
        say(f"{done} of {self.total} | {result} | {self._time_left()}")

    def _note(self, row: BaseRow) -> None:
        if row.policy != UNTRAINED or row.kind != "pretrain":
            self.seconds.setdefault(row.pace, []).append(row.seconds)

    def _time_left(self) -> str:
        known = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        missing = [job for job in self.missing.values() if job.kind != "pretrain" or job.policy != UNTRAINED]
        if not all(job.pace in known for job in missing):
            return "time left not known yet"
        minutes = sum(known[job.pace] for job in missing) / self.num_processes / 60
        return f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"

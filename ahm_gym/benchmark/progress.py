"""The rows that a benchmark has finished, and how far it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ahm_gym.benchmark.jobs import Failure, Group, key_of
from ahm_gym.benchmark.rows import UNTRAINED, Row, read_lines
from ahm_gym.runs.storage import sync


def append_row(out: Path, row: Row) -> None:
    """Adds a finished row; it is on the disk when this returns."""
    path = out / "rows.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded(row)) + "\n")
    sync(path)


def rounded(value: Any) -> Any:
    """The same with floats of six digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


class Board:
    """Tells of every cell as it ends, how many are left, and about how long they take."""

    def __init__(self, out: Path, groups: list[Group], jobs: int) -> None:
        cells = [cell for group in groups for cell in group.cells]
        self.missing = {cell.key: cell for cell in cells}
        rows = read_lines(out)
        self.total = len(rows) + len(cells)
        self.jobs = jobs
        self.seconds: dict[str, list[float]] = {}
        for row in rows:
            self._note(row)

    @property
    def left(self) -> int:
        return len(self.missing)

    def show(self, outcome: Row | Failure) -> None:
        """One line on standard error."""
        if isinstance(outcome, Failure):
            told = f"{outcome.cell} FAILED: {outcome.reason}"
        else:
            cell = self.missing.pop(key_of(outcome))
            self._note(outcome)
            score = f", Dice {outcome['dice']:.3f}" if outcome.get("dice") is not None else ""
            told = f"{cell}{score}, {outcome['seconds']:.0f} s"
        done = self.total - self.left
        print(f"{done} of {self.total} | {told} | {self._time_left()}", file=sys.stderr, flush=True)

    def _note(self, row: Row) -> None:
        if row["policy"] != UNTRAINED or row["kind"] != "pretrain":
            self.seconds.setdefault(row["kind"], []).append(row["seconds"])

    def _time_left(self) -> str:
        known = {kind: sum(values) / len(values) for kind, values in self.seconds.items()}
        missing = [
            cell for cell in self.missing.values() if cell.kind != "pretrain" or cell.policy != UNTRAINED
        ]
        if not all(cell.kind in known for cell in missing):
            return "time left not known yet"
        minutes = sum(known[cell.kind] for cell in missing) / self.jobs / 60
        return f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"

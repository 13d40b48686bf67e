"""The finished rows of a benchmark, as they lie in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahm_gym.errors import InputError

REFERENCE = "random"
"""The policy that every other is compared with."""
UNTRAINED = "scratch"

KINDS = {"finetune": "fine-tuned", "frozen": "frozen encoder", "probe": "probe"}
"""Kinds of score in the order of the report, and their names in it."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """How policies are compared on every data set: by one kind of score at one number of labels."""

    kind: str
    amount: str
    """Labelled images as requested: a count, or a fraction such as 0.1."""

    @property
    def labels(self) -> int | float:
        """The count or fraction as a number."""
        return float(self.amount) if "." in self.amount else int(self.amount)

    @property
    def name(self) -> str:
        if "." in self.amount:
            return f"{KINDS[self.kind]}, {self.amount} of the labels"
        return f"{KINDS[self.kind]}, {self.amount} label{'s' * (self.amount != '1')}"

    @property
    def metric(self) -> str:
        """The name of its Dice."""
        return "patch Dice" if self.kind == "probe" else "Dice"


@dataclass(frozen=True)
class Rows:
    """The newest row of everything that has finished."""

    config: dict[str, Any]
    pretraining: dict[tuple[str, str, int], Row]
    """By data, policy and seed."""
    scores: dict[tuple[Task, str, str, int], Row]
    """By task, data, policy and seed."""

    @property
    def tasks(self) -> list[Task]:
        order = list(KINDS)
        found = {task for task, *_ in self.scores}
        return sorted(found, key=lambda task: (order.index(task.kind), task.labels))

    @property
    def data(self) -> list[str]:
        return sorted({data for data, *_ in self.pretraining} | {data for _, data, *_ in self.scores})

    @property
    def policies(self) -> list[str]:
        """With the untrained encoder and the reference first."""
        found = {key[1] for key in self.pretraining} | {key[2] for key in self.scores}
        return sorted(found, key=lambda policy: (policy != UNTRAINED, policy != REFERENCE, policy))

    @property
    def seeds(self) -> list[int]:
        return sorted({key[-1] for key in [*self.pretraining, *self.scores]})


def read_lines(out: Path) -> list[Row]:
    """The rows that stand in `rows.jsonl`, oldest first.

    A last line without its end is one that is being written, or was torn, and is left out.

    Raises:
        InputError: where a line is no row.
    """
    path = out / "rows.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            if row["kind"] in KINDS:
                Task(row["kind"], amount_of(row)).labels  # noqa: B018
            elif row["kind"] != "pretrain":
                raise ValueError(f"unknown kind {row['kind']}")
            rows.append(row | {name: row[name] for name in ("data", "policy", "seed")})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"line {number} of {path} is not a row of a benchmark ({error!r}): delete that line, and "
                "the benchmark runs its part again."
            ) from error
    return rows


def amount_of(row: Row) -> str:
    """The number of labels as it was asked for."""
    return str(row.get("amount") or row["labels"])


def read_rows(out: Path) -> Rows:
    """What `rows.jsonl` and `config.json` of a benchmark's folder hold; a row that came twice counts once.

    Raises:
        InputError: where there is no finished row, or a line is none.
    """
    pretraining, scores = {}, {}
    for row in read_lines(out):
        if row["kind"] == "pretrain":
            pretraining[row["data"], row["policy"], row["seed"]] = row
        else:
            task = Task(row["kind"], amount_of(row))
            scores[task, row["data"], row["policy"], row["seed"]] = row
    if not pretraining and not scores:
        raise InputError(
            f"{out / 'rows.jsonl'} holds no finished row: run the benchmark first, or name its folder."
        )
    config = out / "config.json"
    return Rows(json.loads(config.read_text()) if config.exists() else {}, pretraining, scores)

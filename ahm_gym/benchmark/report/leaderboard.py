"""All numbers of a benchmark: means over seeds, and comparisons with the reference."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ahm_gym.benchmark.rows import PROBES, REFERENCE, BaseRow, Metric, Rows, ScoreRow, Task
from ahm_gym.benchmark.statistics import (
    Comparison,
    Scores,
    compare,
    corrected,
    interquartile_mean,
    mean_ranks,
    verdict,
)

LARGER_IS_BETTER: dict[Metric, bool] = {
    "dice": True,
    "iou": True,
    "hd95": False,
    "ap": True,
    "log_loss": False,
}
OF_PIXEL_PROBES: tuple[Metric, ...] = ("ap", "log_loss")
"""Metrics with columns only in a benchmark that has a pixel probe."""
HEALTH = ("psnr", "loss", "spearman", "excess", "overlap", "entropy", "masked_foreground")
COST = ("seconds", "images_per_second", "limit_share", "peak_memory_mib")


@dataclass(frozen=True)
class Measure:
    """One metric of a policy on a data set."""

    mean: float
    deviation: float | None
    """Standard deviation over the seeds; None with one seed."""
    iqm: float | None
    """Interquartile mean: the mean of the middle half of all scores by seed and case."""
    comparison: Comparison | None = None
    """Comparison with the reference; None for the reference itself, and if no seed and case is shared."""
    corrected_p: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Cell:
    """The scores of a policy on a data set in one task, over the finished seeds."""

    task: Task
    data: str
    policy: str
    seeds: list[int]
    num_labels: int
    """Number of labelled images, also if the task names a fraction."""
    num_cases: int
    split: str
    seconds: float | None
    hd95_unit: str | None
    measures: dict[str, Measure]
    mean_rank: float = float("nan")
    """Mean rank by the paired difference in the score of the task, over the data sets that have the policy."""

    @property
    def main(self) -> Measure | None:
        """The score of the task, which policies are ranked by; None if no seed defines it."""
        return self.measures.get(self.task.score)


@dataclass(frozen=True)
class Pretraining:
    """Pretraining with a policy on a data set: means over the seeds that report a value."""

    data: str
    policy: str
    seeds: list[int]
    values: dict[str, float]
    """Values by the names in COST and HEALTH; values that no seed reports are left out."""
    seconds_ratio: float | None
    """Seconds relative to the reference, over the seeds that both have."""


def score_cells(rows: Rows) -> list[Cell]:
    """One cell for every task, data set and policy with a finished row; the best mean rank first."""
    cells = []
    for task in rows.tasks:
        found = [_cell(rows, task, data, policy) for data in rows.data for policy in rows.policies]
        present = [cell for cell in found if cell is not None]
        cells += _ranked(_compared(rows, present))
    return cells


def pretraining_cells(rows: Rows) -> list[Pretraining]:
    """One cell for every data set and policy with at least one finished pretraining."""
    cells = []
    for data in rows.data:
        reference = _by_seed(rows.pretraining, data, REFERENCE)
        for policy in rows.policies:
            found = _by_seed(rows.pretraining, data, policy)
            if not found:
                continue
            values = {name: value for name in COST + HEALTH if (value := _mean(found, name)) is not None}
            shared = [seed for seed in found if seed in reference and reference[seed].seconds]
            seconds = [(found[seed].seconds, reference[seed].seconds) for seed in shared]
            ratio = sum(own for own, _ in seconds) / sum(other for _, other in seconds) if seconds else None
            cells.append(Pretraining(data, policy, sorted(found), values, ratio))
    return cells


def leaderboard_csv(cells: list[Cell], pretraining: list[Pretraining]) -> str:
    """One line per cell with all its numbers; fields without a value are empty.

    A text that a spreadsheet would execute as a formula gets an apostrophe in front.
    """
    left_out = (
        () if any(name in cell.measures for cell in cells for name in OF_PIXEL_PROBES) else OF_PIXEL_PROBES
    )
    trained = {(one.data, one.policy): one for one in pretraining}
    lines = []
    for cell in cells:
        line = {
            "data": cell.data,
            "policy": cell.policy,
            "kind": cell.task.kind,
            "labels": cell.task.labels,
            "labelled_images": cell.num_labels,
            "split": cell.split,
            "seeds": " ".join(map(str, cell.seeds)),
            "cases": cell.num_cases,
            "mean_rank": cell.mean_rank,
        }
        for name in (name for name in LARGER_IS_BETTER if name not in left_out):
            line |= _csv_measure(name, cell.measures.get(name))
        line |= {"hd95_unit": cell.hd95_unit, "seconds": cell.seconds}
        own = trained.get((cell.data, cell.policy))
        line |= {f"pretrain_{name}": own.values.get(name) if own else None for name in COST + HEALTH}
        line["pretrain_seconds_ratio"] = own.seconds_ratio if own else None
        lines.append({name: csv_field(value) for name, value in line.items()})
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def csv_field(value: object) -> object:
    """The value as a field of a CSV file, with six digits, and without formulas that a spreadsheet would execute."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, str):
        line = re.sub(r"[\r\n]+", " ", value)
        return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@")) else line
    return value


def _csv_measure(name: str, measure: Measure | None) -> dict[str, object]:
    one = measure.comparison if measure else None
    low, high = (one and one.interval) or (None, None)
    seed_low, seed_high = (one and one.seed_interval) or (None, None)
    return {
        name: measure and measure.mean,
        f"{name}_deviation": measure and measure.deviation,
        f"{name}_iqm": measure and measure.iqm,
        f"{name}_difference": one and one.difference,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_seed_low": seed_low,
        f"{name}_seed_high": seed_high,
        f"{name}_p": one and one.p,
        f"{name}_corrected_p": measure and measure.corrected_p,
        f"{name}_win_probability": one and one.win_probability,
        f"{name}_paired_seeds": one and one.num_seeds,
        f"{name}_paired_cases": one and one.num_cases,
        f"{name}_verdict": measure and measure.verdict,
    }


def _by_seed(table: Mapping[Any, Any], *key: object) -> dict[int, Any]:
    return {found[-1]: row for found, row in table.items() if found[:-1] == key}


def _mean(rows: Mapping[int, BaseRow], name: str) -> float | None:
    known = [value for row in rows.values() if (value := getattr(row, name)) is not None]
    return float(np.mean(known)) if known else None


def _cell(rows: Rows, task: Task, data: str, policy: str) -> Cell | None:
    found: dict[int, ScoreRow] = _by_seed(rows.scores, task, data, policy)
    if not found:
        return None
    measures = {}
    for name in LARGER_IS_BETTER:
        means = [value for row in found.values() if (value := getattr(row, name)) is not None]
        if means:
            deviation = float(np.std(means, ddof=1)) if len(means) > 1 else None
            iqm = interquartile_mean(_scores(found, name))
            measures[name] = Measure(float(np.mean(means)), deviation, iqm)
    newest = next(reversed(found.values()))
    return Cell(
        task=task,
        data=data,
        policy=policy,
        seeds=sorted(found),
        num_labels=newest.labels,
        num_cases=max(len(row.cases) for row in found.values()),
        split=newest.split,
        seconds=_mean(found, "seconds"),
        hd95_unit=newest.hd95_unit,
        measures=measures,
    )


def _scores(rows: dict[int, ScoreRow], metric: Metric) -> Scores:
    """Seed -> case -> values; if a row lists no cases, its mean counts as one case."""
    scores = {}
    for seed, row in rows.items():
        cases = {case: values[metric] for case, values in row.cases.items() if metric in values}
        mean = getattr(row, metric)
        if cases or mean is not None:
            scores[seed] = cases or {"all": [mean]}
    return scores


def _compared(rows: Rows, cells: list[Cell]) -> list[Cell]:
    """The cells of one task with their comparisons; p values are corrected over all comparisons of one metric."""
    results = [dict(cell.measures) for cell in cells]
    for metric, larger in LARGER_IS_BETTER.items():
        family: dict[int, Comparison] = {}
        for i, cell in enumerate(cells):
            if metric in cell.measures and cell.policy != REFERENCE:
                if (comparison := _comparison(rows, cell, metric)) is not None:
                    family[i] = comparison
        for (i, one), p in zip(family.items(), corrected(list(family.values())), strict=True):
            words = verdict(one, p, REFERENCE, larger_is_better=larger)
            results[i][metric] = replace(results[i][metric], comparison=one, corrected_p=p, verdict=words)
    return [replace(cell, measures=measures) for cell, measures in zip(cells, results, strict=True)]


def _comparison(rows: Rows, cell: Cell, metric: Metric) -> Comparison | None:
    own, other = (
        _scores(_by_seed(rows.scores, cell.task, cell.data, policy), metric)
        for policy in (cell.policy, REFERENCE)
    )
    larger = LARGER_IS_BETTER[metric]
    return compare(
        own,
        other,
        larger_is_better=larger,
        # For probes, scores are undefined whenever the label is empty; for the others only if the prediction is too.
        empty_is_perfect=larger and cell.task.kind not in PROBES,
        patients=rows.config.get("patients", {}).get(cell.data, {}),
    )


def _ranked(cells: list[Cell]) -> list[Cell]:
    referred = {cell.data for cell in cells if cell.policy == REFERENCE and cell.main}
    values: dict[str, dict[str, float]] = {}
    for cell in cells:
        strength = _strength(cell, referred=cell.data in referred)
        if strength is not None:
            values.setdefault(cell.data, {})[cell.policy] = strength
    ranks = mean_ranks(values)
    ranked = [replace(cell, mean_rank=ranks.get(cell.policy, float("nan"))) for cell in cells]
    # Policies without a comparison have no rank and come last.
    return sorted(
        ranked, key=lambda cell: (np.nan_to_num(cell.mean_rank, nan=np.inf), cell.policy, cell.data)
    )


def _strength(cell: Cell, *, referred: bool) -> float | None:
    """The value to rank by: the difference to the reference on shared seeds and cases; None if there are none.

    Means over different seeds cannot be compared, so the mean is used only if the reference has not been run.
    """
    measure = cell.main
    if measure is None or not referred:
        return measure and measure.mean
    if cell.policy == REFERENCE:
        return 0.0
    return measure.comparison and measure.comparison.difference

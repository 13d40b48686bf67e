"""The findings and the missing jobs in plain sentences."""

from __future__ import annotations

from collections import Counter, defaultdict

from ahm_gym.benchmark.report.leaderboard import Cell
from ahm_gym.benchmark.rows import BASELINES, NOT_PRETRAINED, REFERENCE, UNTRAINED, Rows, Task
from ahm_gym.benchmark.statistics import NO_DIFFERENCE, ONE_PATIENT, ONE_SEED
from ahm_gym.pages.text import decimals, p_value, plural, signed

OUTCOMES: dict[str, str] = {
    f"better than {REFERENCE}": f"better than {REFERENCE}",
    f"worse than {REFERENCE}": f"worse than {REFERENCE}",
    NO_DIFFERENCE: f"with {NO_DIFFERENCE}",
    ONE_SEED: "with one seed and no verdict",
    ONE_PATIENT: "with one test patient and no verdict",
}
"""Verdicts in the order of the report, with their wording at the end of a sentence."""


def tally(task: Task, cells: list[Cell]) -> str:
    """The number of comparisons with each verdict; `cells` are those of the task."""
    counts = Counter(_verdict(cell) for cell in cells)
    parts = [f"{counts[words]} {said}" for words, said in OUTCOMES.items() if counts[words]]
    if not parts:
        return f"{_capital(task.name)}: nothing to compare with {REFERENCE} yet."
    number = plural(sum(counts[words] for words in OUTCOMES), "comparison")
    return f"{_capital(task.name)}: {number}, {', '.join(parts)}."


def by_data(cells: list[Cell]) -> list[str]:
    """One sentence per data set: the policies with each verdict and their differences in the score."""
    found = []
    for data in sorted({cell.data for cell in cells}):
        parts = []
        for words, said in OUTCOMES.items():
            own = [cell for cell in cells if cell.data == data and _verdict(cell) == words]
            own.sort(key=lambda cell: -_difference(cell))
            if own:
                policies = _listed([f"{cell.policy} ({signed(_difference(cell))})" for cell in own])
                parts.append(f"{policies} {said}")
        if parts:
            found.append(f"{data}: {'; '.join(parts)}.")
    return found


def doubts(task: Task, cells: list[Cell]) -> list[str]:
    """A warning for every data set on which a task does not tell the untrained encoder from random masks.

    What a task cannot tell apart there, it cannot tell apart between policies either.
    """
    found = []
    for cell in sorted(cells, key=lambda cell: cell.data):
        if cell.policy != UNTRAINED or not _verdict(cell) or _verdict(cell) == f"worse than {REFERENCE}":
            continue
        gain = signed(-_difference(cell))
        found.append(
            f"warning: {task.name} on {cell.data} does not tell pretraining with {REFERENCE} masks ({gain}) from an "
            "untrained encoder, so differences between policies say little there."
        )
    return found


def sentence(cell: Cell) -> str:
    """One comparison of the score: "a3c against random on hc18_128, fine-tuned, 10 labels: ...".

    The cell must have one.
    """
    measure = cell.main
    assert measure is not None, "only cells with a score are compared"
    opening = f"{cell.policy} against {REFERENCE} on {cell.data}, {cell.task.name}: "
    one = measure.comparison
    if one is None:
        return opening + f"not compared, because they share no finished seed; mean {decimals(measure.mean)}."
    details = [f"{cell.task.metric} {signed(one.difference)}"]
    if one.interval:
        over = "" if one.generalises else f" over {'cases' if one.num_seeds == 1 else 'seeds'} alone"
        details.append(f"95 % interval{over} {signed(one.interval[0])} to {signed(one.interval[1])}")
    if measure.corrected_p is not None:
        details.append(f"corrected p {p_value(measure.corrected_p)}")
    details.append(f"{plural(one.num_seeds, 'seed')}, {plural(one.num_cases, 'case')}")
    return f"{opening}{measure.verdict} ({'; '.join(details)})."


def sentences(cells: list[Cell]) -> list[str]:
    """Every comparison of the score in a sentence, by data set and policy."""
    compared = [cell for cell in cells if cell.policy != REFERENCE and cell.main]
    return [sentence(cell) for cell in sorted(compared, key=lambda cell: (cell.data, cell.policy))]


MISSING = "Missing seeds"
"""The title of the list of `missing`."""


def missing(rows: Rows) -> list[str]:
    """One entry for every data set and policy with missing rows, with the seeds that are missing.

    Every seed that occurs in any row is expected for every policy, data set and task that occurs in any row.
    """
    lacking: dict[tuple[str, str], dict[tuple[int, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for data in rows.data:
        for policy in rows.policies:
            if policy not in NOT_PRETRAINED:
                found = {seed for seed in rows.seeds if (data, policy, seed) in rows.pretraining}
                _note(lacking[data, policy], rows.seeds, found, "pretraining")
            for task in rows.tasks:
                if policy in BASELINES and task.kind not in BASELINES[policy].kinds:
                    continue
                found = {seed for seed in rows.seeds if (task, data, policy, seed) in rows.scores}
                _note(lacking[data, policy], rows.seeds, found, task.name)
    return [
        f"{policy} on {data}: "
        + "; ".join(f"{_seeds(seeds, rows.seeds)} of {_listed(parts)}" for seeds, parts in gaps.items())
        for (data, policy), gaps in lacking.items()
        if gaps
    ]


def _note(gaps: dict[tuple[int, ...], list[str]], expected: list[int], found: set[int], part: str) -> None:
    if absent := tuple(seed for seed in expected if seed not in found):
        gaps[absent].append(part)


def _seeds(seeds: tuple[int, ...], expected: list[int]) -> str:
    if len(seeds) == len(expected) > 1:
        return "every seed"
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def _verdict(cell: Cell) -> str:
    return cell.main.verdict if cell.main else ""


def _difference(cell: Cell) -> float:
    assert cell.main and cell.main.comparison, "a verdict needs a comparison"
    return cell.main.comparison.difference


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]

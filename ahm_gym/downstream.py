"""What the judgements of an encoder come to in a row of a benchmark."""

from __future__ import annotations

from ahm_gym.finetune_config import FinetuneConfig, resolve
from ahm_gym.finetuning import build_probe
from ahm_gym.probe import mean_dice
from ahm_gym.report.rows import Row
from ahm_gym.scoring import METRICS, mean

NUM_DRAWS, DRAWS_APART = 25, 1000
"""Draws of labelled images that a probe is averaged over, and how far their seeds lie apart."""


def probe_draws(settings: FinetuneConfig) -> list[Row]:
    """What the probe finds with each draw of labelled images, the first of which is that of fine-tuning.

    Which images are labelled moves a probe far more than which mask its encoder had: with 10 of them by 0.05,
    where masks differ by 0.01.
    """
    settings = resolve(settings)
    probe = build_probe(settings)
    seeds = (settings.seed + DRAWS_APART * draw for draw in range(NUM_DRAWS))
    return [probe(labels=settings.labels, seed=seed) for seed in seeds]


def scores_of_probe(draws: list[Row]) -> Row:
    """The mean over the draws, case by case and class by class; their mean is the row's Dice.

    Where some draws find a class that is not there, the others, which rightly find none, count as 1: so do
    comparisons of policies. Without this one wrong draw would cost a case its whole Dice.
    """

    def average(values: tuple[float | None, ...]) -> float | None:
        return None if set(values) == {None} else mean([1.0 if value is None else value for value in values])

    cases = {
        case: [average(values) for values in zip(*(draw["cases"][case] for draw in draws), strict=True)]
        for case in draws[0]["cases"]
    }
    rows = {case: {"dice": dice} for case, dice in cases.items()}
    num_classes = len(draws[0]["per_class"]) + 1
    return {"split": "test", "dice": mean_dice(cases), "num_classes": num_classes, "cases": rows}


def scores_of_finetuning(results: Row) -> Row:
    cases = {entry["case"]: {name: entry[name] for name in METRICS} for entry in results["cases"]}
    taken = {name: results[name] for name in ("split", *METRICS, "hd95_unit")}
    return {**taken, "num_classes": len(results["per_class"]) + 1, "cases": cases}

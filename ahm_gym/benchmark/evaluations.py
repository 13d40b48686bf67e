"""The scores that the evaluations of an encoder add to a row of a benchmark."""

from __future__ import annotations

from typing import Any, TypeAlias

from ahm_gym.errors import Interrupted
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.finetune import build_probe
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.metrics import METRICS, mean
from ahm_gym.segmentation.probe import mean_dice

Results: TypeAlias = dict[str, Any]

NUM_DRAWS, DRAWS_APART = 25, 1000
"""Draws of labelled images that a probe is averaged over, and how far their seeds lie apart."""


def probe_draws(settings: FinetuneConfig, interrupt: Interrupt) -> list[Results]:
    """The results of the probe with each draw of labelled images, the first of which is that of fine-tuning.

    Which images are labelled moves a probe far more than which mask its encoder had: with 10 of them by 0.05,
    where masks differ by 0.01.

    Raises:
        Interrupted: after a request to stop.
    """
    settings = resolve(settings)
    probe = build_probe(settings)
    every_label = settings.labels == len(probe.dataset.indices("train", labelled=True))
    draws = []
    for draw in range(1 if every_label else NUM_DRAWS):
        if interrupt.requested:
            raise Interrupted("stopped in a probe, which begins again.", interrupt.signal or 2)
        draws.append(probe(labels=settings.labels, seed=settings.seed + DRAWS_APART * draw))
    return draws


def scores_of_probe(draws: list[Results]) -> Results:
    """The mean over the draws, case by case and class by class; their mean is the row's Dice."""
    cases = {
        case: [
            None if None in values else mean(values)
            for values in zip(*(draw["cases"][case] for draw in draws), strict=True)
        ]
        for case in draws[0]["cases"]
    }
    rows = {case: {"dice": dice} for case, dice in cases.items()}
    num_classes = len(draws[0]["per_class"]) + 1
    return {"split": "test", "dice": mean_dice(cases), "num_classes": num_classes, "cases": rows}


def scores_of_finetuning(results: Results) -> Results:
    cases = {entry["case"]: {name: entry[name] for name in METRICS} for entry in results["cases"]}
    taken = {name: results[name] for name in ("split", *METRICS, "hd95_unit")}
    return {**taken, "num_classes": len(results["per_class"]) + 1, "cases": cases}

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
"""Number of draws of labelled images that a probe is averaged over, and the distance between their seeds."""


def probe_draws(settings: FinetuneConfig, interrupt: Interrupt) -> list[Results]:
    """Runs the probe once for each draw of labelled images; the first draw is the one that fine-tuning uses.

    The choice of labelled images changes the score of a probe far more than the mask does: with 10 of them by 0.05,
    while masks differ by 0.01.

    Raises:
        Interrupted: after a request to stop.
    """
    settings = resolve(settings)
    probe = build_probe(settings)
    every_label = settings.labels == len(probe.dataset.indices("train", labelled=True))
    draws = []
    for draw in range(1 if every_label else NUM_DRAWS):
        if interrupt.requested:
            raise Interrupted("stopped in a probe, which will start again.", interrupt.signal or 2)
        draws.append(probe(labels=settings.labels, seed=settings.seed + DRAWS_APART * draw))
    return draws


def scores_of_probe(draws: list[Results]) -> Results:
    """The mean over the draws for each case and class, and the mean of these as the row's Dice."""
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
    """The scores of a row from the results of a fine-tuning run."""
    cases = {entry["case"]: {name: entry[name] for name in METRICS} for entry in results["cases"]}
    kept = {name: results[name] for name in ("split", *METRICS, "hd95_unit")}
    return {**kept, "num_classes": len(results["per_class"]) + 1, "cases": cases}

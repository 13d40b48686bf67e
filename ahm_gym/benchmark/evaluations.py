"""The scores that the evaluations of an encoder add to a row of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from ahm_gym.data.draws import EmptyDraw
from ahm_gym.errors import Interrupted, say
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.inputs import resolve
from ahm_gym.segmentation.metrics import Value, mean
from ahm_gym.segmentation.pixel_probe import PIXEL_METRICS
from ahm_gym.segmentation.probe import mean_dice
from ahm_gym.segmentation.probe_run import build_probe

Results: TypeAlias = dict[str, Any]

METRICS = ("dice", "iou", "hd95")
"""The scores of fine-tuning in a row."""
NUM_DRAWS, DRAWS_APART = 25, 1000
"""Number of draws of labelled images that a probe is averaged over, and the distance between their seeds."""
MANY_LABELS, FEW_DRAWS = 20, 5
"""A pixel probe of more labelled images than this has so few draws: they take longer and differ less."""


def probe_draws(settings: FinetuneConfig, interrupt: Interrupt, head: str = "patch") -> list[Results]:
    """Runs the probe once for each draw of labelled images; the first draw is the one that fine-tuning uses.

    The choice of labelled images changes the score of a probe far more than the mask does: with 10 of them by 0.05,
    while masks differ by 0.01. A draw without foreground cannot be fitted and is left out, for every encoder alike.

    Args:
        settings: settings of the encoder, the images and the number of labels.
        interrupt: what can stop the draws.
        head: one of `HEADS` of the probe.

    Raises:
        Interrupted: after a request to stop.
        EmptyDraw: if no draw has any foreground.
    """
    settings = resolve(settings)
    probe = build_probe(settings, head)
    draws: list[Results] = []
    empty: list[EmptyDraw] = []
    number = num_draws(settings.labels, len(probe.dataset.indices("train", labelled=True)), head)
    for draw in range(number):
        if interrupt.requested:
            raise Interrupted("stopped in a probe, which will start again.", interrupt.signal or 2)
        try:
            draws.append(probe(labels=settings.labels, seed=settings.seed + DRAWS_APART * draw))
        except EmptyDraw as error:
            empty.append(error)
    if not draws:
        raise empty[0]
    if empty:
        left_out = f"{len(empty)} of {number} draws of {settings.labels} labels have no foreground"
        say(f"note: {probe.dataset.name}: {left_out} and are left out of the probe.")
    return draws


def num_draws(labels: int | None, available: int, head: str) -> int:
    """The number of draws of so many labelled images; one if all are used."""
    if labels is None or labels == available:
        return 1
    return min(NUM_DRAWS, FEW_DRAWS) if head == "pixel" and labels > MANY_LABELS else NUM_DRAWS


def scores_of_probe(draws: list[Results]) -> Results:
    """The mean over the draws for each case and class, and the mean of these as the row's Dice."""
    cases = {case: mean_of_draws([draw["cases"][case] for draw in draws]) for case in draws[0]["cases"]}
    rows = {case: {"dice": dice} for case, dice in cases.items()}
    num_classes = len(draws[0]["per_class"]) + 1
    return {"split": "test", "dice": mean_dice(cases), "num_classes": num_classes, "cases": rows}


def scores_of_pixel_probe(draws: list[Results]) -> Results:
    """The same for the three scores of the pixel probe."""
    rows = {
        case: {name: mean_of_draws([draw["cases"][case][name] for draw in draws]) for name in PIXEL_METRICS}
        for case in draws[0]["cases"]
    }
    means = {name: mean_dice({case: row[name] for case, row in rows.items()}) for name in PIXEL_METRICS}
    num_classes = len(draws[0]["per_class"]) + 1
    return {"split": "test", **means, "draws": len(draws), "num_classes": num_classes, "cases": rows}


def mean_of_draws(values: Sequence[Sequence[Value]]) -> list[Value]:
    """The mean of each class over the draws; None if a draw does not define it."""
    return [None if None in drawn else mean(drawn) for drawn in zip(*values, strict=True)]


def scores_of_finetuning(results: Results) -> Results:
    """The scores of a row from the results of a fine-tuning run."""
    cases = {entry["case"]: {name: entry[name] for name in METRICS} for entry in results["cases"]}
    kept = {name: results[name] for name in ("split", *METRICS, "hd95_unit")}
    return {**kept, "num_classes": len(results["per_class"]) + 1, "cases": cases}

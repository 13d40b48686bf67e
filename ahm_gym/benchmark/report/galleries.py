"""The pictures on the page: masks under one slider for each data set, and segmentations to choose from."""

from __future__ import annotations

from dataclasses import dataclass

from ahm_gym.benchmark.report.leaderboard import Cell
from ahm_gym.benchmark.report.pictures import Picture, Pictures
from ahm_gym.benchmark.rows import REFERENCE, UNTRAINED, Rows


@dataclass(frozen=True)
class Gallery:
    """Masks of every policy on a data set."""

    number: int
    """Number of the data set, which makes the ids on the page unique."""
    data: str
    steps: list[int]
    """Training steps at which any policy has masks, ascending."""
    masks: dict[str, dict[int, Picture]]
    """By policy and step."""


@dataclass(frozen=True)
class Chooser:
    """Segmentations on a data set, of two policies at a time."""

    number: int
    data: str
    labels: list[int]
    """Numbers of labels with any segmentation, ascending."""
    first: str
    """The policy that is shown above when the page opens."""
    second: str
    """The policy that is shown below when the page opens."""
    segmentations: dict[str, dict[int, Picture]]
    """By policy and number of labels."""


def mask_galleries(rows: Rows, pictures: dict[tuple[str, str], Pictures]) -> list[Gallery]:
    """One gallery for each data set with pictures of masks."""
    galleries = []
    for number, data in enumerate(rows.data):
        found = {p: pictures[data, p].masks for p in rows.policies if (data, p) in pictures}
        masks = {policy: own for policy, own in found.items() if own}
        if masks:
            steps = sorted({step for own in masks.values() for step in own})
            galleries.append(Gallery(number, data, steps, masks))
    return galleries


def segmentation_choosers(
    rows: Rows, scores: list[Cell], pictures: dict[tuple[str, str], Pictures]
) -> list[Chooser]:
    """One chooser for each data set with segmentations; it opens with the best policy and the reference."""
    choosers = []
    for number, data in enumerate(rows.data):
        found = {p: pictures[data, p].segmentations for p in rows.policies if (data, p) in pictures}
        own = {policy: segmentations for policy, segmentations in found.items() if segmentations}
        if not own:
            continue
        ranked = dict.fromkeys(cell.policy for cell in scores if cell.policy in own)
        first = next((p for p in ranked if p not in (REFERENCE, UNTRAINED)), next(iter(own)))
        second = REFERENCE if REFERENCE in own else first
        labels = sorted({num for segmentations in own.values() for num in segmentations})
        choosers.append(Chooser(number, data, labels, first, second, own))
    return choosers

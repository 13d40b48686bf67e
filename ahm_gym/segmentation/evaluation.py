"""Evaluates a segmenter on a split: scores of every case, and a picture of a few cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from ahm_gym.data import ImageDataset, Sample
from ahm_gym.data.sample import Split
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.runs.progress import Progress
from ahm_gym.segmentation.metrics import (
    CaseScores,
    ScoredImage,
    leave_out_absent,
    mean,
    score_case,
    summarise,
)
from ahm_gym.segmentation.overlays import Overlay, draw_overlays
from ahm_gym.segmentation.segmenter import Segmenter, predict

Segment: TypeAlias = Segmenter | Callable[[Float[Tensor, "C H W"], tuple[int, int]], Int[Tensor, "H0 W0"]]
"""What is evaluated: a segmenter, which gets images with the statistics of the dataset, or a function that gets images
in [0, 1] with the size of their label and returns classes."""

NUM_SHOWN: int = 8
"""Maximum number of cases in the picture."""


EVALUATED: tuple[Split, ...] = ("test", "val")
"""Splits to evaluate on; the first that has labels is the default."""


def choose_split(dataset: ImageDataset, asked: str | None = None) -> Split:
    """The split to evaluate on: the one that was asked for, or else test, or val if no test image has a label.

    Raises:
        InputError: if the split is unknown, or has no labels.
    """
    if asked is not None and asked not in EVALUATED:
        raise unknown_name("split", asked, EVALUATED)
    for split in EVALUATED:
        if asked in (None, split) and dataset.indices(split, labelled=True):
            return split
    if asked is not None:
        raise InputError(
            f"`split={asked}`: {dataset.name} has no labelled {asked} images; leave it out, or add some."
        )
    raise InputError(
        f"{dataset.name} has no labelled test or val images to evaluate on: add some (test_images and test_label in "
        "an .npz file; in a folder, a split.csv can name them)."
    )


def evaluate(
    segmenter: Segment, dataset: ImageDataset, split: Split, *, native_resolution: bool = False
) -> dict[str, Any]:
    """Scores of every case of a split, and their means; see `summarise`.

    A class that occurs in no label of the split is left out and listed in `absent_classes`. `hd95_unit` is mm if
    every image has a spacing, and pixels of the label otherwise.
    """
    cases = group_cases(dataset, split)
    indices = dataset.indices(split, labelled=True)
    in_mm = all(dataset.sample(index).spacing is not None for index in indices)
    scores: list[CaseScores] = []
    present: set[int] = set()
    done = 0
    with Progress("scoring", total=len(indices), images_per_step=1) as bar:
        for case, members in cases.items():
            images = []
            for index in members:
                sample, prediction = _segment(segmenter, dataset, index, native_resolution)
                images.append(ScoredImage(prediction, _label(sample), sample.spacing if in_mm else None))
                present.update(_label(sample).unique().tolist())
                done += 1
                bar.advance(done)
            scores.append(score_case(case, images, dataset.num_classes))
    absent = sorted(set(range(1, dataset.num_classes)) - present)
    summary = summarise(leave_out_absent(scores, present), dataset.num_classes)
    return {"hd95_unit": "mm" if in_mm else "pixels", "absent_classes": absent, **summary}


def draw_cases(
    segmenter: Segment, dataset: ImageDataset, results: dict[str, Any], *, native_resolution: bool = False
) -> Figure:
    """Draws a few cases, from the worst to the best Dice; each is shown by its image with the largest label.

    Args:
        segmenter: as given to `evaluate`.
        dataset: as given to `evaluate`.
        results: what `evaluate` returned, and the `split`.
        native_resolution: as given to `evaluate`.
    """
    members = group_cases(dataset, results["split"])
    ranked = sorted(
        (score, entry["case"]) for entry in results["cases"] if (score := _case_dice(entry)) is not None
    ) or [(float("nan"), case) for case in members]
    places = np.linspace(0, len(ranked) - 1, min(NUM_SHOWN, len(ranked))).round().astype(int)
    overlays = []
    for place in places:
        score, case = ranked[place]
        index = max(members[case], key=lambda index: int((_label(dataset.sample(index)) > 0).sum()))
        sample, prediction = _segment(segmenter, dataset, index, native_resolution)
        overlays.append(Overlay(f"{sample.id}\nDice {score:.3f}", sample.image, _label(sample), prediction))
    title = f"{dataset.name}, {results['split']}: from the worst to the best of {len(ranked)} cases"
    return draw_overlays(overlays, dataset.num_classes, title)


def group_cases(dataset: ImageDataset, split: Split) -> dict[str, list[int]]:
    """Indices of the labelled images in a split, by case."""
    cases: dict[str, list[int]] = defaultdict(list)
    for index in dataset.indices(split, labelled=True):
        cases[dataset.sample(index).case].append(index)
    return dict(cases)


def _segment(
    segmenter: Segment, dataset: ImageDataset, index: int, native_resolution: bool
) -> tuple[Sample, Int[Tensor, "H W"]]:
    sample = dataset.sample(index)
    rows, columns = _label(sample).shape
    if not isinstance(segmenter, Segmenter):
        return sample, segmenter(sample.image, (rows, columns))
    segmenter.eval()
    image = dataset.normalise(sample.image)
    return sample, predict(segmenter, image, (rows, columns), native_resolution=native_resolution)


def _label(sample: Sample) -> Int[Tensor, "H W"]:
    assert sample.label is not None, "only labelled samples are scored"
    return sample.label


def _case_dice(entry: dict[str, Any]) -> float | None:
    return mean([value for value in entry["dice"] if value is not None])

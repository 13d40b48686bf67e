"""Evaluates a segmenter on a split: scores of every case, and a picture of a few cases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from ahm_gym.data import ImageDataset, Sample
from ahm_gym.data.draws import ignored_share
from ahm_gym.data.ignored import in_structure, is_counted
from ahm_gym.data.sample import Split
from ahm_gym.errors import InputError, printable, say, unknown_name
from ahm_gym.runs.progress import Progress
from ahm_gym.segmentation.intervals import patient_intervals
from ahm_gym.segmentation.metrics import (
    CaseScores,
    ScoredImage,
    Value,
    leave_out_absent,
    mean,
    score_case,
    summarise,
)
from ahm_gym.segmentation.overlays import Overlay, draw_overlays
from ahm_gym.segmentation.planes import Plane, planes_of
from ahm_gym.segmentation.segmenter import Segmenter, predict

Segment: TypeAlias = Segmenter | Callable[[Float[Tensor, "C *S"], tuple[int, ...]], Int[Tensor, "*S0"]]
"""What is evaluated: a segmenter, which gets images with the statistics of the dataset, or a function that gets images
in [0, 1] with the size of their label and returns classes."""

NUM_SHOWN: int = 8
"""Maximum number of cases in the picture."""
NUM_VOLUMES: int = 3
"""Maximum number of whole volumes in it, each in three planes."""


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


@dataclass(frozen=True)
class Segmented:
    """An image, a slice or a whole volume with its predicted and its true label map."""

    prediction: UInt8[Tensor, "*size"]
    label: UInt8[Tensor, "*size"]
    voxel: tuple[float, ...] | None
    """As in `Sample`."""
    position: tuple[int, int] | None
    """As in `Sample`."""


def evaluate(
    segmenter: Segment,
    dataset: ImageDataset,
    split: Split,
    *,
    native_resolution: bool = False,
    surface_tolerance: float = 1.0,
    missed_distance: str = "diagonal",
) -> dict[str, Any]:
    """Scores of every case of a split, and their means; see `summarise`.

    A volume is scored in 3-D, at the resolution of its file; slices of a volume are stacked first. A class that occurs
    in no label of the split is left out and listed in `absent_classes`. `hd95_unit`, also the unit of
    `surface_tolerance`, is mm if the spacing of every image is known, for slices also that between slices, and pixels
    of the label otherwise. `intervals` are those of `patient_intervals`. Ignored pixels count neither in the prediction
    nor in the label; `ignored_share` is their share of all pixels, if the data has any. `patients` names the patient of
    each case that has another name, and `unlabelled` counts the images of the split without a label.

    Args:
        segmenter: segmenter to evaluate.
        dataset: dataset of the images.
        split: split to evaluate on.
        native_resolution: do not shrink images to the segmenter's size.
        surface_tolerance: distance up to which two surfaces agree.
        missed_distance: one of `MISSED_DISTANCES`; see `score_case`.
    """
    cases = group_cases(dataset, split)
    indices = dataset.indices(split, labelled=True)
    in_mm = distances_in_mm(dataset, indices)
    options: dict[str, Any] = {"surface_tolerance": surface_tolerance, "missed_distance": missed_distance}
    scores: list[CaseScores] = []
    present: set[int] = set()
    done = 0
    with Progress("scoring", total=len(indices), images_per_step=1) as bar:
        for case, members in cases.items():
            parts = []
            for index in members:
                sample, prediction = segment(segmenter, dataset, index, native_resolution)
                voxel = sample.voxel if in_mm else None
                parts.append(Segmented(prediction.byte(), label_of(sample).byte(), voxel, sample.position))
                present.update(parts[-1].label.unique().tolist())
                done += 1
                bar.advance(done)
            scores.append(
                score_case(case, stacked(parts), dataset.num_classes, num_images=len(parts), **options)
            )
    scores = leave_out_absent(scores, present)
    owners = {case: dataset.patient(members[0]) for case, members in cases.items()}
    return {
        "hd95_unit": "mm" if in_mm else "pixels",
        **options,
        "class_names": {str(index): name for index, name in dataset.class_names.items()},
        "absent_classes": sorted(set(dataset.class_names) - present),
        **({"ignored_share": ignored_share(dataset, indices)} if dataset.has_ignored else {}),
        "intervals": patient_intervals(scores, owners),
        "num_patients": len(set(owners.values())),
        "patients": {case: patient for case, patient in owners.items() if case != patient},
        "unlabelled": len(dataset.indices(split)) - len(indices),
        **summarise(scores, dataset.num_classes),
    }


def distances_in_mm(dataset: ImageDataset, indices: Sequence[int]) -> bool:
    """Whether the spacing of all these images is known; a note says if only that between slices is missing."""
    known = [
        (sample.voxel is not None, sample.spacing is not None) for sample in map(dataset.sample, indices)
    ]
    if all(whole for whole, _ in known):
        return True
    if all(in_plane for _, in_plane in known):
        say(
            f"note: {dataset.name}: the spacing between slices is not known for all volumes, so distances are in "
            "pixels, with slices one pixel apart.",
        )
    return False


def stacked(parts: Sequence[Segmented]) -> list[ScoredImage]:
    """The images of a case as they are scored: slices become volumes, and other images stay as they are.

    Slices that are not there, because their images are constant, are background in prediction and label. A position
    that is not behind the one before begins another volume.
    """
    volumes: list[list[Segmented]] = []
    for part in parts:
        before = volumes[-1][-1].position if volumes else None
        if part.position is None or before is None or part.position[0] <= before[0]:
            volumes.append([part])
        else:
            volumes[-1].append(part)
    return [_stack(volume) for volume in volumes]


def _stack(slices: Sequence[Segmented]) -> ScoredImage:
    first, last = slices[0], slices[-1]
    if first.position is None or last.position is None:
        return ScoredImage(first.prediction, first.label, first.voxel)
    start = first.position[0]
    size = (*first.label.shape, last.position[0] - start + 1)
    prediction, label = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    for one in slices:
        assert one.position is not None, "a volume has slices only"
        prediction[:, :, one.position[0] - start] = one.prediction
        label[:, :, one.position[0] - start] = one.label
    return ScoredImage(prediction, label, first.voxel, num_slices=first.position[1])


def draw_cases(
    segmenter: Segment, dataset: ImageDataset, results: dict[str, Any], *, native_resolution: bool = False
) -> Figure:
    """Draws a few cases, from the worst to the best Dice; each is shown by its image with the largest label.

    Whole volumes are shown in three planes; see `planes_of`.

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
    places = np.linspace(0, len(ranked) - 1, min(_num_shown(dataset), len(ranked))).round().astype(int)
    overlays = []
    for place in places:
        score, case = ranked[place]
        index = max(members[case], key=lambda index: int(in_structure(label_of(dataset.sample(index))).sum()))
        sample, prediction = segment(segmenter, dataset, index, native_resolution)
        shown = f"Dice {score:.3f}"
        if len(members[case]) > 1:
            own = own_dice(
                prediction, label_of(sample), set(dataset.class_names) - set(results["absent_classes"])
            )
            shown = f"Dice {'undefined' if own is None else f'{own:.3f}'}, case {score:.3f}"
        title = f"{printable(sample.id)}\n{shown}"
        overlays += [plane.overlay for plane in views_of(sample, prediction, title)]
    title = f"{dataset.name}, {results['split']}: from the worst to the best of {len(ranked)} cases"
    return draw_overlays(overlays, dataset.num_classes, title, dataset.class_names)


def views_of(sample: Sample, prediction: Int[Tensor, "*S0"], title: str) -> list[Plane]:
    """How a labelled sample and what was found in it are shown: an image as it is, a whole volume in three planes."""
    label = label_of(sample)
    if label.ndim == 3:
        return planes_of(title, sample.image, label, prediction, sample.spacing)
    return [Plane("", 0, 1, Overlay(title, sample.image, label, prediction))]


def _num_shown(dataset: ImageDataset) -> int:
    return NUM_VOLUMES if dataset.axes == 3 else NUM_SHOWN


def own_dice(prediction: Int[Tensor, "*size"], label: Int[Tensor, "*size"], classes: set[int]) -> Value:
    """The Dice of one image or volume: the mean over the classes that label or prediction has; None without any."""
    values: list[Value] = []
    for index in classes:
        found, true = (prediction == index) & is_counted(label), label == index
        if size := int(found.sum() + true.sum()):
            values.append(2 * int((found & true).sum()) / size)
    return mean(values)


def group_cases(dataset: ImageDataset, split: Split) -> dict[str, list[int]]:
    """Indices of the labelled images in a split, by case."""
    cases: dict[str, list[int]] = defaultdict(list)
    for index in dataset.indices(split, labelled=True):
        cases[dataset.case_of(index)].append(index)
    return dict(cases)


def segment(
    segmenter: Segment, dataset: ImageDataset, index: int, native_resolution: bool
) -> tuple[Sample, Int[Tensor, "*S0"]]:
    """A labelled sample and the predicted class of every pixel of its label; the arguments are those of `evaluate`."""
    sample = dataset.sample(index)
    size = tuple(label_of(sample).shape)
    if not isinstance(segmenter, Segmenter):
        return sample, segmenter(sample.image, size)
    segmenter.eval()
    image = dataset.normalise(sample.image)
    return sample, predict(segmenter, image, size, native_resolution=native_resolution)


def label_of(sample: Sample) -> Int[Tensor, "*S0"]:
    """The label of a sample that has one."""
    assert sample.label is not None, "only labelled samples are scored"
    return sample.label


def _case_dice(entry: dict[str, Any]) -> float | None:
    return mean([value for value in entry["dice"] if value is not None])

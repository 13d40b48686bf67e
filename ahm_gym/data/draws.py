"""Draws of labelled training images or patients, and what they contain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from ahm_gym.data import ImageDataset
from ahm_gym.data.ignored import is_counted
from ahm_gym.data.stream import derive_seed
from ahm_gym.data.wording import verb
from ahm_gym.errors import InputError, say

Item = TypeVar("Item")


class EmptyDraw(InputError):
    """Labelled images without any foreground, from which a probe learns nothing."""


def choose_patients(dataset: ImageDataset, number: int, seed: int) -> list[str]:
    """The names of `number` patients with labelled training images.

    They are the first of a permutation that depends on the seed alone, unless these lack a class that later patients
    have: then the earliest later patient with the class takes the place of the last one that adds no class. So a
    smaller draw is part of a larger one, with one exception: if there is no room for that, those that add most classes
    each are taken, provided that they hold every class.

    Raises:
        InputError: if there are fewer patients.
    """
    patients = labelled_patients(dataset)
    if not 1 <= number <= len(patients):
        raise InputError(
            f"`labelled_patients={number}` is out of range: {dataset.name} has {len(patients)} patients with labelled "
            "training images; choose a number from 1 to that, or leave it out to use all."
        )
    order = permuted(list(patients), seed)
    wanted = set(range(1, dataset.num_classes))
    classes: dict[str, set[int]] = {}
    needed, held = [], set()
    for place, patient in enumerate(order):
        if held == wanted or (place >= number and len(needed) > number):
            break
        classes[patient] = set().union(*(classes_of(dataset, index) for index in patients[patient]))
        if classes[patient] - held:
            needed.append(patient)
            held |= classes[patient]
    if len(needed) > number:
        fewest = fewest_with_all(order, dataset, patients, classes)
        if len(fewest) <= number:
            needed = fewest
    return [*needed, *(patient for patient in order if patient not in needed)][:number]


def fewest_with_all(
    order: Sequence[str],
    dataset: ImageDataset,
    patients: Mapping[str, Sequence[int]],
    classes: dict[str, set[int]],
) -> list[str]:
    """Patients that together have every class, each the one that adds most classes; of equal ones the earliest."""
    for patient in order:
        if patient not in classes:
            classes[patient] = set().union(*(classes_of(dataset, index) for index in patients[patient]))
    left = set().union(*classes.values())
    chosen = []
    while left:
        best = max(order, key=lambda patient: len(classes[patient] & left))  # the first of equal ones
        chosen.append(best)
        left -= classes[best]
    return chosen


def labelled_patients(dataset: ImageDataset) -> dict[str, list[int]]:
    """The patients of the training split with their labelled images, in the order of the images."""
    found: dict[str, list[int]] = {}
    for index in dataset.indices("train", labelled=True):
        found.setdefault(dataset.patient(index), []).append(index)
    return found


def permuted(items: Sequence[Item], seed: int) -> list[Item]:
    """The items in an order that depends on their number and the seed."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(derive_seed(seed, 2)))
    return [items[place] for place in order.tolist()]


def class_counts(dataset: ImageDataset, index: int) -> np.ndarray:
    """The number of pixels of each class in a label; ignored ones are not counted."""
    label = dataset.label(index)
    assert label is not None, "only labelled samples are drawn"
    return np.bincount(label.numpy().ravel(), minlength=dataset.num_classes)[: dataset.num_classes]


def classes_of(dataset: ImageDataset, index: int) -> set[int]:
    """The foreground classes in a label."""
    return set(np.flatnonzero(class_counts(dataset, index)).tolist()) - {0}


def check_foreground(dataset: ImageDataset, indices: Sequence[int]) -> None:
    """Raises EmptyDraw if the labels of these images contain only background."""
    if not any(classes_of(dataset, index) for index in indices):
        raise EmptyDraw(
            f"the probe cannot be fitted: none of the {len(indices)} drawn labels of {dataset.name} has any "
            "foreground; choose more `labels`, `labelled_patients` for whole volumes, or another `seed`."
        )


def describe_draw(
    dataset: ImageDataset, indices: Sequence[int], *, labelled_patients: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """What was drawn, for `results.json`.

    Args:
        dataset: dataset of the images.
        indices: the drawn images.
        labelled_patients: number of patients that were drawn, None if single images were.
        seed: seed of the draw.

    Returns:
        A dictionary with these keys.

        - `images`, `patients`: their names.
        - `swapped_in`: patients that are not among the first of the permutation; see `choose_patients`.
        - `class_shares`: class index -> share of the pixels of all drawn labels.
        - `absent_classes`: classes without a pixel in them.
        - `empty_share`: share of the images without foreground.
        - `ignored_share`: share of the pixels of all drawn labels that are ignored, if the data has such pixels.

        The other shares are those of the pixels that are not ignored.
    """
    counts = np.stack([class_counts(dataset, index) for index in indices])
    patients = list(dict.fromkeys(dataset.patient(index) for index in indices))
    shares = counts.sum(axis=0) / max(counts.sum(), 1)
    return {
        "images": [dataset.ids[index] for index in indices],
        "patients": patients,
        "swapped_in": swapped_in(dataset, patients, seed) if labelled_patients is not None else [],
        "class_shares": {str(index): float(share) for index, share in enumerate(shares)},
        "absent_classes": (np.flatnonzero(shares[1:] == 0) + 1).tolist(),
        "empty_share": float((counts[:, 1:].sum(axis=1) == 0).mean()),
        **({"ignored_share": ignored_share(dataset, indices)} if dataset.has_ignored else {}),
    }


def ignored_share(dataset: ImageDataset, indices: Sequence[int]) -> float:
    """The share of the pixels of these labels that are ignored, 0 to 1."""
    labels = [label for index in indices if (label := dataset.label(index)) is not None]
    ignored = sum(int((~is_counted(label)).sum()) for label in labels)
    return ignored / max(sum(label.numel() for label in labels), 1)


def swapped_in(dataset: ImageDataset, drawn: Sequence[str], seed: int) -> list[str]:
    """The drawn patients that are not among the first of the permutation."""
    first = set(permuted(list(labelled_patients(dataset)), seed)[: len(drawn)])
    return [patient for patient in drawn if patient not in first]


def summary_of_draw(dataset: ImageDataset, draw: dict[str, Any]) -> str:
    """The draw in one line."""
    images, patients = len(draw["images"]), len(draw["patients"])
    of_patients = f" of {patients} patient{'s' * (patients > 1)}" if patients < images else ""
    shares = ", ".join(
        f"{name} {draw['class_shares'][str(k)]:.2%}" for k, name in dataset.class_names.items()
    )
    empty = round(draw["empty_share"] * images)
    kind, value = dataset.nouns
    ignored = f"; {draw['ignored_share']:.2%} are ignored" if "ignored_share" in draw else ""
    return (
        f"labelled {kind}s: {images}{of_patients}, {empty} of them without foreground; share of the {value}s: "
        f"{shares}{ignored}"
    )


def report_draw(dataset: ImageDataset, draw: dict[str, Any], labels: int | None) -> None:
    """Prints a draw on standard error, with what should be known about it; see `notes_on_draw`."""
    say(summary_of_draw(dataset, draw))
    for note in notes_on_draw(dataset, draw, labels):
        say(f"note: {dataset.name}: {note}.")


def notes_on_draw(dataset: ImageDataset, draw: dict[str, Any], labels: int | None) -> Iterator[str]:
    """What should be known about a draw, in sentences without a full stop.

    Args:
        dataset: dataset of the images.
        draw: what `describe_draw` returned.
        labels: number of single images that was asked for.
    """
    if draw["swapped_in"]:
        yield f"so that every class is there, these patients took the place of others: {', '.join(draw['swapped_in'])}"
    if draw["absent_classes"]:
        names = ", ".join(dataset.class_names[index] for index in draw["absent_classes"])
        yield f"no drawn label contains {names}, so it cannot be learned: draw more, or with another seed"
    if labels is not None and dataset.has_slices:
        number = len(draw["patients"])
        whose = f"{number} " + verb(number, "patient's", "patients'")
        yield (
            f"the {labels} labelled images are single slices of {whose} volumes; results are usually reported for a "
            "number of patients, which labelled_patients (--labelled-patients) draws whole"
        )

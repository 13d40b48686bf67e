"""Reads the label of a scan from its files: one file, the parts of one label, or a file for each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ahm_gym.data.formats import Pixels, match_label, read_pixels
from ahm_gym.data.ignored import IGNORED
from ahm_gym.data.layout import Scan
from ahm_gym.data.processing import Processing, to_classes
from ahm_gym.errors import InputError

MUCH = 1 / 3
"""Share of a label that must be in several of its parts for them to show the same, as two of a Dice of 0.5 do."""


def read_label(path: Path, image_path: Path, image: Pixels) -> Pixels:
    """Reads the label of an image, with its axes in the order of the image.

    Raises:
        InputError: if the file cannot be read, or lies elsewhere than the image.
    """
    return match_label(read_pixels(path, is_label=True), path, image, image_path)


def own_notes(label: Pixels, image: Pixels) -> Iterator[str]:
    """The notes on a label that do not repeat those on its image; the plane of a label is always that of its image."""
    for note in label.notes:
        if note not in image.notes and not note.startswith(("sliced in", "with a fourth axis")):
            yield note


def join(parts: Sequence[Pixels], scan: Scan, processing: Processing) -> tuple[np.ndarray, list[str]]:
    """The label of a scan as classes, and what was decided.

    Args:
        parts: the content of `Scan.labels`.
        scan: the scan.
        processing: what is done to the values.

    Raises:
        InputError: if the sizes of the files differ, or one has other values than expected.
    """
    files = list(zip(parts, scan.labels, strict=True))
    if scan.label_classes:
        arrays = [
            of_class(part, number, path)
            for (part, path), number in zip(files, scan.label_classes, strict=True)
        ]
    else:
        arrays = [
            to_classes(part.array, processing, str(path), is_volume=part.is_volume) for part, path in files
        ]
    label = merged(arrays, may_ignore=bool(processing.ignore))
    return label, list(_overlaps(arrays, label, by_class=bool(scan.label_classes)))


def of_class(part: Pixels, number: int, path: Path) -> np.ndarray:
    """A label of one class, whose foreground gets its number.

    Raises:
        InputError: if it has several values beside the background.
    """
    array = part.array
    if array.ndim > 2 + part.is_volume and (array == array[..., :1]).all():
        array = array[..., 0]
    values = np.unique(array)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        listed = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
        raise InputError(
            f"{path} is the label of one of several classes that have a file each, and has the values {listed}: "
            "expected 0 and one other; keep one file of labels for each image, or describe them in a dataset.json, "
            "which ahm-gym look writes."
        )
    return np.where(array > 0, number, 0).astype(np.uint8)


def _overlaps(arrays: Sequence[np.ndarray], label: np.ndarray, *, by_class: bool) -> Iterator[str]:
    """What is said of files that have a foreground in the same places."""
    covered = np.count_nonzero(label)
    twice = sum(map(np.count_nonzero, arrays)) - covered
    if by_class and twice:
        yield "in files that overlap, where the class with the highest number counts"
    elif not by_class and twice > MUCH * covered:
        yield (
            "in several files that show much the same, as drawings of several observers do, merged to all that one of "
            "them shows; move those that should not be used"
        )


def merged(labels: list[np.ndarray], *, may_ignore: bool = False) -> np.ndarray:
    """One label of several: every pixel has the highest class that one of them gives it, or is ignored in one.

    Raises:
        InputError: if their sizes differ.
    """
    shapes = {label.shape for label in labels}
    if len(shapes) > 1:
        raise InputError(
            f"the parts of one label have the shapes {sorted(shapes)}: expected one; export them in the size of the "
            "image."
        )
    if len(labels) == 1:
        return labels[0]
    highest = np.maximum.reduce(labels)
    if not may_ignore:
        return highest
    return np.where(np.logical_or.reduce([label == IGNORED for label in labels]), IGNORED, highest)

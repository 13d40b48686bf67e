"""Counts the images, patients, classes, sizes and intensities of a prepared data set, by split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ahm_gym.data import ImageDataset
from ahm_gym.data.draws import class_counts, ignored_share
from ahm_gym.data.sample import SPLITS
from ahm_gym.pages.page import Table

NUM_SAMPLED: int = 500
"""Largest number of images of a split whose intensities are counted."""
NUM_BINS: int = 50
"""Number of bins of a histogram of intensities."""
MOST_COMMON: int = 5
"""Number of sizes that are listed."""


def count_images(dataset: ImageDataset) -> Table:
    """Images, cases, patients and labelled images of every split."""
    rows = []
    for split in SPLITS:
        indices = dataset.indices(split)
        labelled = dataset.indices(split, labelled=True)
        cases = {dataset.case_of(index) for index in indices}
        patients = {dataset.patient(index) for index in indices}
        rows.append([split, *map(str, (len(indices), len(cases), len(patients), len(labelled)))])
    kind, _ = dataset.nouns
    caption = f"{kind.capitalize()}s of each split"
    return Table(caption, ["split", f"{kind}s", "cases", "patients", "with a label"], rows)


def count_classes(dataset: ImageDataset, names: Sequence[str]) -> Table:
    """For every class and split, the number of images that show it, and its share of the pixels that are not ignored.

    If some are ignored, the last row has the number of images with such pixels, and their share of all pixels.

    Args:
        dataset: a data set.
        names: names of the classes, the background first.
    """
    kind, value = dataset.nouns
    columns, entries = ["class"], [[name] for name in names]
    for split in SPLITS:
        pixels, images = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
        for index in dataset.indices(split, labelled=True):
            found = class_counts(dataset, index)
            pixels += found
            images += found > 0
        columns += [f"{split}: {kind}s", f"{split}: {value}s"]
        shares = pixels / max(pixels.sum(), 1)
        for row, number, share in zip(entries, images, shares, strict=True):
            row += [str(number), f"{share:.2%}"]
    if dataset.has_ignored:
        entries.append(["ignored", *_count_ignored(dataset)])
    return Table(f"{kind.capitalize()}s that show a class, and its share of the {value}s", columns, entries)


def _count_ignored(dataset: ImageDataset) -> list[str]:
    """For every split, the number of images with ignored pixels, and the share of these pixels."""
    row = []
    for split in SPLITS:
        indices = dataset.indices(split, labelled=True)
        number = sum(ignored_share(dataset, [index]) > 0 for index in indices)
        row += [str(number), f"{ignored_share(dataset, indices):.2%}"]
    return row


def count_sizes(dataset: ImageDataset) -> Table:
    """The most common sizes of the stored images, with the spacing of their files."""
    found = Counter((dataset.size_of(index), dataset.spacing_of(index)) for index in range(len(dataset)))
    rows = []
    for (lengths, spacing), number in found.most_common(MOST_COMMON):
        size = "not stated" if spacing is None else " x ".join(f"{mm:.3g}" for mm in spacing) + " mm"
        rows.append([" x ".join(map(str, lengths)), size, str(number)])
    if len(found) > MOST_COMMON:
        others = sum(found.values()) - sum(number for _, number in found.most_common(MOST_COMMON))
        rows.append([f"{len(found) - MOST_COMMON} others", "", str(others)])
    if dataset.axes == 3:
        caption = "Sizes as stored, to the right, forwards and upwards"
        return Table(caption, ["voxels", "size of a voxel in the file", "volumes"], rows)
    return Table(
        "Sizes as stored: no larger than twice the training size",
        ["rows x columns", "size of a pixel in the file", "images"],
        rows,
    )


def histograms(dataset: ImageDataset) -> dict[str, Float[np.ndarray, "C bins"]]:
    """For every split, the share of the pixels in each bin of [0, 1], channel by channel."""
    found = {}
    for split in SPLITS:
        indices = dataset.indices(split)
        if indices:
            places = np.linspace(0, len(indices) - 1, min(NUM_SAMPLED, len(indices))).round().astype(int)
            counts = np.zeros((dataset.channels, NUM_BINS))
            for place in places:
                for channel, values in enumerate(dataset.image(indices[place]).flatten(1).numpy()):
                    counts[channel] += np.histogram(values, NUM_BINS, (0.0, 1.0))[0] / len(values)
            found[split] = counts / len(places)
    return found

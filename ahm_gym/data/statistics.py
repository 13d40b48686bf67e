"""What is found over a whole data set before its images are stored: percentiles for scaling, and the median spacing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ahm_gym.data.fallbacks import checked_label
from ahm_gym.data.ignored import IGNORED
from ahm_gym.data.patients import Evidence, find_patients
from ahm_gym.data.processing import DatasetScaling, Processing, Window
from ahm_gym.data.sample import Record, Source, Split
from ahm_gym.data.scaling import channels_last
from ahm_gym.data.splits import HasTable, choose_splits
from ahm_gym.data.wording import counted
from ahm_gym.errors import InputError

MAX_VALUES: int = 10_000
"""Largest number of values of an image and a channel that are kept, evenly spaced, as nnU-Net keeps of a case."""
MAX_TOTAL: int = 1 << 26
"""Largest number of values that are kept of all images; with more, every second one is dropped."""


def settled(source: Source, patient_regex: str | None) -> Iterator[Record]:
    """The records of a source; a scaling over the data set has become windows in them.

    Volumes without a `spacing` have the median of the training volumes along each axis, if their files state one. For
    such a scaling or spacing all images are read twice.

    Raises:
        InputError: if no training image has values to count, or all have the same value.
    """
    records = source.records()
    first = next(records, None)
    if first is None:
        return
    read = itertools.chain([first], records)
    if not (asked(first.processing) or lacks_spacing(first.processing)):
        yield from read
        return
    processing = _measure(source, read, first.processing, patient_regex)
    for record in source.records():
        yield replace(record, processing=processing)


def lacks_spacing(processing: Processing) -> bool:
    """Whether the spacing is to be found."""
    return processing.volumes and processing.spacing is None


def asked(processing: Processing) -> dict[str, DatasetScaling]:
    """The scalings over the data set by the name of their modality; the name is empty if all channels share one."""
    scaling = processing.scaling
    if isinstance(scaling, DatasetScaling):
        return dict.fromkeys(processing.modalities.values() or ("",), scaling)
    entries = scaling.items() if isinstance(scaling, dict) else ()
    return {name: own for name, own in entries if isinstance(own, DatasetScaling)}


class _Values:
    """Evenly spaced values of every image, for one scaling."""

    def __init__(self) -> None:
        self.of_images: list[Shaped[np.ndarray, " n"]] = []
        self.limit: int = MAX_VALUES
        self.total: int = 0

    def add(self, values: Shaped[np.ndarray, " n"]) -> None:
        places = np.linspace(0, len(values) - 1, min(len(values), self.limit)).round().astype(np.int64)
        self.of_images.append(values[places])
        self.total += len(places)
        if self.total > MAX_TOTAL:
            self.limit = max(self.limit // 2, 1)
            self.of_images = [kept[::2] for kept in self.of_images]
            self.total = sum(map(len, self.of_images))

    def window(self, scaling: DatasetScaling, train: list[int], name: str) -> Window:
        """The window between the percentiles of these images.

        Raises:
            InputError: if they have no values, or only one.
        """
        parts = [self.of_images[index] for index in train if len(self.of_images[index])]
        what = "pixels of a structure" if scaling.over == "foreground" else "pixels"
        if not parts:
            raise InputError(
                f"`scaling` of {name} is over the {what} of the training images, and none has any: choose "
                '"over": "image", or add labels.'
            )
        low, high = (float(value) for value in np.percentile(np.concatenate(parts), scaling.percentiles))
        percentiles = " and ".join(f"{number:g}" for number in scaling.percentiles)
        if not low < high:
            raise InputError(
                f"`scaling` of {name} is over the {what} of the training images, of which the {percentiles} "
                f"percentiles are both {low:g}: choose others, or a window."
            )
        of = "the structures in " if scaling.over == "foreground" else ""
        found = f"the {percentiles} percentiles of {of}{len(parts)} training images"
        return Window(low=low, high=high, found=found)


def _measure(
    source: Source, records: Iterable[Record], processing: Processing, patient_regex: str | None
) -> Processing:
    """The same processing, with the windows of the training images."""
    wanted = asked(processing)
    names = list(processing.modalities.values())
    values = {name: _Values() for name in wanted}
    evidence: list[Evidence] = []
    splits: list[Split | None] = []
    spacings: list[tuple[float, ...] | None] = []
    for record in records:
        evidence.append(Evidence.of(record))
        splits.append(record.split)
        spacings.append(record.spacing)
        if not wanted:
            continue
        image = channels_last(record.image, record.origin, processing.axes)
        label = checked_label(record, image.shape[:-1])
        shown = None if label is None else (label > 0) & (label != IGNORED)
        for name, scaling in wanted.items():
            channels = image[..., names.index(name)] if name else image
            if scaling.over == "foreground":
                channels = channels[:0] if shown is None else channels[shown]
            values[name].add(channels.ravel())
    table = source.table if isinstance(source, HasTable) else None
    chosen = choose_splits(splits, evidence, find_patients(evidence, patient_regex), table)
    train = [index for index, split in enumerate(chosen) if split == "train"]
    windows = {
        name: values[name].window(scaling, train, name or source.name) for name, scaling in wanted.items()
    }
    changes: dict[str, Any] = {}
    if wanted:
        own = processing.scaling if isinstance(processing.scaling, dict) else {}
        changes["scaling"] = windows[""] if "" in windows else {**own, **windows}
    if lacks_spacing(processing):
        changes |= median_spacing([spacings[index] for index in train])
    return processing.model_copy(update=changes)


def median_spacing(spacings: Sequence[tuple[float, ...] | None]) -> dict[str, Any]:
    """The fields of `Processing` for the median along each axis; none if no file states a spacing."""
    known = [spacing for spacing in spacings if spacing is not None]
    if not known:
        return {}
    median = tuple(float(size) for size in np.median(np.array(known), axis=0))
    return {"spacing": median, "spacing_found": f"the median of {counted(len(known), 'training volume')}"}

"""The columns of a store's index, filled image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ahm_gym.data.fallbacks import LabelError, MixedColoursError, checked_label
from ahm_gym.data.ignored import IGNORED
from ahm_gym.data.patients import Evidence, Patients, find_patients
from ahm_gym.data.processing import PLAIN, Processing, Window, in_mm, scale, to_spacing
from ahm_gym.data.sample import Record, Split
from ahm_gym.data.scaling import FOREGROUND, channels_last, shrink
from ahm_gym.data.splits import (
    SplitTable,
    choose_splits,
    describe_shared_patients,
    name_cases,
    patients_of_cases,
    summarise,
)
from ahm_gym.data.store import StoreWriter
from ahm_gym.data.twins import Twins
from ahm_gym.errors import InputError


@dataclass
class Columns:
    """The columns of the index, and intermediate values from which it is completed."""

    ids: list[str] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    twins: Twins = field(default_factory=Twins)
    splits: list[Split | None] = field(default_factory=list)
    folds: list[tuple[Split, ...]] = field(default_factory=list)
    spacings: list[tuple[float, ...] | None] = field(default_factory=list)
    positions: list[tuple[int, int] | None] = field(default_factory=list)
    slice_spacings: list[float | None] = field(default_factory=list)
    images: list[list[int]] = field(default_factory=list)
    labels: list[list[int] | None] = field(default_factory=list)
    label_values: list[list[int]] = field(default_factory=list)
    label_origins: list[str] = field(default_factory=list)
    processing: Processing = PLAIN
    moments: list[torch.Tensor] = field(default_factory=list)
    """For each image (2, C): mean and mean square of every channel."""

    def add(self, record: Record, writer: StoreWriter, shortest_side: int | None) -> None:
        volumes = record.processing.volumes
        image = channels_last(record.image, record.origin, record.processing.axes)
        channels = image.shape[-1]
        if self.moments and self.moments[0].shape[1] != channels:
            expected = self.moments[0].shape[1]
            kind = MixedColoursError if {channels, expected} == {1, 3} else InputError
            raise kind(
                f"wrong channel count: {record.origin} has {channels}, expected {expected} like the images "
                "before it; convert some of them, or split the data."
            )
        label = checked_label(record, image.shape[:-1])
        self.processing = record.processing
        scaled = scale(image, record.processing, channels if record.modalities else 1)
        scaled = to_spacing(scaled, record.spacing, record.processing, record.origin)
        scaled = scaled if volumes else shrink(scaled, shortest_side)
        exact, axes = scaled.double(), tuple(range(1, scaled.ndim))
        self.moments.append(torch.stack([exact.mean(dim=axes), exact.square().mean(dim=axes)]))
        self.images.append(writer.add_image(scaled))
        self.labels.append(None if label is None else writer.add_label(label))
        self.label_values.append([] if label is None else np.unique(label).tolist())
        self.label_origins.append(record.label_origin)
        self.ids.append(record.id)
        self.evidence.append(Evidence.of(record))
        self.twins.add(scaled)
        self.splits.append(record.split)
        self.folds.append(record.folds)
        self.spacings.append(record.spacing)
        self.positions.append(record.position)
        self.slice_spacings.append(record.slice_spacing)

    def all_values(self) -> set[int]:
        """All label values that occur, without that of ignored pixels."""
        return {value for values in self.label_values for value in values} - {IGNORED}

    def index(self, name: str, table: SplitTable | None, patient_regex: str | None) -> dict[str, Any]:
        """The complete index.

        Args:
            name: name of the data.
            table: splits of patients, for records without a split.
            patient_regex: see `find_patients`.

        Raises:
            InputError: if the train split is empty, a class is out of range, the table lacks an image, or the pattern
                does not fit.
        """
        stated = table is not None or None not in self.splits
        patients = find_patients(self.evidence, patient_regex, splits_stated=stated)
        splits = choose_splits(self.splits, self.evidence, patients, table)
        train = [index for index, split in enumerate(splits) if split == "train"]
        if not train:
            raise InputError(f"the train split of {name} is empty: expected at least one training image.")
        num_classes = self._count_classes(name, train)
        mean, square = torch.stack([self.moments[index] for index in train]).mean(dim=0)
        std = (square - mean.square()).clamp(min=0.0).sqrt()
        std[std < 1e-6] = 1.0
        volumes = [one.volume for one in self.evidence]
        cases = name_cases(self.ids, patients.of_images, volumes)
        geometry: dict[str, Any] = {"position": self.positions, "slice_spacing": self.slice_spacings}
        return {
            "name": name,
            "channels": len(mean),
            **({"axes": 3} if self.processing.volumes else {}),
            "num_classes": num_classes,
            "class_names": self.processing.classes,
            "processing": self.processing.model_dump(exclude_defaults=True),
            **({"ignored": True} if any(IGNORED in values for values in self.label_values) else {}),
            **({"folds": list(zip(*self.folds, strict=True))} if any(self.folds) else {}),
            "mean": mean.tolist(),
            "std": std.tolist(),
            "patients": patients_of_cases(cases, patients.of_images),
            "found": {
                "patients": patients.of_images,
                "rule": patients.rule,
                "certainty": patients.certainty,
                "doubts": [*patients.doubts, *self._doubts(patients, splits)],
                "told": [*self._windows(), *self._gaps(num_classes)],
                "summary": summarise(patients, splits, chosen=None in self.splits and table is None),
            },
            "records": {
                "id": self.ids,
                "case": cases,
                "split": splits,
                "image": self.images,
                "label": self.labels,
                "spacing": self.spacings,
                # Not in data without volumes, whose digest stays as it was.
                **(geometry if any(self.positions) else {}),
            },
        }

    def _windows(self) -> Iterator[str]:
        """What was found over the data set: the spacing of volumes, and the scaling of each modality."""
        if self.processing.spacing_found:
            yield f"volumes are resampled to {in_mm(self.processing.spacing)}, {self.processing.spacing_found}"
        scaling = self.processing.scaling
        windows = scaling if isinstance(scaling, dict) else {"": scaling}
        for name, window in windows.items():
            if isinstance(window, Window) and window.found:
                of = f" of {name}" if name else ""
                yield f"intensities{of} from {window.low:.5g} to {window.high:.5g} become 0 to 1: {window.found}"

    def _doubts(self, patients: Patients, splits: list[Split]) -> Iterator[str]:
        """What may be wrong with the splits."""
        if shared := describe_shared_patients(splits, patients.of_images):
            yield f"{shared}; scores on patients who are also in train are too high"
        twins = self.twins.pairs(splits, [one.volume for one in self.evidence])
        if twins:
            listed = ", ".join(f"{self.ids[one]} and {self.ids[other]}" for one, other in twins[:3])
            yield (
                f"{len(twins)} {'image looks' if len(twins) == 1 else 'images look'} nearly the same as an image of "
                f"another split: {listed}; put both into one split by --patient-regex or a split.csv"
            )

    def _count_classes(self, name: str, train: list[int]) -> int:
        """The number of classes in the labels of the train split, at least 2; 0 if there are no labels."""
        values = self.all_values()
        if not values:
            return 0
        if FOREGROUND in values:
            if values <= {0, FOREGROUND}:
                return 2
            index = min(values - {0, FOREGROUND})
            raise LabelError(
                f"{self._first_with(FOREGROUND)} contains the value {FOREGROUND} and {self._first_with(index)} the "
                f"value {index}: expected only 0 and {FOREGROUND} in all labels, or class indices in all; renumber "
                f'some of them, or, if {FOREGROUND} marks pixels of an unknown class, write "ignore": [{FOREGROUND}] '
                "in a dataset.json, which ahm-gym look writes."
            )
        in_train = {value for index in train for value in self.label_values[index]} - {IGNORED}
        num_classes = max(max(in_train or values) + 1, 2)
        if max(values) >= num_classes:
            origin = self._first_with(max(values))
            raise LabelError(
                f"class index out of range: {origin} contains the value {max(values)}, expected 0 to "
                f"{num_classes - 1} as in the training labels; put an image with that class into the train "
                "split (in a folder by a split.csv with the columns name and split), or move the labels elsewhere to "
                "pretrain without them."
            )
        unused = self._unused(num_classes)
        if 2 * len(unused) > num_classes > 2:
            raise LabelError(
                f"the labels of {name} go up to {num_classes - 1} ({self._first_with(num_classes - 1)}) but never "
                f"contain {_some(unused)}: expected class indices 0, 1, 2 and so on; renumber the classes."
            )
        return num_classes

    def _unused(self, num_classes: int) -> list[int]:
        """The indices of foreground that no label has."""
        return sorted(set(range(1, num_classes)) - self.all_values())

    def _gaps(self, num_classes: int) -> Iterator[str]:
        """A sentence on class indices that no label has."""
        unused = self._unused(num_classes)
        if unused and num_classes > 2:
            yield f"no label contains the class {_some(unused)}: renumber the classes if they should have no gap"

    def _first_with(self, value: int) -> str:
        found = next(index for index, values in enumerate(self.label_values) if value in values)
        return self.label_origins[found]


def _some(numbers: list[int]) -> str:
    """The first few numbers."""
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")

"""Reads a source once and writes its images, labels and statistics to the cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ahm_gym.data.fallbacks import LabelError, MixedColoursError, Recolourable, WithoutLabels, checked_label
from ahm_gym.data.patients import Evidence, Patients, find_patients
from ahm_gym.data.processing import PLAIN, Processing, scale
from ahm_gym.data.sample import Record, Source, Split
from ahm_gym.data.scaling import (
    FOREGROUND,
    channels_last,
    shrink,
)
from ahm_gym.data.splits import (
    HasTable,
    SplitTable,
    choose_splits,
    describe_shared_patients,
    name_cases,
    patients_of_cases,
    summarise,
)
from ahm_gym.data.store import (
    CHECKSUMS_FILE,
    ImageDataset,
    StoreWriter,
    is_sound,
    replace_label_value,
    write_checksums,
)
from ahm_gym.data.twins import Twins
from ahm_gym.errors import InputError, printable, say
from ahm_gym.runs.places import expanded, home_folder
from ahm_gym.runs.storage import remove

FORMAT_VERSION = 5
STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """The folder of prepared data: `$AHM_CACHE`, or `ahm-gym` in the user's cache folder.

    Raises:
        InputError: if neither is known.
    """
    chosen = os.environ.get("AHM_CACHE")
    if chosen:
        return expanded(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "ahm-gym"
    home = home_folder()
    if home is None:
        raise InputError(
            "there is no home folder in which prepared data could be kept: set AHM_CACHE to a folder for it."
        )
    return home / ".cache" / "ahm-gym"


def prepare(
    source: Source,
    *,
    shortest_side: int | None,
    need_labels: bool = True,
    patient_regex: str | None = None,
) -> ImageDataset:
    """Prepares the dataset of a source, or opens it from the cache if the source has not changed.

    Both print how its patients were found, and what is doubtful about them.

    Args:
        source: source of the images.
        shortest_side: maximum length of an image's shorter side, in pixels; larger images are shrunk. None: no limit.
        need_labels: labels that cannot be used are an error; otherwise all labels are left out then, with a note.
        patient_regex: pattern by which the patient is found in the place of an image; see `find_patients`.

    Raises:
        InputError: if a file cannot be used, the pattern finds no patient in a place, or the cache cannot be written.
    """
    parts = [FORMAT_VERSION, shortest_side, source.name, source.fingerprint(), patient_regex]
    dataset = ImageDataset(_prepared(source, parts, shortest_side, need_labels, patient_regex))
    for note in dataset.notes:
        say(f"note: {dataset.name}: {note}.")
    return dataset


def _prepared(
    source: Source, parts: list[Any], shortest_side: int | None, need_labels: bool, patient_regex: str | None
) -> Path:
    """The folder of the prepared data, which is written if it is not there."""
    labelled, unlabelled = (
        _store_folder(source.name, parts),
        _store_folder(source.name, [*parts, "no labels"]),
    )
    if is_sound(labelled):
        return labelled
    with _cache_errors(labelled.parent):
        _discard(labelled)
        if is_sound(unlabelled):
            if not need_labels:
                return unlabelled
        else:
            _discard(unlabelled)
        try:
            _build(source, labelled, shortest_side, patient_regex)
        except LabelError as error:
            if need_labels:
                raise
            say(f"note: {source.name}: its labels are left out, because {error}")
            _build(WithoutLabels(source), unlabelled, shortest_side, patient_regex)
            return unlabelled
    return labelled


def _store_folder(name: str, parts: list[Any]) -> Path:
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"{re.sub(r'[^A-Za-z0-9-]+', '_', name)}-{digest}"


def _discard(folder: Path) -> None:
    """Removes a damaged store, or one without checksums, so that it is prepared again."""
    if not os.path.lexists(folder):
        return
    if (folder / CHECKSUMS_FILE).exists():
        say(f"note: the prepared data in {folder} is damaged and is prepared again.")
    away = folder.with_name(f".{folder.name}.damaged-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):  # another process has just done so
        folder.rename(away)
        remove(away)


def _build(source: Source, folder: Path, shortest_side: int | None, patient_regex: str | None) -> None:
    """Writes the store under a temporary name and renames it, so that it is either complete or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished
            if time.time() - left_over.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        try:
            _write(source, temporary, shortest_side, patient_regex)
        except MixedColoursError:  # known only once both kinds have been read
            if not isinstance(source, Recolourable):
                raise
            _write(source.in_colour(), temporary, shortest_side, patient_regex)
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Otherwise another process has prepared the same data in the meantime.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(source: Source, folder: Path, shortest_side: int | None, patient_regex: str | None) -> None:
    writer = StoreWriter(folder)
    try:
        table = _Table()
        for record in _with_progress(source):
            table.add(record, writer, shortest_side)
        if not table.ids:
            raise InputError(
                f"{source.name} has only constant slices: expected at least one that is not constant."
            )
        split_table = source.table if isinstance(source, HasTable) else None
        index = table.index(source.name, split_table, patient_regex)
        writer.finish(index)
    finally:
        writer.close()
    if FOREGROUND in table.all_values():
        replace_label_value(folder, FOREGROUND, 1)
    write_checksums(folder)


def _with_progress(source: Source) -> Iterator[Record]:
    console = Console(stderr=True)
    yield from track(
        source.records(),
        description=f"preparing {escape(printable(source.name))}",
        total=source.num_images,
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )


@contextlib.contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Turns the error of a full or read-only cache folder into an InputError."""
    try:
        yield
    except OSError as error:
        reasons = {errno.ENOSPC: "has no space left", errno.EDQUOT: "is over its quota"}
        forbidden = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
        reasons |= dict.fromkeys(forbidden, "cannot be written")
        if error.errno not in reasons:
            raise
        raise InputError(
            f"the cache folder {folder} {reasons[error.errno]}: free some space there, or set AHM_CACHE to "
            "another folder."
        ) from error


@dataclass
class _Table:
    """The columns of the index, and intermediate values from which it is completed."""

    ids: list[str] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    twins: Twins = field(default_factory=Twins)
    splits: list[Split | None] = field(default_factory=list)
    spacings: list[tuple[float, float] | None] = field(default_factory=list)
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
        image = channels_last(record.image, record.origin)
        if self.moments and self.moments[0].shape[1] != image.shape[2]:
            expected = self.moments[0].shape[1]
            kind = MixedColoursError if {image.shape[2], expected} == {1, 3} else InputError
            raise kind(
                f"wrong channel count: {record.origin} has {image.shape[2]}, expected {expected} like the images "
                "before it; convert some of them, or split the data."
            )
        label = checked_label(record, (image.shape[0], image.shape[1]))
        self.processing = record.processing
        scaled = scale(image, record.processing, image.shape[2] if record.modalities else 1)
        scaled = shrink(scaled, shortest_side)
        exact = scaled.double()
        self.moments.append(torch.stack([exact.mean(dim=(1, 2)), exact.square().mean(dim=(1, 2))]))
        self.images.append(writer.add_image(scaled))
        self.labels.append(None if label is None else writer.add_label(label))
        self.label_values.append([] if label is None else np.unique(label).tolist())
        self.label_origins.append(record.label_origin)
        self.ids.append(record.id)
        place = record.place or record.volume or record.id
        self.evidence.append(Evidence(place, record.patient, record.volume))
        self.twins.add(scaled)
        self.splits.append(record.split)
        self.spacings.append(record.spacing)
        self.positions.append(record.position)
        self.slice_spacings.append(record.slice_spacing)

    def all_values(self) -> set[int]:
        """All label values that occur."""
        return {value for values in self.label_values for value in values}

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
            "format": FORMAT_VERSION,
            "name": name,
            "channels": len(mean),
            "num_classes": num_classes,
            "class_names": self.processing.classes,
            "processing": self.processing.model_dump(exclude_defaults=True),
            "mean": mean.tolist(),
            "std": std.tolist(),
            "patients": patients_of_cases(cases, patients.of_images),
            "found": {
                "patients": patients.of_images,
                "rule": patients.rule,
                "certainty": patients.certainty,
                "doubts": [*patients.doubts, *self._doubts(patients, splits)],
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
                "some of them."
            )
        in_train = {value for index in train for value in self.label_values[index]}
        num_classes = max(max(in_train or values) + 1, 2)
        if max(values) >= num_classes:
            origin = self._first_with(max(values))
            raise LabelError(
                f"class index out of range: {origin} contains the value {max(values)}, expected 0 to "
                f"{num_classes - 1} as in the training labels; put an image with that class into the train "
                "split (in a folder by a split.csv with the columns name and split), or move the labels elsewhere to "
                "pretrain without them."
            )
        self._check_gaps(name, sorted(set(range(1, num_classes)) - values), num_classes)
        return num_classes

    def _check_gaps(self, name: str, unused: list[int], num_classes: int) -> None:
        """Prints a note on unused class indices; raises InputError if more than half are unused."""
        if not unused or num_classes == 2:
            return
        listed = ", ".join(map(str, unused[:5])) + (", ..." if len(unused) > 5 else "")
        if 2 * len(unused) > num_classes:
            raise LabelError(
                f"the labels of {name} go up to {num_classes - 1} ({self._first_with(num_classes - 1)}) but never "
                f"contain {listed}: expected class indices 0, 1, 2 and so on; renumber the classes."
            )
        say(
            f"note: no label of {name} contains the class {listed}: renumber the classes if they should have no gap.",
        )

    def _first_with(self, value: int) -> str:
        found = next(index for index, values in enumerate(self.label_values) if value in values)
        return self.label_origins[found]

"""Splits images into train, val and test: by a CSV file, by patient, or in blocks of a numbered series."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from ahm_gym.data.patients import Evidence, Patients
from ahm_gym.data.sample import SPLITS, Split
from ahm_gym.data.wording import counted, verb
from ahm_gym.errors import InputError

VAL_SHARE = 0.1
TEST_SHARE = 0.2
MIN_PATIENTS = 3
"""The number of splits: with fewer patients, a split would stay empty."""
SEED = 0


class SplitTable:
    """The splits of files or patients from a CSV file with the columns `name` and `split`.

    Raises:
        InputError: if a column is missing, a split is unknown, or a name has two splits.
    """

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.splits: dict[str, Split] = {}
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} cannot be read ({error}): expected a table in UTF-8; save it in that encoding."
            ) from error
        try:
            self._read(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise InputError(
                f"{path} cannot be read ({error}): expected short names with commas between them; check its quotation "
                "marks."
            ) from error

    def _read(self, reader: csv.DictReader[str]) -> None:
        columns = reader.fieldnames or ["(none)"]
        if not {"name", "split"} <= set(columns):
            raise InputError(
                f"{self.path} has the columns {', '.join(columns)}: expected 'name,split' as its first line."
            )
        for row in reader:
            self._add((row["name"] or "").strip(), (row["split"] or "").strip())

    def _add(self, name: str, given: str) -> None:
        split: Split | None = next((known for known in SPLITS if known == given), None)
        if split is None:
            raise InputError(f"{self.path} gives {name!r} the split {given!r}: expected train, val or test.")
        if self.splits.setdefault(name, split) != split:
            raise InputError(f"{self.path} gives {name!r} two splits: keep only one of the lines.")

    def of_file(self, path: Path, stem: str) -> Split | None:
        """Looks up a file by its name, then its name without suffix; None if the table has neither."""
        return self.splits.get(path.name) or self.splits.get(stem)

    def of_patient(self, place: str, patient: str) -> Split:
        """Looks up an image by its place, then its patient, then the longest beginning of a part of its place.

        Such a beginning, as `carl` of `carl_01`, ends where no letter or digit follows.

        Raises:
            InputError: if the table has none of them.
        """
        starts = [
            part[: end.start()]
            for part in place.split("/")
            for end in re.finditer(r"(?<=\w)(?=[\W_]|$)", part)
        ]
        for name in (place, patient, *sorted(starts, key=len, reverse=True)):
            if name in self.splits:
                return self.splits[name]
        raise InputError(
            f"{place} has no line in {self.path}: add its file name, its name without suffix, or its patient "
            f"{patient!r}."
        )


@runtime_checkable
class HasTable(Protocol):
    """A source of images beside which a table of splits may lie."""

    table: SplitTable | None


def split_counts(num: int) -> tuple[int, int]:
    """The sizes of val and test for `num` items: each at least 1 if there are three items or more."""
    if num < MIN_PATIENTS:
        return 0, max(num - 1, 0)
    return max(1, round(VAL_SHARE * num)), max(1, round(TEST_SHARE * num))


def split_groups(groups: Sequence[str]) -> list[Split]:
    """The split of every image, 70/10/20 by group; the groups are shuffled with a fixed seed.

    Of two groups one is for training and one for testing; a single group is for training.
    """
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(SEED)).tolist()
    num_val, num_test = split_counts(len(names))
    splits: dict[str, Split] = dict.fromkeys(names, "train")
    splits |= dict.fromkeys((names[i] for i in order[:num_val]), "val")
    splits |= dict.fromkeys((names[i] for i in order[num_val : num_val + num_test]), "test")
    return [splits[group] for group in groups]


def split_blocks(num: int) -> list[Split]:
    """The split of every image, 70/10/20 in contiguous blocks, so that neighbours mostly stay together."""
    num_val, num_test = split_counts(num)
    counts = zip(SPLITS, (num - num_val - num_test, num_val, num_test), strict=True)
    return [split for split, count in counts for _ in range(count)]


def split_series(names: Sequence[str]) -> list[Split]:
    """The split of every image of numbered series, each series in contiguous blocks.

    The numbers of names are left out to find the series. If some have fewer than three images, all images together are
    split in blocks.
    """
    series: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        series.setdefault(re.sub(r"\d+(?=\D*$)", "", name), []).append(index)
    if min(map(len, series.values()), default=0) < MIN_PATIENTS:
        return split_blocks(len(names))
    splits: list[Split] = ["train"] * len(names)
    for indices in series.values():
        for index, split in zip(indices, split_blocks(len(indices)), strict=True):
            splits[index] = split
    return splits


def are_known(groups: Sequence[str]) -> bool:
    """Whether there are enough groups for three splits, so that they can be the cases of scores."""
    return len(set(groups)) >= MIN_PATIENTS


def complete_splits(
    splits: Sequence[Split | None], patients: Sequence[str], *, series: bool = False
) -> list[Split]:
    """Fills in missing splits by patient; images of a patient who has a split get that split.

    Args:
        splits: the split of each image, or None.
        patients: the patient of each image.
        series: every image is a patient of its own, and patients are names with running numbers: split in blocks.
    """
    given: dict[str, Split] = {}
    for split, patient in zip(splits, patients, strict=True):
        if split is not None:
            given.setdefault(patient, split)
    left = [p for split, p in zip(splits, patients, strict=True) if split is None and p not in given]
    chosen = split_series(left) if series else split_groups(left)
    given |= dict(zip(left, chosen, strict=True))
    return [split or given[patient] for split, patient in zip(splits, patients, strict=True)]


def choose_splits(
    splits: Sequence[Split | None], evidence: Sequence[Evidence], patients: Patients, table: SplitTable | None
) -> list[Split]:
    """The split of every image: its own, or that of its patient in the table, or else chosen by patient.

    Raises:
        InputError: if the table lacks an image that has no split of its own.
    """
    given = list(splits)
    if table is not None:
        for index, (one, patient) in enumerate(zip(evidence, patients.of_images, strict=True)):
            given[index] = given[index] or table.of_patient(one.place, patient)
    flat = all(one.volume is None for one in evidence)
    return complete_splits(given, patients.of_images, series=patients.series and flat)


def summarise(patients: Patients, splits: Sequence[Split], *, chosen: bool) -> str:
    """A line on the patients found and their splits; `chosen` if the splits were chosen here."""
    own = set(zip(splits, patients.of_images, strict=True))
    counts = "/".join(str(sum(split == name for split, _ in own)) for name in SPLITS)
    number = len(set(patients.of_images))
    blocks = ", in blocks of neighbours" if patients.series and chosen else ""
    return (
        f"{counted(len(splits), 'image')} of {counted(number, 'patient')} ({patients}): "
        f"{counts} patients in {'/'.join(SPLITS)}{blocks}"
    )


def describe_shared_patients(splits: Sequence[Split], patients: Sequence[str]) -> str | None:
    """A note on patients in more than one split; None if there are none."""
    where: dict[str, set[Split]] = {}
    for patient, split in zip(patients, splits, strict=True):
        where.setdefault(patient, set()).add(split)
    shared = [patient for patient, own in where.items() if len(own) > 1]
    if not shared:
        return None
    listed = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
    are = verb(len(shared), "is", "are")
    return f"{len(shared)} of {counted(len(where), 'patient')} {are} in more than one split: {listed}"


def name_cases(ids: Sequence[str], patients: Sequence[str], volumes: Sequence[str | None]) -> list[str]:
    """The case of every image: its volume, or its patient if the patients are known, or else its id."""
    known = are_known(patients)
    return [
        volume or (patient if known else name)
        for name, patient, volume in zip(ids, patients, volumes, strict=True)
    ]


def patients_of_cases(cases: Sequence[str], patients: Sequence[str]) -> dict[str, str]:
    """The patients who have several cases, such as two volumes, by case; empty if patients are not known."""
    if not are_known(patients):
        return {}
    patient_of_case = dict(zip(cases, patients, strict=True))
    number = Counter(patient_of_case.values())
    return {case: patient for case, patient in patient_of_case.items() if number[patient] > 1}

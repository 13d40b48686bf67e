"""Splits images into train, val and test: by a CSV file, by patient, or in blocks."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from ahm_gym.data.sample import SPLITS, Split, patient_of
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
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = reader.fieldnames or ["(none)"]
        if not {"name", "split"} <= set(columns):
            raise InputError(
                f"{path} has the columns {', '.join(columns)}: expected 'name,split' as its first line."
            )
        for row in reader:
            self._add((row["name"] or "").strip(), (row["split"] or "").strip())

    def _add(self, name: str, given: str) -> None:
        split: Split | None = next((known for known in SPLITS if known == given), None)
        if split is None:
            raise InputError(f"{self.path} gives {name!r} the split {given!r}: expected train, val or test.")
        if self.splits.setdefault(name, split) != split:
            raise InputError(f"{self.path} gives {name!r} two splits: keep only one of the lines.")

    def find(self, path: Path, stem: str, patient: str) -> Split:
        """Looks up a file by its name, then its name without suffix, then its patient.

        Raises:
            InputError: if the table has none of them.
        """
        for name in (path.name, stem, patient, patient_of(stem)):
            if name in self.splits:
                return self.splits[name]
        raise InputError(
            f"{path} has no line in {self.path}: add its file name, its name without suffix, or its patient "
            f"{patient!r}."
        )


def split_counts(num: int) -> tuple[int, int]:
    """The sizes of val and test for `num` items: each at least 1 if there are three items or more."""
    if num < MIN_PATIENTS:
        return 0, num - 1
    return max(1, round(VAL_SHARE * num)), max(1, round(TEST_SHARE * num))


def split_groups(groups: Sequence[str]) -> list[Split]:
    """The split of every image, 70/10/20 by group; the groups are shuffled with a fixed seed."""
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


def are_known(groups: Sequence[str]) -> bool:
    """Whether names give the groups: with fewer than three, as in `img_001`, `img_002`, they do not."""
    return len(set(groups)) >= MIN_PATIENTS


def complete_splits(
    splits: Sequence[Split | None], patients: Sequence[str], volumes: Sequence[str | None]
) -> tuple[list[Split], str | None]:
    """Fills in missing splits, by patient, or by volume if there are fewer than three patients, or else in blocks.

    Returns:
        The split of every image, and a note for the user on how they were chosen, or None.
    """
    missing = [index for index, split in enumerate(splits) if split is None]
    by_patient = [patients[index] for index in missing]
    by_volume = [volumes[index] or "" for index in missing]
    note = None
    if are_known(by_patient):
        chosen = split_groups(by_patient)
        note = _describe_groups(by_patient, chosen, "patients")
    elif are_known(by_volume):
        chosen = split_groups(by_volume)
        note = _describe_groups(by_volume, chosen, "volumes")
    else:
        chosen = split_blocks(len(missing))
        if missing:
            note = f"its names show fewer than {MIN_PATIENTS} patients, so it is split into contiguous blocks"
    filled = iter(chosen)
    return [split or next(filled) for split in splits], note


def _describe_groups(groups: Sequence[str], splits: Sequence[Split], kind: str) -> str | None:
    """A note on the number of groups in each split; None if every group has one image."""
    if len(set(groups)) == len(groups):
        return None
    of_split = (len({group for group, own in zip(groups, splits, strict=True) if own == s}) for s in SPLITS)
    counts = ", ".join(f"{count} {split}" for count, split in zip(of_split, SPLITS, strict=True))
    return f"{len(groups)} images are split by {kind}; there seem to be {len(set(groups))}: {counts}"


def describe_shared_patients(splits: Sequence[Split], patients: Sequence[str]) -> str | None:
    """A note on patients in more than one split; None if there are none, or the patients are not known."""
    where: dict[str, set[Split]] = {}
    for patient, split in zip(patients, splits, strict=True):
        where.setdefault(patient, set()).add(split)
    shared = [patient for patient, own in where.items() if len(own) > 1]
    if not shared or not are_known(patients):
        return None
    listed = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
    return f"by their names, {len(shared)} of {len(where)} patients are in more than one split: {listed}"


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

"""Folds that the data itself names: nnU-Net's `splits_final.json`, or the `splits` of a description."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pydantic

from ahm_gym.data.layout import Scan
from ahm_gym.data.listing import FOLDS
from ahm_gym.data.modalities import without_channel
from ahm_gym.data.sample import Split
from ahm_gym.errors import InputError
from ahm_gym.runs.schema import checked, read_json

PREPROCESSED: str = "nnUNet_preprocessed"
"""Folder in which nnU-Net keeps that file, beside `nnUNet_raw`, in a folder of the name of the data set."""
WAY_OUT: str = (
    f"expected nnU-Net's {FOLDS}, a list of folds with train and val; correct it, or give it another name"
)


class Fold(pydantic.BaseModel):
    """The cases of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


class FoldsFile(pydantic.RootModel[tuple[Fold, ...]]):
    """The content of a file of folds."""


def find_folds(folders: Iterable[Path]) -> Path | None:
    """The file of folds in one of these folders, or where nnU-Net keeps it for a folder of raw data."""
    for folder in folders:
        places = [folder, folder / PREPROCESSED]
        places += [above / PREPROCESSED / folder.name for above in (folder.parent, folder.parent.parent)]
        if (
            found := next((place / FOLDS for place in places if (place / FOLDS).is_file()), None)
        ) is not None:
            return found
    return None


def read_folds(path: Path) -> tuple[Fold, ...]:
    """The folds in a file.

    Raises:
        InputError: if it is no such file, or a fold has a case in train and val.
    """
    folds = checked(FoldsFile, read_json(path, WAY_OUT), path, WAY_OUT).root
    for number, fold in enumerate(folds):
        if both := sorted(set(fold.train) & set(fold.val)):
            raise InputError(
                f"fold {number} in {path} has the case {both[0]} in train and in val: {WAY_OUT}."
            )
    return folds


def in_folds(scans: Sequence[Scan], path: Path, folds: Sequence[Fold]) -> tuple[list[Scan], list[str]]:
    """The scans with their split in each fold, and sentences on what the folds name.

    Without a scan that they name, the scans have no folds.
    """
    known = [
        {without_channel(name) for name in (scan.id, scan.case)} | {scan.id, scan.case} for scan in scans
    ]
    named = {name for fold in folds for name in (*fold.train, *fold.val)}
    missing = sorted(named - set().union(*known))
    if not folds or len(missing) == len(named):
        return list(scans), [f"{path} names folds of other cases, and is not used"]
    found = [
        replace(scan, folds=tuple(_split_in(fold, names) for fold in folds))
        for scan, names in zip(scans, known, strict=True)
    ]
    sentences = [f"{path} names {len(folds)} folds, of which --fold uses one; without it they are not used"]
    if missing:
        sentences.append(f"{len(missing)} of their {len(named)} cases are not here, such as {missing[0]}")
    return found, sentences


def _split_in(fold: Fold, names: Collection[str]) -> Split:
    """The split of a case; one that a fold does not name takes no part in it, and is for testing."""
    return "val" if set(names) & set(fold.val) else "train" if set(names) & set(fold.train) else "test"

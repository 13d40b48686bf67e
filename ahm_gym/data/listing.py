"""Lists the images in a folder, and the folders inside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ahm_gym.data.formats import READERS, is_readable, stem_of, suffix_of
from ahm_gym.errors import InputError

IMAGE_FOLDERS: tuple[str, ...] = ("images", "imagesTr")
LABEL_FOLDERS: tuple[str, ...] = ("labels", "labelsTr", "masks", "label", "mask")
SPLIT_TABLE = "split.csv"
PREDICTIONS = "predictions.jsonl"
"""A folder with this file holds predicted masks, which are neither images nor labels."""


def find_images(folder: Path) -> Path:
    """The folder that holds the images: the given one, its `images` or its `imagesTr`.

    Raises:
        InputError: if none of them or more than one holds images, or the folder is one of labels.
    """
    parent = folder.resolve().parent
    if is_named(folder, LABEL_FOLDERS) and inner_folders(parent, IMAGE_FOLDERS):
        raise InputError(f"{folder} holds labels, according to its name: expected images; give {parent}.")
    candidates = [place for place in (folder, *inner_folders(folder, IMAGE_FOLDERS)) if by_stem(place)]
    if len(candidates) > 1:
        raise InputError(
            f"{candidates[0]} holds images, and so does {candidates[1]}: expected them in one place; give the "
            "folder that should be used, or remove the other images."
        )
    if candidates:
        return candidates[0]
    nested = sorted(path.name for path in folder.iterdir() if path.is_dir() and by_stem(path))
    hint = f"give one of its folders: {', '.join(nested[:5])}" if nested else "give another folder"
    raise InputError(
        f"{folder} holds no images, nor does a folder {' or '.join(IMAGE_FOLDERS)} in it: expected files ending "
        f"in {', '.join(READERS)}; {hint}."
    )


def is_named(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder has one of these names, in upper or lower case; the path may be relative."""
    return folder.resolve().name.lower() in [name.lower() for name in names]


def inner_folders(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders in a folder that have one of these names, in upper or lower case, in the order of the names.

    Folders of predicted masks are left out.
    """
    order = [name.lower() for name in names]
    # Check names first: on a network drive, asking whether each of 100,000 images is a folder takes long.
    inside = (path for path in folder.iterdir() if path.name.lower() in order and path.is_dir())
    inside = (path for path in inside if not (path / PREDICTIONS).exists())
    return sorted(inside, key=lambda path: (order.index(path.name.lower()), path))


def by_stem(folder: Path) -> dict[str, Path]:
    """The readable files of a folder by name without suffix, with numbers in numeric order.

    Raises:
        InputError: if the names of two files differ only in their suffix.
    """
    files: dict[str, Path] = {}
    readable = (path for path in folder.iterdir() if path.name[0] != "." and is_readable(path))
    for path in sorted(readable, key=lambda path: _natural(path.name)):
        other = files.setdefault(stem_of(path), path)
        if other is not path:
            raise InputError(f"{other} and {path.name} have the same name: keep one of them.")
    return files


def note_on_other_files(folder: Path) -> str | None:
    """A sentence on the files in a folder that cannot be read, with their numbers by suffix; None if there are none."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    counts = Counter(suffix_of(path) for path in files if path.name != SPLIT_TABLE and not is_readable(path))
    others = sorted(counts)
    listed = ", ".join(f"{counts[suffix]} {suffix or 'without a suffix'}" for suffix in others)
    return f"files of other kinds are left out: {listed}" if others else None


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts `img_2` before `img_10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

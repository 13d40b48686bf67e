"""Lists the files in a folder and below it, and says what the names of folders mean."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ahm_gym.data.formats import READERS, stem_of, suffix_of
from ahm_gym.data.sample import Split
from ahm_gym.errors import InputError

SPLIT_TABLE = "split.csv"
DESCRIPTION = "dataset.json"
"""Name of the file that describes the folder in which it lies."""
FOLDS = "splits_final.json"
"""Name of nnU-Net's file of folds."""
PREDICTIONS = "predictions.jsonl"
"""A folder with this file holds predicted masks, which are neither images nor labels."""
RUN_FILES: frozenset[str] = frozenset({"config.json", "metrics.jsonl"})
"""A folder with these files is a run, whose pictures are no images to learn from."""
SYSTEM: frozenset[str] = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin"})
NNUNET_FOLDERS: tuple[str, ...] = ("imagestr", "imagests", "imagesval", "imagesva")

IMAGE_WORDS: frozenset[str] = frozenset("image images img imgs original originals input inputs".split())
LABEL_WORDS: frozenset[str] = frozenset(
    "label labels mask masks msk msks gt gts groundtruth groundtruths truth segmentation segmentations seg segs "
    "annotation annotations annot manual gtpolyp labelmap labelmaps".split()
)
MIXED_WORDS: frozenset[str] = frozenset("with without no".split())
"""In a name such as `scans_with_masks` the words say nothing about a single file."""
DERIVED_WORDS: frozenset[str] = frozenset(
    "superpixel superpixels thumbnail thumbnails thumbs preview previews overlay overlays prediction predictions "
    "roi rois heatmap heatmaps visualization visualizations visualisation visualisations".split()
)
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
NNUNET_SPLITS: dict[str, Split] = {"tr": "train", "va": "val", "ts": "test"}
FORMAT_WORDS: frozenset[str] = frozenset("png tif tiff jpg jpeg bmp".split())

Role = Literal["image", "label", "derived", "derivatives"]


@dataclass(frozen=True)
class Found:
    """A file below the root."""

    path: Path
    parts: tuple[str, ...]
    """The folders between the root and the file."""
    stem: str
    suffix: str
    in_labels: bool = False
    """It lies in a folder of labels."""
    image: Path | None = None
    """The image of a label that only its pixels tell from one."""


@dataclass
class Tree:
    """All files below a folder, without hidden ones and those of the system."""

    files: list[Found] = field(default_factory=list)
    """Files of the kinds that can be read, with numbers in numeric order."""
    others: list[Found] = field(default_factory=list)
    """All other files."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """Folders that were not searched, and what is neither a file nor a folder, each with the reason."""


def walk(root: Path) -> Tree:
    """Searches a folder and all folders below it; links are followed, but not in circles.

    Raises:
        InputError: if the folder may not be listed.
    """
    tree = Tree()
    try:
        _visit(root, (), frozenset(), tree)
    except PermissionError as error:
        raise InputError(f"{root} cannot be listed ({error.strerror}): change its permissions.") from error
    return tree


def _visit(folder: Path, parts: tuple[str, ...], above: frozenset[tuple[int, int]], tree: Tree) -> None:
    status = folder.stat()
    itself = (status.st_dev, status.st_ino)
    if itself in above:
        return
    folders = []
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: natural(entry.name))
    if parts and (reason := _why_not_searched({entry.name for entry in listed})):
        tree.left_out[folder] = reason
        return
    for entry in listed:
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
            continue
        path = folder / entry.name
        known = path if entry.is_symlink() else entry  # a path tells a link to itself, an entry asks no disk
        if known.is_dir():
            folders.append(entry.name)
            continue
        if not known.is_file() and path.exists():  # a broken link is refused where it is used
            tree.left_out[path] = "it is a device or a pipe"
            continue
        suffix = suffix_of(path)
        if suffix in READERS:
            tree.files.append(Found(path, parts, stem_of(path), suffix))
        else:
            tree.others.append(Found(path, parts, path.name.removesuffix(path.suffix), suffix))
    for name in folders:
        try:
            _visit(folder / name, (*parts, name), above | {itself}, tree)
        except PermissionError:
            tree.left_out[folder / name] = "there is no permission to list it"


def _why_not_searched(names: set[str]) -> str | None:
    if PREDICTIONS in names:
        return "it holds predicted masks"
    return "it is the folder of a run" if names >= RUN_FILES else None


@functools.cache
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: `labelsTr` has the words labels and tr."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name))


@functools.cache
def role_of_folder(name: str) -> Role | None:
    """What a folder holds according to its name."""
    words = set(words_of(name))
    if "derivatives" in words:
        return "derivatives"
    if words & DERIVED_WORDS:
        return "derived"
    if words & MIXED_WORDS or ("and" in words and words & IMAGE_WORDS):  # images_and_masks
        return None
    if words & LABEL_WORDS or words == {"ground"}:
        return "label"
    return "image" if words & IMAGE_WORDS else None


@functools.cache
def split_of_folder(name: str) -> Split | None:
    """The split that the name of a folder states."""
    words = words_of(name)
    if len(words) == 2 and words[1] in NNUNET_SPLITS and words[0] in IMAGE_WORDS | LABEL_WORDS:
        return NNUNET_SPLITS[words[1]]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


@functools.cache
def split_of(parts: tuple[str, ...]) -> Split | None:
    """The split that the folders above a file state; the outermost counts."""
    return next((split for part in parts if (split := split_of_folder(part))), None)


def is_named(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder has one of these names, in upper or lower case."""
    return folder.name.lower() in names


def is_plain_label_name(name: str) -> bool:
    """Whether a name says nothing but that labels, perhaps of one split, are inside, as `labelsTr` does."""
    rest = set(words_of(name)) - NNUNET_SPLITS.keys() - SPLIT_WORDS.keys()
    return bool(rest) and rest <= LABEL_WORDS | {"ground"}


def label_folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are named as labels; none if it may not be listed. Predicted masks are left out."""
    try:
        # Check names first: on a network drive, asking whether each of 100,000 images is a folder takes long.
        names = [name for name in os.listdir(folder) if is_plain_label_name(name) and name[0] != "."]
    except PermissionError:
        return []
    places = [folder / name for name in sorted(names)]
    return [place for place in places if place.is_dir() and not (place / PREDICTIONS).exists()]


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts `img_2` before `img_10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

"""From what was given as `--data` to a dataset."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ahm_gym.data.files import READERS, suffix_of
from ahm_gym.data.folder import FolderSource
from ahm_gym.data.mni152 import Mni152Source
from ahm_gym.data.named import COLLECTIONS, find_named
from ahm_gym.data.npz import NpzSource
from ahm_gym.data.prepare import prepare
from ahm_gym.data.sample import Source
from ahm_gym.data.store import ImageDataset
from ahm_gym.errors import InputError


def open_data(
    spec: str | None,
    *,
    root: Path | None = None,
    image_size: tuple[int, int],
    native_resolution: bool = False,
    need_labels: bool = False,
) -> ImageDataset:
    """The dataset that `spec` names, prepared on its first use and read from the cache afterwards.

    Args:
        spec: None for the MNI152 template, the path of an `.npz` file or of a folder, or
            `medsegbench:NAME[:SIZE]` or `medmnist:NAME[:SIZE]`.
        root: where relative names are looked up first; then `$AHM_DATA`, then the current folder.
        image_size: rows and columns that the images will be used at; what is stored is at most
            twice as large.
        native_resolution: keep the images as large as they are.
        need_labels: refuse data whose train split has no labels, or none but background.

    Raises:
        InputError: where there is no such data, or it cannot be used.
    """
    if min(image_size) < 1:
        raise InputError(f"image size {image_size} is out of range: choose at least one pixel.")
    source = find_source(spec, root, image_size)
    dataset = prepare(source, shortest_side=None if native_resolution else 2 * min(image_size))
    if need_labels:
        check_labels(dataset)
    return dataset


def check_labels(dataset: ImageDataset) -> None:
    """Raises InputError where the train split has no labels, or none with anything but background."""
    labelled = dataset.indices("train", labelled=True)
    if not labelled:
        raise InputError(
            f"{dataset.name} has no training labels: expected train_label in an .npz file, or files named like "
            "the images in a folder 'labels' in theirs or beside it; add them, or only pretrain on this data."
        )
    labels = (dataset.sample(index).label for index in labelled)
    if not any(label is not None and bool(label.any()) for label in labels):
        raise InputError(
            f"the training labels of {dataset.name} hold only background: expected classes from 1 on in some of them; "
            "look at how they were exported."
        )


def search_roots(root: Path | None) -> list[Path]:
    """Folders in which relative names are looked up, the first one first."""
    named = [root, os.environ.get("AHM_DATA") or None]
    return [Path(folder).expanduser() for folder in named if folder is not None]


def find_source(spec: str | None, root: Path | None, image_size: tuple[int, int]) -> Source:
    """The source that `spec` names; see `open_data`."""
    if spec is None:
        return Mni152Source()
    roots = search_roots(root)
    if spec.split(":")[0] in COLLECTIONS and ":" in spec:
        return NpzSource(find_named(spec, roots, image_size))
    path = find_path(spec, [*roots, Path()])
    if path.is_dir():
        return FolderSource(path)
    if suffix_of(path) in READERS:
        raise InputError(f"{path} is a single image: expected an .npz file or a folder; give {path.parent}.")
    return NpzSource(path)


def absolute(spec: str | None, root: Path | None) -> tuple[str | None, Path | None]:
    """`spec` and `root` as they can be opened again from any folder and without AHM_DATA."""
    roots = search_roots(root)
    first = roots[0].absolute() if roots else None
    if spec is None or spec.split(":")[0] in COLLECTIONS:
        return spec, first
    return str(find_path(spec, [*roots, Path()]).absolute()), first


def stem_of(spec: str | None) -> str:
    """What the data is called in the names of runs."""
    name = "mni152" if spec is None else Path(spec.replace(":", "-")).absolute().name
    return name.removesuffix(".npz")


def find_path(spec: str, folders: list[Path]) -> Path:
    """The file or folder of that name in the first of the folders that has it.

    `NAME` also finds `NAME.npz` and `NAME_128.npz`, where there is only one of the latter.

    Raises:
        InputError: where there is none, or more than one.
    """
    given = Path(spec).expanduser()
    tried = [given] if given.is_absolute() else [folder / given for folder in folders]
    for path in tried:
        if path.exists():
            return path
        if path.suffix != ".npz" and path.parent.is_dir():
            pattern = re.compile(re.escape(path.name) + r"(_\d+)?\.npz")
            found = sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))
            if len(found) > 1:
                names = ", ".join(file.name for file in found)
                raise InputError(f"{spec!r} could be each of {names} in {path.parent}: give the whole name.")
            if found:
                return found[0]
    places = ", ".join(str(path) for path in tried)
    raise InputError(
        f"there is no data at {places}: give an .npz file or a folder, and with `data_root` or AHM_DATA "
        "where to look for it."
    )

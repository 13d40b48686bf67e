"""Opens the dataset that the setting `data` names."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ahm_gym.data.crops import share_outside
from ahm_gym.data.folder import FolderSource
from ahm_gym.data.formats import is_readable
from ahm_gym.data.ignored import in_structure
from ahm_gym.data.kinds import refuse_file
from ahm_gym.data.mni152 import Mni152Source
from ahm_gym.data.named import COLLECTIONS, find_named
from ahm_gym.data.npz import NpzSource
from ahm_gym.data.prepare import prepare
from ahm_gym.data.processing import PLAIN, Processing, differences
from ahm_gym.data.sample import OneSplit, Source
from ahm_gym.data.scaling import stored_side
from ahm_gym.data.store import ImageDataset
from ahm_gym.errors import InputError, check_numbers, say
from ahm_gym.runs.places import expanded


def open_data(
    spec: str | None,
    *,
    root: Path | None = None,
    image_size: tuple[int, ...],
    native_resolution: bool = False,
    need_labels: bool | None = None,
    one_split: bool = False,
    patient_regex: str | None = None,
    spacing: float | tuple[float, ...] | None = None,
) -> ImageDataset:
    """Opens a dataset. It is prepared on first use, and read from the cache afterwards.

    Args:
        spec: None for the MNI152 template, the path of an `.npz` file or of a folder, or
            `medsegbench:NAME[:SIZE]` or `medmnist:NAME[:SIZE]`.
        root: folder in which relative names are looked up first; then `$AHM_DATA` and the current folder.
        image_size: rows and columns at which the images will be used; they are stored at no more than
            twice that size. Three numbers ask for volumes, which are stored whole.
        native_resolution: store the images at their full size.
        need_labels: True raises an error if the train split has no labels, or only background. False is for
            pretraining: labels that cannot be used are left out with a note. None: they are an error.
        one_split: put every image into train, whatever the data says.
        patient_regex: regular expression that finds the patient in the name of an image, or in its path inside the
            folder: its first group, or else its whole match. None: see `find_patients`.
        spacing: millimetres to which images are resampled, of a pixel or along each axis. None: as a dataset.json says;
            without one, volumes have the median of train along each axis, and other images are not resampled.

    Raises:
        InputError: if there is no such data, or it cannot be used.
    """
    source = spaced(find_source(spec, root, image_size), image_size, spacing)
    dataset = open_source(
        OneSplit(source) if one_split else source,
        image_size=image_size,
        native_resolution=native_resolution,
        need_labels=need_labels,
        patient_regex=patient_regex,
    )
    if dataset.axes == 3:
        say_if_small(dataset, image_size)
    return dataset


def say_if_small(dataset: ImageDataset, image_size: tuple[int, ...]) -> None:
    """Says how much of the crops lies outside the training volumes, if it is more than half."""
    sizes = [dataset.size_of(index) for index in dataset.indices("train")]
    outside = share_outside(sizes, image_size)
    if outside > 0.5:
        crop, median = (
            "x".join(str(int(side)) for side in size) for size in (image_size, np.median(sizes, axis=0))
        )
        say(
            f"note: {dataset.name}: {outside:.0%} of the voxels of crops of {crop} lie outside the training volumes, "
            f"and are black: choose a smaller `image_size`, because the volumes have {median} voxels in the median."
        )


def open_source(
    source: Source,
    *,
    image_size: tuple[int, ...],
    native_resolution: bool = False,
    need_labels: bool | None = None,
    patient_regex: str | None = None,
) -> ImageDataset:
    """Opens the dataset of a source; the arguments are those of `open_data`.

    Raises:
        InputError: if the data cannot be used.
    """
    whole = len(image_size) == 3
    if whole != processing_of(source).volumes:
        raise InputError(
            f"{source.name} holds images in two dimensions: give `image_size` two numbers, or one."
            if whole
            else f"{source.name} is described as `volumes`, in three dimensions: give `volumes` to the command, too."
        )
    side = None if whole else stored_side(image_size, native_resolution)
    dataset = prepare(
        source, shortest_side=side, need_labels=need_labels is not False, patient_regex=patient_regex
    )
    if need_labels:
        check_labels(dataset, source)
    return dataset


def processing_of(source: Source) -> Processing:
    """What a source does to the values of its images."""
    if isinstance(source, OneSplit):
        return processing_of(source.source)
    return source.processing if isinstance(source, FolderSource) else PLAIN


def spaced(source: Source, image_size: tuple[int, ...], spacing: float | tuple[float, ...] | None) -> Source:
    """The source with whole volumes if `image_size` has three numbers, and its images resampled to a spacing.

    Raises:
        InputError: if it is no folder, which neither can be done to, or the spacing does not fit.
    """
    axes = len(image_size)
    if axes == 2 and spacing is None:
        return source
    if not isinstance(source, FolderSource):
        name, others = ("volumes", " or an encoder of volumes") if axes == 3 else ("spacing", "")
        raise InputError(
            f"`{name}` needs a folder of files that say how large a voxel is, such as NIfTI, and {source.name} is "
            f"none: give one, or leave `{name}`{others} out."
        )
    changes: dict[str, Any] = {"volumes": True} if axes == 3 else {}
    if spacing is not None:
        sizes = spacing if isinstance(spacing, tuple) else (spacing,)
        check_numbers("size", spacing=min(sizes))
        if len(sizes) not in (1, axes):
            raise InputError(f"`spacing` has {len(sizes)} numbers: expected 1 or {axes}, in millimetres.")
        changes["spacing"] = spacing
    return source.processed(changes)


def as_trained(source: Source, processing: Processing) -> Source:
    """The source with its images scaled, resampled and sliced as those of a run were.

    Raises:
        InputError: if that cannot be, because a run has settings that only apply to folders.
    """
    different = differences(processing_of(source), processing)
    if not different:
        return source
    if isinstance(source, FolderSource):
        return source.as_trained(processing)
    listed = ", ".join(f"`{name}`" for name in different)
    raise InputError(
        f"the run was trained on images with {listed} of a dataset.json, and {source.name} is no folder: save its "
        "images as files in a folder."
    )


def names_test_images(spec: str | None, root: Path | None, image_size: tuple[int, ...]) -> bool:
    """Whether the data itself says which images are for testing, instead of leaving the choice to a rule."""
    source = find_source(spec, root, image_size)
    if isinstance(source, FolderSource):
        return source.table is not None and "test" in source.table.splits.values()
    return isinstance(source, NpzSource) and source.shapes.get("test_images", (0,))[0] > 0


def warnings_about(spec: str | None, root: Path | None, image_size: tuple[int, ...]) -> list[str]:
    """What was left out of a folder, and what may be wrong with it, in sentences without a full stop.

    The arguments are those of `open_data`; other data than a folder has none. No image is read.
    """
    source = find_source(spec, root, image_size)
    return list(source.search.layout.warnings()) if isinstance(source, FolderSource) else []


def check_labels(dataset: ImageDataset, source: Source | None = None) -> None:
    """Raises InputError if the train split has no labels, or only background."""
    labelled = dataset.indices("train", labelled=True)
    if not labelled:
        if isinstance(source, FolderSource) and (found := source.search.layout.unread_labels):
            raise InputError(f"{dataset.name} has no training labels that can be read: {found}.")
        raise InputError(
            f"{dataset.name} has no training labels: expected train_label in an .npz file, or files named like "
            "the images in a folder 'labels' inside or next to their folder; add them, or use this data only to "
            "pretrain."
        )
    labels = (dataset.sample(index).label for index in labelled)
    if not any(label is not None and bool(in_structure(label).any()) for label in labels):
        raise InputError(
            f"the training labels of {dataset.name} hold only background: expected classes 1 and higher in some of "
            "them; check how they were exported."
        )


def search_roots(root: Path | None) -> list[Path]:
    """The folders in which relative names are looked up, in this order."""
    named = [root, os.environ.get("AHM_DATA") or None]
    return [expanded(folder) for folder in named if folder is not None]


def find_source(spec: str | None, root: Path | None, image_size: tuple[int, ...]) -> Source:
    """The source that `spec` names; see `open_data`."""
    if min(image_size) < 1:
        raise InputError(f"image size {image_size} is out of range: choose at least one pixel.")
    if spec is None:
        return Mni152Source()
    roots = search_roots(root)
    if spec.split(":")[0] in COLLECTIONS and ":" in spec:
        return NpzSource(find_named(spec, roots, image_size))
    path = find_path(spec, [*roots, Path()])
    if path.is_dir() or path.suffix.lower() == ".json":
        return FolderSource(path)
    if not path.is_file():
        raise InputError(
            f"{path} is a device or a pipe: expected an .npz file or a folder; save the data as one."
        )
    if is_readable(path):
        raise InputError(f"{path} is a single image: expected an .npz file or a folder; give {path.parent}.")
    refuse_file(path)
    return NpzSource(path)


def absolute(spec: str | None, root: Path | None) -> tuple[str | None, Path | None]:
    """Makes `spec` and `root` absolute, so that they are valid in any folder and without AHM_DATA."""
    roots = search_roots(root)
    first = roots[0].absolute() if roots else None
    if spec is None or spec.split(":")[0] in COLLECTIONS:
        return spec, first
    return str(find_path(spec, [*roots, Path()]).absolute()), first


def stem_of(spec: str | None) -> str:
    """The name of the data in the names of runs."""
    name = "mni152" if spec is None else Path(spec.replace(":", "-")).absolute().name
    return name.removesuffix(".npz")


def exists(path: Path) -> bool:
    """Whether there is a file or folder.

    Raises:
        InputError: if there can be none, because the name is too long.
    """
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise InputError(
            f"{path} cannot be looked up ({error.strerror}): check the name of the data."
        ) from error


def find_path(spec: str, folders: list[Path]) -> Path:
    """The file or folder with that name, in the first of the folders that has it.

    `NAME` also finds `NAME.npz` or `NAME_128.npz`, if there is only one such file.

    Raises:
        InputError: if there is none, or more than one.
    """
    given = expanded(spec)
    tried = [given] if given.is_absolute() else [folder / given for folder in folders]
    for path in tried:
        if exists(path):
            return path
        if path.suffix != ".npz" and path.parent.is_dir():
            pattern = re.compile(re.escape(path.name) + r"(_\d+)?\.npz")
            found = sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))
            if len(found) > 1:
                names = ", ".join(file.name for file in found)
                raise InputError(f"{spec!r} could be any of {names} in {path.parent}: give the full name.")
            if found:
                return found[0]
    places = ", ".join(str(path) for path in tried)
    raise InputError(
        f"there is no data at {places}: give an .npz file or a folder, or set `data_root` or AHM_DATA to the "
        "folder that holds it."
    )

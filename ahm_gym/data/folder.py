"""A folder of images, with labels of the same names in a folder beside it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ahm_gym.data.files import PICTURES, READERS, Pixels, fingerprint_of, read_pixels, stem_of, suffix_of
from ahm_gym.data.sample import Record, patient_of
from ahm_gym.data.splits import SplitTable
from ahm_gym.errors import InputError

IMAGE_FOLDERS = ("images", "imagesTr")
NNUNET_FOLDERS = ("imagesTr", "imagesTs")
LABEL_FOLDERS = ("labels", "labelsTr", "masks", "label", "mask")
LABEL_NAME = re.compile(r"(.+)_(?:mask|segmentation|label|seg)(?:_\d+)?", re.IGNORECASE)
"""The name of an image and an ending; with a number where it has several."""
SPLIT_TABLE = "split.csv"


class FolderSource:
    """Images directly in a folder, or in its `images` or `imagesTr`.

    Labels lie under the same names (the suffix may differ) in a folder `labels`, `labelsTr`, `masks`,
    `label` or `mask`, inside the folder of the images or beside it, or among the images; the name of a label may
    end in `_mask`, `_segmentation`, `_label` or `_seg`, among the images it must. nnU-Net's `case_0000` goes with
    the label `case`. The splits come from `split.csv` in the folder of the images or the one around it,
    else from the patients: DICOM's PatientID, or the part of the case's name before its last underscore.
    Volumes become slices along the last axis; constant slices are left out.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self.folder = find_images(folder)
        self.images, among = set_labels_apart(by_stem(self.folder))
        self.labels = among or match_labels(self.images, self.folder)
        places = (self.folder / SPLIT_TABLE, self.folder.resolve().parent / SPLIT_TABLE)
        self.table = next((SplitTable(path) for path in places if path.is_file()), None)
        named = any(case != stem for stem, (case, _) in self.labels.items())
        self.channels_named = named or self.folder.name in NNUNET_FOLDERS
        pictures_only = all(suffix_of(path) in PICTURES for path in self.images.values())
        self.num_images = len(self.images) if pictures_only else None

    def fingerprint(self) -> list:
        paths = [*self.images.values(), *(label for _, label in self.labels.values())]
        if self.table is not None:
            paths.append(self.table.path)
        return [fingerprint_of(path) for path in paths]

    def records(self) -> Iterator[Record]:
        if others := unreadable_kinds(self.folder):
            listed = ", ".join(f"{number} {suffix or 'without suffix'}" for suffix, number in others.items())
            print(f"note: {self.name}: files of other kinds are left out: {listed}.", file=sys.stderr)
        for stem, path in self.images.items():
            pixels = read_pixels(path)
            case, label_path = self.labels.get(stem, (stem, None))
            label = None if label_path is None else read_label(label_path, path, pixels)
            patient = pixels.patient or patient_of(without_channel(stem) if self.channels_named else stem)
            record = Record(
                pixels.array,
                label,
                stem,
                patient,
                origin=str(path),
                label_origin=str(label_path),
                split=None if self.table is None else self.table.find(path, stem, patient),
                spacing=pixels.spacing,
            )
            if pixels.is_volume:
                yield from slices(dataclasses.replace(record, volume=case))
            else:
                yield record


def read_label(path: Path, image_path: Path, image: Pixels) -> np.ndarray:
    """The label in `path` of an image.

    Raises:
        InputError: where it cannot be read, or says of itself that it lies in another way than the image.
    """
    label = read_pixels(path, is_label=True)
    if label.orientation and image.orientation and label.orientation != image.orientation:
        lies, expected = "".join(label.orientation), "".join(image.orientation)
        raise InputError(
            f"{path} has the orientation {lies} and its image {image_path} {expected}: expected the same; copy the "
            "image's affine to the label if their voxels fit already, else resample it with nearest neighbours."
        )
    return label.array


def without_channel(stem: str) -> str:
    """The name of a case where nnU-Net has appended the number of a channel, `_0000`."""
    return re.sub(r"_\d{4}$", "", stem)


def slices(volume: Record) -> Iterator[Record]:
    """One record for each slice along the third axis; constant slices are left out.

    Raises:
        InputError: where the label is not as large as the volume.
    """
    image, label = volume.image, volume.label
    if label is not None and label.shape[:3] != image.shape[:3]:
        raise InputError(
            f"{volume.label_origin} has the shape {label.shape} and its image {volume.origin} {image.shape}: "
            "expected the same size; resample the label with nearest neighbours."
        )
    for index in range(image.shape[2]):
        picture = image[:, :, index]
        if picture.min() != picture.max():  # NaN differs from itself, and is refused later
            yield dataclasses.replace(
                volume,
                image=picture,
                label=None if label is None else label[:, :, index],
                id=f"{volume.id}_s{index:03d}",
                origin=f"{volume.origin} (slice {index})",
                label_origin=f"{volume.label_origin} (slice {index})",
            )


def find_images(folder: Path) -> Path:
    """The folder that holds the images: the given one, its `images` or its `imagesTr`.

    Raises:
        InputError: where there are none, or more than one holds some.
    """
    candidates = [place for place in (folder, *inner_folders(folder, IMAGE_FOLDERS)) if by_stem(place)]
    if len(candidates) > 1:
        raise InputError(
            f"{candidates[0]} holds images, and so does {candidates[1]}: expected them in one place; give the "
            "folder that is meant, or remove the others."
        )
    if candidates:
        return candidates[0]
    nested = sorted(path.name for path in folder.iterdir() if path.is_dir() and by_stem(path))
    hint = f"give one of its folders: {', '.join(nested[:5])}" if nested else "give another folder"
    raise InputError(
        f"{folder} holds no images, nor does its folder {' or '.join(IMAGE_FOLDERS)}: expected files ending "
        f"in {', '.join(READERS)}; {hint}."
    )


def inner_folders(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders in a folder that are called so, in upper or lower case, in the order of the names."""
    order = [name.lower() for name in names]
    # The names first: to ask what each of 100,000 images is would take a network drive its time.
    inside = (path for path in folder.iterdir() if path.name.lower() in order and path.is_dir())
    return sorted(inside, key=lambda path: (order.index(path.name.lower()), path))


def by_stem(folder: Path) -> dict[str, Path]:
    """The readable files of a folder by their name without suffix, numbers in numeric order.

    Raises:
        InputError: where two files differ only in their suffix.
    """
    files: dict[str, Path] = {}
    readable = (path for path in folder.iterdir() if suffix_of(path) in READERS and path.name[0] != ".")
    for path in sorted(readable, key=lambda path: _natural(path.name)):
        other = files.setdefault(stem_of(path), path)
        if other is not path:
            raise InputError(f"{other} and {path.name} have the same name: keep one of them.")
    return files


def unreadable_kinds(folder: Path) -> dict[str, int]:
    """How many files of every kind that is not read are in a folder of images, by suffix."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    counts = Counter(suffix_of(path) for path in files if path.name != SPLIT_TABLE)
    return {suffix: counts[suffix] for suffix in sorted(counts) if suffix not in READERS}


def set_labels_apart(files: dict[str, Path]) -> tuple[dict[str, Path], dict[str, tuple[str, Path]]]:
    """The images of a folder, and the labels among them (`a_mask` is that of `a`) as `match_labels` gives them.

    Raises:
        InputError: where an image has several labels, or a label has no image.
    """
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for stem, path in files.items():
        match = LABEL_NAME.fullmatch(stem)
        if match is None:
            images[stem] = path
        elif match[1] not in files:
            raise InputError(
                f"{path} is a label without image, as its name says: expected {match[1]} beside it; rename it or "
                "remove it."
            )
        else:
            add_label(labels, match[1], path)
    return images, {case: (case, path) for case, path in labels.items()}


def match_labels(images: dict[str, Path], folder: Path) -> dict[str, tuple[str, Path]]:
    """The case and the label file of every labelled image, by the image's stem.

    A folder of labels beside a folder that is not called `images` belongs to it only where some name
    matches.

    Raises:
        InputError: where an image has several labels, or a label has no image.
    """
    ours = folder.resolve().name.lower() in map(str.lower, IMAGE_FOLDERS)
    inside, beside = (inner_folders(base, LABEL_FOLDERS) for base in (folder, folder.resolve().parent))
    cases = {*images, *(without_channel(stem) for stem in images if stem.endswith("_0000"))}
    for place in (*inside, *beside):
        labels: dict[str, Path] = {}
        for stem, path in by_stem(place).items():
            add_label(labels, labelled_case(stem, cases), path)
        matched = {}
        for stem in images:
            case = next((name for name in (stem, without_channel(stem)) if name in labels), None)
            if case is not None:
                matched[stem] = (case, labels[case])
        alone = set(labels) - {case for case, _ in matched.values()}
        if alone and (matched or ours or place in inside):
            first = labels[min(alone)]
            raise InputError(
                f"{first} is a label without image: expected {min(alone)} with one of the suffixes "
                f"{', '.join(READERS)} in {folder}; add the image or remove the label."
            )
        if matched:
            return matched
    return {}


def add_label(labels: dict[str, Path], case: str, path: Path) -> None:
    """Puts a label to those by case; raises InputError where the case has one already."""
    first = labels.setdefault(case, path)
    if first is not path:
        raise InputError(f"{first} and {path.name} are labels of one image: merge them into one file.")


def labelled_case(stem: str, cases: set[str]) -> str:
    """Which case a file in a folder of labels is of, by its name."""
    match = None if stem in cases else LABEL_NAME.fullmatch(stem)
    return match[1] if match and match[1] in cases else stem


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts `img_2` before `img_10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

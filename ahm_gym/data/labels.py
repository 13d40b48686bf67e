"""Matches labels to images by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ahm_gym.data.listing import IMAGE_FOLDERS, LABEL_FOLDERS, by_stem, inner_folders, is_named
from ahm_gym.errors import InputError

ENDINGS = "masks?|segmentation|labels?|seg|gt|groundtruth|annotation|anno"
LABEL_NAME = re.compile(rf"(.+)[-_ .](?:{ENDINGS})((?:[-_ ]\d+)?)", re.IGNORECASE)
"""The name of an image, an ending, and optionally a number: that of the image, or of one of its labels."""
NUMBERED_LABEL = re.compile(rf"(?:{ENDINGS})[-_ ]?\d+", re.IGNORECASE)
"""A name that only numbers a label and does not name an image."""
NUMBER = re.compile(r"[-_ ]\d+$")

Labels = dict[str, tuple[str, Path]]
"""The case and the label file of every labelled image, by the image's stem."""


class Cases:
    """The cases that labels of these images may be named after."""

    def __init__(self, images: Mapping[str, Path]) -> None:
        self.images: Mapping[str, Path] = images
        channels = {without_channel(stem) for stem in images if stem.endswith("_0000")}
        self.with_channels: set[str] = channels - images.keys()
        """Cases of nnU-Net: the names of their images end in the number of a channel."""
        self.numbered: set[str] = {NUMBER.sub("", stem) for stem in images if NUMBER.search(stem)}

    def of_label(self, stem: str) -> str | None:
        """The case of a label: `a` for `a` and `a_mask`; for `a_mask_1` it is `a_1`, or `a` if `a` has no number."""
        if stem in self.images or stem in self.with_channels:
            return stem
        match = LABEL_NAME.fullmatch(stem)
        if match is None:
            return None
        name, number = match.groups()
        if name + number in self.images or (not number and name in self.with_channels):
            return name + number
        return name if name in self.images and name not in self.numbered else None

    def by_image(self, labels: dict[str, Path]) -> Labels:
        """Converts labels by case to labels by image."""
        found = {}
        for stem in self.images:
            case = without_channel(stem)
            if stem in labels:
                found[stem] = (stem, labels[stem])
            elif case in labels and case in self.with_channels:
                found[stem] = (case, labels[case])
        return found


def find_labels(files: dict[str, Path], folder: Path) -> tuple[dict[str, Path], Labels]:
    """Separates the files of a folder into images and labels, and finds labels in other folders.

    Raises:
        InputError: if an image has several labels, a label has no image, or labels are in two places.
    """
    images, among = split_among(files)
    places = [among, *labels_apart(images, folder)]
    found = [labels for labels in places if labels]
    if len(found) > 1:
        (_, first), (_, second) = (next(iter(labels.values())) for labels in found[:2])
        raise InputError(
            f"{first} is a label by its name or folder, and so is {second}: expected all labels in one place; rename "
            "or move those that should not be used."
        )
    return images, found[0] if found else {}


def split_among(files: dict[str, Path]) -> tuple[dict[str, Path], Labels]:
    """Separates the files of a folder into images and labels: `a_mask` is the label of `a`.

    If all files are named like numbered labels, such as `liver_seg_001`, they are images.

    Raises:
        InputError: if an image has several labels, or a label has no image.
    """
    named_as_labels = {stem: path for stem, path in files.items() if looks_like_label(stem)}
    images = {stem: path for stem, path in files.items() if stem not in named_as_labels}
    if not images and all(NUMBER.search(stem) for stem in files):
        return files, {}
    cases = Cases(images)
    labels: dict[str, Path] = {}
    for stem, path in named_as_labels.items():
        case = cases.of_label(stem)
        if case is None:
            raise InputError(
                f"{path} is named like a label but has no image: expected {expected_image(stem)} "
                "in the same folder; rename the label or remove it."
            )
        add_label(labels, case, path)
    return images, cases.by_image(labels)


def labels_apart(images: dict[str, Path], folder: Path) -> list[Labels]:
    """The labels in separate folders, inside the folder of the images or next to it.

    A folder of labels next to the folder of the images belongs to it if a name matches, or if that folder is named
    `images` or `imagesTr`.

    Raises:
        InputError: if an image has several labels, or a label has no image.
    """
    ours = is_named(folder, IMAGE_FOLDERS)
    inside = inner_folders(folder, LABEL_FOLDERS)
    cases = Cases(images)
    found = []
    for place in (*inside, *label_folders_next_to(folder)):
        labels: dict[str, Path] = {}
        for stem, path in by_stem(place).items():
            add_label(labels, cases.of_label(stem) or stem, path)
        matched = cases.by_image(labels)
        alone = set(labels) - {case for case, _ in matched.values()}
        if alone and (matched or ours or place in inside):
            first = min(alone)
            raise InputError(
                f"{labels[first]} is a label without an image: expected {expected_image(first)} in {folder}; add "
                "the image or remove the label."
            )
        found.append(matched)
    return found


def label_folders_next_to(folder: Path) -> list[Path]:
    """The folders of labels next to a folder; none if there is no permission to list its parent."""
    itself = folder.resolve()
    try:
        return [path for path in inner_folders(itself.parent, LABEL_FOLDERS) if path != itself]
    except PermissionError:
        return []


def looks_like_label(stem: str) -> bool:
    """Whether the name of a file is that of a label."""
    return bool(LABEL_NAME.fullmatch(stem) or NUMBERED_LABEL.fullmatch(stem))


def expected_image(stem: str) -> str:
    """The image that a label with this name should have, for a message."""
    if NUMBERED_LABEL.fullmatch(stem):
        return f"an image named {stem}, or a label with the name of its image,"
    match = LABEL_NAME.fullmatch(stem)
    return f"an image named {match[1] + match[2] if match else stem}"


def without_channel(stem: str) -> str:
    """Removes the number of a channel, `_0000`, that nnU-Net appends to the name of a case."""
    return re.sub(r"_\d{4}$", "", stem)


def add_label(labels: dict[str, Path], case: str, path: Path) -> None:
    """Adds a label to the labels by case; raises InputError if the case already has one."""
    first = labels.setdefault(case, path)
    if first is not path:
        raise InputError(f"{first} and {path.name} are labels of one image: merge them into one file.")

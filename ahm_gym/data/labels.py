"""Which files are the labels of which images, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ahm_gym.data.listing import IMAGE_FOLDERS, LABEL_FOLDERS, by_stem, inner_folders, is_called
from ahm_gym.errors import InputError

ENDINGS = "masks?|segmentation|labels?|seg|gt|groundtruth|annotation|anno"
LABEL_NAME = re.compile(rf"(.+)[-_ ](?:{ENDINGS})((?:[-_ ]\d+)?)", re.IGNORECASE)
"""The name of an image and an ending; with a number where it has several, or is numbered itself."""
NUMBERED_LABEL = re.compile(rf"(?:{ENDINGS})[-_ ]?\d+", re.IGNORECASE)
"""A name that only says which label it is."""
NUMBER = re.compile(r"[-_ ]\d+$")

Labels = dict[str, tuple[str, Path]]
"""The case and the label file of every labelled image, by the image's stem."""


class Cases:
    """What the labels of these images may be named after."""

    def __init__(self, images: Mapping[str, Path]) -> None:
        self.images = images
        channels = {without_channel(stem) for stem in images if stem.endswith("_0000")}
        self.with_channels = channels - images.keys()
        """Cases of nnU-Net, whose images end in the number of a channel."""
        self.numbered = {NUMBER.sub("", stem) for stem in images if NUMBER.search(stem)}

    def of_label(self, stem: str) -> str | None:
        """The case of a label: `a` of `a` and `a_mask`; `a_1` of `a_mask_1`, or `a` where it has no number."""
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
        """The labels by image from the labels by case."""
        found = {}
        for stem in self.images:
            case = without_channel(stem)
            if stem in labels:
                found[stem] = (stem, labels[stem])
            elif case in labels and case in self.with_channels:
                found[stem] = (case, labels[case])
        return found


def find_labels(files: dict[str, Path], folder: Path) -> tuple[dict[str, Path], Labels]:
    """The images among the files of a folder, and their labels.

    Raises:
        InputError: where an image has several labels, a label has no image, or labels lie in two places.
    """
    images, among = split_among(files)
    places = [among, *labels_apart(images, folder)]
    found = [labels for labels in places if labels]
    if len(found) > 1:
        (_, first), (_, second) = (next(iter(labels.values())) for labels in found[:2])
        raise InputError(
            f"{first} is a label, as its name or folder says, and so is {second}: expected labels in one place; rename "
            "or move those that are not meant."
        )
    return images, found[0] if found else {}


def split_among(files: dict[str, Path]) -> tuple[dict[str, Path], Labels]:
    """The images of a folder, and the labels among them: `a_mask` is that of `a`.

    Where all names are those of numbered labels, such as `liver_seg_001`, they are images.

    Raises:
        InputError: where an image has several labels, or a label has no image.
    """
    named_as_labels = {stem: path for stem, path in files.items() if is_like_label(stem)}
    images = {stem: path for stem, path in files.items() if stem not in named_as_labels}
    if not images and all(NUMBER.search(stem) for stem in files):
        return files, {}
    cases = Cases(images)
    labels: dict[str, Path] = {}
    for stem, path in named_as_labels.items():
        case = cases.of_label(stem)
        if case is None:
            raise InputError(
                f"{path} is a label without image, as its name says: expected {expected_for(stem)} "
                "beside it; rename it or remove it."
            )
        add_label(labels, case, path)
    return images, cases.by_image(labels)


def labels_apart(images: dict[str, Path], folder: Path) -> list[Labels]:
    """The labels in folders of their own, inside the folder of the images or beside it.

    One beside a folder that is not called `images` belongs to it only where some name matches.

    Raises:
        InputError: where an image has several labels, or a label has no image.
    """
    ours = is_called(folder, IMAGE_FOLDERS)
    inside = inner_folders(folder, LABEL_FOLDERS)
    cases = Cases(images)
    found = []
    for place in (*inside, *folders_beside(folder)):
        labels: dict[str, Path] = {}
        for stem, path in by_stem(place).items():
            add_label(labels, cases.of_label(stem) or stem, path)
        matched = cases.by_image(labels)
        alone = set(labels) - {case for case, _ in matched.values()}
        if alone and (matched or ours or place in inside):
            first = min(alone)
            raise InputError(
                f"{labels[first]} is a label without image: expected {expected_for(first)} in {folder}; add "
                "the image or remove the label."
            )
        found.append(matched)
    return found


def folders_beside(folder: Path) -> list[Path]:
    """The folders of labels beside a folder; none where the one around it may not be listed."""
    itself = folder.resolve()
    try:
        return [path for path in inner_folders(itself.parent, LABEL_FOLDERS) if path != itself]
    except PermissionError:
        return []


def is_like_label(stem: str) -> bool:
    return bool(LABEL_NAME.fullmatch(stem) or NUMBERED_LABEL.fullmatch(stem))


def expected_for(stem: str) -> str:
    """What should be there where there is a label of that name."""
    if NUMBERED_LABEL.fullmatch(stem):
        return f"an image called {stem}, or a label that bears the name of its image,"
    match = LABEL_NAME.fullmatch(stem)
    return f"an image called {match[1] + match[2] if match else stem}"


def without_channel(stem: str) -> str:
    """The name of a case where nnU-Net has appended the number of a channel, `_0000`."""
    return re.sub(r"_\d{4}$", "", stem)


def add_label(labels: dict[str, Path], case: str, path: Path) -> None:
    """Puts a label to those by case; raises InputError where the case has one already."""
    first = labels.setdefault(case, path)
    if first is not path:
        raise InputError(f"{first} and {path.name} are labels of one image: merge them into one file.")

"""Which files are the labels of which images, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ahm_gym.data.listing import IMAGE_FOLDERS, by_stem, inner_folders
from ahm_gym.errors import InputError

LABEL_FOLDERS = ("labels", "labelsTr", "masks", "label", "mask")
LABEL_NAME = re.compile(r"(.+)_(?:mask|segmentation|label|seg|gt)((?:_\d+)?)", re.IGNORECASE)
"""The name of an image and an ending; with a number where it has several, or is numbered itself."""


def find_labels(files: dict[str, Path], folder: Path) -> tuple[dict[str, Path], dict[str, tuple[str, Path]]]:
    """The images among the files of a folder, and the case and the label file of the labelled ones, by stem.

    Raises:
        InputError: where an image has several labels, a label has no image, or labels lie in two places.
    """
    images, among = set_labels_apart(files)
    apart = match_labels(images, folder)
    if among and apart:
        (_, first), (_, second) = next(iter(among.values())), next(iter(apart.values()))
        raise InputError(
            f"{first} is a label, as its name says, and so is {second}: expected labels in one place; rename "
            "the first if it is an image, or move it to the others."
        )
    return images, among or apart


def set_labels_apart(files: dict[str, Path]) -> tuple[dict[str, Path], dict[str, tuple[str, Path]]]:
    """The images of a folder, and the labels among them: `a_mask` is that of `a`.

    Raises:
        InputError: where an image has several labels, or a label has no image.
    """
    cases = cases_of(files)
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for stem, path in files.items():
        match = LABEL_NAME.fullmatch(stem)
        case = labelled_case(stem, cases)
        if case is not None:
            add_label(labels, case, path)
        elif match and not match[2]:
            raise InputError(
                f"{path} is a label without image, as its name says: expected {match[1]} beside it; rename it or "
                "remove it."
            )
        else:
            images[stem] = path
    return images, by_image(images, labels)


def match_labels(images: dict[str, Path], folder: Path) -> dict[str, tuple[str, Path]]:
    """The labels in a folder of their own, inside the folder of the images or beside it.

    One beside a folder that is not called `images` belongs to it only where some name matches.

    Raises:
        InputError: where an image has several labels, or a label has no image.
    """
    ours = folder.resolve().name.lower() in map(str.lower, IMAGE_FOLDERS)
    inside = inner_folders(folder, LABEL_FOLDERS)
    cases = cases_of(images)
    for place in (*inside, *folders_beside(folder)):
        labels: dict[str, Path] = {}
        for stem, path in by_stem(place).items():
            case = stem if stem in cases else labelled_case(stem, cases)
            add_label(labels, case or stem, path)
        matched = by_image(images, labels)
        alone = set(labels) - {case for case, _ in matched.values()}
        if alone and (matched or ours or place in inside):
            first = labels[min(alone)]
            raise InputError(
                f"{first} is a label without image: expected an image called {min(alone)} in {folder}; add the "
                "image or remove the label."
            )
        if matched:
            return matched
    return {}


def folders_beside(folder: Path) -> list[Path]:
    """The folders of labels beside a folder; none where the one around it may not be listed."""
    try:
        return inner_folders(folder.resolve().parent, LABEL_FOLDERS)
    except PermissionError:
        return []


def cases_of(stems: Iterable[str]) -> set[str]:
    """What a label may be named after: images, and the cases of nnU-Net's first channels."""
    return {*stems, *(without_channel(stem) for stem in stems if stem.endswith("_0000"))}


def without_channel(stem: str) -> str:
    """The name of a case where nnU-Net has appended the number of a channel, `_0000`."""
    return re.sub(r"_\d{4}$", "", stem)


def labelled_case(stem: str, cases: set[str]) -> str | None:
    """The case that a name with the ending of a label is made of: `a` of `a_mask`, `a_1` or `a` of `a_mask_1`."""
    match = LABEL_NAME.fullmatch(stem)
    names = (match[1] + match[2], match[1]) if match else ()
    return next((name for name in names if name in cases), None)


def by_image(images: dict[str, Path], labels: dict[str, Path]) -> dict[str, tuple[str, Path]]:
    """The case and the label of every labelled image, by the image's stem, from the labels by case."""
    found = {}
    for stem in images:
        case = next((name for name in (stem, without_channel(stem)) if name in labels), None)
        if case is not None:
            found[stem] = (case, labels[case])
    return found


def add_label(labels: dict[str, Path], case: str, path: Path) -> None:
    """Puts a label to those by case; raises InputError where the case has one already."""
    first = labels.setdefault(case, path)
    if first is not path:
        raise InputError(f"{first} and {path.name} are labels of one image: merge them into one file.")

"""Finds labels among files of one name and folder, such as `001.bmp` and `001.png`: the kind of few values."""

from __future__ import annotations

from collections.abc import Sequence

from ahm_gym.data.few_values import FEW_VALUES, count_values
from ahm_gym.data.listing import Found
from ahm_gym.data.wording import counted, verb
from ahm_gym.errors import InputError


def labels_of_same_names(images: Sequence[Found]) -> tuple[list[Found], list[str]]:
    """The labels among files that were taken for images, and what is doubtful about them.

    Raises:
        InputError: if two files have one name, and it cannot be told which is the image.
    """
    names: dict[tuple[tuple[str, ...], str], list[Found]] = {}
    for image in images:
        names.setdefault((image.parts, image.stem), []).append(image)
    pairs = [files for files in names.values() if len(files) > 1]
    if not pairs:
        return [], []
    suffixes = {tuple(sorted(file.suffix for file in files)) for files in pairs}
    suffix = _suffix_of_labels(pairs[:3]) if len(suffixes) == 1 and len(pairs[0]) == 2 else None
    if suffix is None:
        first, second = pairs[0][:2]
        raise InputError(
            f"{first.path} and {second.path.name} have the same name, and it cannot be told which is the image: "
            "expected one image of a name; move files of one kind to another folder, which is named labels if they "
            "are labels."
        )
    labels = [file for files in pairs for file in files if file.suffix == suffix]
    number = len(labels)
    have = verb(number, "has the name of another image", "have the names of other images")
    use = verb(
        number,
        "is used as its label; if it is none, move it",
        "are used as their labels; if they are none, move them",
    )
    return labels, [f"{counted(number, suffix + ' file')} {have} and few values, and {use} to another folder"]


def _suffix_of_labels(pairs: Sequence[Sequence[Found]]) -> str | None:
    """The suffix whose files have few values in all of these pairs; None if the other has few too."""
    found = set()
    for files in pairs:
        counts = {file.suffix: count_values(file.path) for file in files}
        low, high = sorted(counts, key=lambda suffix: counts[suffix])
        clear = (
            0 < counts[low] <= FEW_VALUES and counts[high] > 2 * FEW_VALUES and low not in (".jpg", ".jpeg")
        )
        found.add(low if clear else None)
    return found.pop() if len(found) == 1 else None

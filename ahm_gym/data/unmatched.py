"""Says of labels that belong to no image whether they are left out or a fault, and why."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ahm_gym.data.formats import PICTURES
from ahm_gym.data.label_names import expected_image, read_name
from ahm_gym.data.listing import Found, role_of_folder
from ahm_gym.data.modalities import Draft
from ahm_gym.data.wording import counted, verb


@dataclass
class Unmatched:
    """What is said of labels without an image."""

    left_out: dict[Path, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def judge_unmatched(
    labels: Sequence[Found], drafts: Sequence[Draft], *, beside: set[Path], incomplete: set[str]
) -> Unmatched:
    """Sorts labels without an image.

    Args:
        labels: the labels.
        drafts: all scans with their labels.
        beside: labels in folders beside the root, which may belong to other folders of images.
        incomplete: the names of cases that are left out.
    """
    found = Unmatched()
    used = {label_folder(label) for draft in drafts for label in draft.labels}
    folders = Counter(draft.parts for draft in drafts)
    cases = {draft.parts for draft in drafts if draft.labels and folders[draft.parts] == 1}
    pictures: list[Found] = []
    inside: list[Found] = []
    among: list[Found] = []
    for label in labels:
        folder = label_folder(label)
        if label.path in beside and folder not in used:
            continue
        if incomplete & {label.stem, *read_name(label).bases, *label.parts[-1:]}:
            found.left_out[label.path] = "its case is left out"
        elif any(label.parts[:end] in cases for end in range(1, len(label.parts))):
            found.left_out[label.path] = "the image of its case has a label by another name"
        elif label.in_labels and used and folder not in used:
            found.left_out[label.path] = "no label in its folder belongs to an image"
        elif label.suffix in PICTURES and all(draft.series for draft in drafts):
            pictures.append(label)
        else:
            (inside if label.in_labels else among).append(label)
    if pictures:
        found.faults.append(_of_slices(pictures, drafts))
    if inside:
        first, more = inside[0], _more(inside)
        found.faults.append(
            f"{first.path} is a label without an image: expected {expected_image(first.stem)} in "
            f"{drafts[0].files[0].path.parent}; add the image or remove the label{more}."
        )
    if among:
        first, more = among[0], _more(among)
        found.faults.append(
            f"{first.path} is named like a label but has no image: expected {expected_image(first.stem)} in the same "
            f"folder; rename the label or remove it{more}."
        )
    return found


def label_folder(label: Found) -> tuple[str, ...]:
    """The folder of labels in which a label lies, or its own folder."""
    last = max((at for at, part in enumerate(label.parts) if role_of_folder(part) == "label"), default=None)
    return label.parts if last is None else label.parts[: last + 1]


def _of_slices(labels: Sequence[Found], drafts: Sequence[Draft]) -> str:
    """A sentence on pictures that label the slices of DICOM series."""
    first = labels[0]
    own = [label for label in labels if label.parts == first.parts]
    shared = {
        draft.parts: sum(itertools.takewhile(bool, map(operator.eq, draft.parts, first.parts)))
        for draft in drafts
    }
    nearest = max(drafts, key=lambda draft: shared[draft.parts])
    others = len({label.parts for label in labels}) - 1
    more = f" (and {counted(others, 'more such folder')})" if others else ""
    return (
        f"{first.path.parent} holds {counted(len(own), 'picture')}, which seem to label the "
        f"slices of the DICOM series in {nearest.files[0].path.parent}{more}: expected the label of a series in one "
        "file; convert the series to NIfTI, for example with dcm2niix, and stack its pictures in the order of the "
        "slices as a NIfTI with the same affine."
    )


def _more(labels: Sequence[Found]) -> str:
    others = len(labels) - 1
    return f" ({others} more {verb(others, 'is', 'are')} like it)" if others else ""

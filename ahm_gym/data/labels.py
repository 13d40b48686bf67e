"""Matches labels to scans by the names of their files and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ahm_gym.data.formats.headers import shape_of
from ahm_gym.data.label_choice import Choice, choose_labels
from ahm_gym.data.label_names import (
    BARE_LABEL,
    CLASS_ENDING,
    ITK_LABEL,
    NUMBER,
    NUMBERED_IMAGE,
    NUMBERED_LABEL,
    Place,
    place_of,
    read_name,
    reduced,
)
from ahm_gym.data.listing import Found
from ahm_gym.data.modalities import Draft


class Names:
    """The scans by the names that their labels may have."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self.exact: dict[str, list[Draft]] = {}
        self.reduced: dict[str, list[Draft]] = {}
        self.numbers: dict[tuple[Place, str], list[Draft]] = {}
        self.places: dict[Place, list[Draft]] = {}
        self.numbered: set[tuple[Place, str]] = set()
        """Names that occur with a number behind them, so that a numbered label may belong to a number."""
        self.files: dict[Path, Draft] = {file.path: draft for draft in drafts for file in draft.files}
        for draft in drafts:
            place = place_of(draft.parts)
            self.places.setdefault(place, []).append(draft)
            for name in draft.names:
                self.exact.setdefault(name, []).append(draft)
            self.reduced.setdefault(reduced(draft.stem), []).append(draft)
            if match := NUMBERED_IMAGE.fullmatch(draft.stem):
                self.numbers.setdefault((place, match[1]), []).append(draft)
            if NUMBER.search(draft.stem):
                self.numbered.add((place, NUMBER.sub("", draft.stem)))

    def find(self, label: Found) -> Draft | None:
        """The scan of a label: `a` for `a` and `a_mask`; for `a_mask_1` it is `a_1`, or `a` if `a` has no number."""
        if label.image is not None:
            return self.files.get(label.image)
        place, name = place_of(label.parts), read_name(label)
        bases = [label.stem, *name.bases]
        if label.in_labels and "." in label.stem:
            bases.append(label.stem.rsplit(".", 1)[0])
        if name.number and (place, name.bases[-1]) in self.numbered:
            bases.remove(name.bases[-1])
        for names in (self.exact, self.reduced):
            for base in bases:
                key = base if names is self.exact else reduced(base)
                if (found := _nearest(names.get(key, []), label)) is not None:
                    return found
        for base in bases:  # img1_liver and img1_liver_mask are labels of img1
            if match := CLASS_ENDING.fullmatch(base):
                if (found := _nearest(self.exact.get(match[1], []), label)) is not None:
                    return found
        if match := NUMBERED_LABEL.fullmatch(label.stem):
            return _only(self.numbers.get((place, match[1]), []))
        here = self.places.get(place, [])
        if match := ITK_LABEL.fullmatch(label.stem):
            return _only(here) or _only(
                [draft for draft in here if match[3] and draft.stem.endswith(match[3])]
            )
        return _only(here) if BARE_LABEL.fullmatch(label.stem) else None


def _only(drafts: Sequence[Draft]) -> Draft | None:
    return drafts[0] if len(drafts) == 1 else None


def _nearest(drafts: Sequence[Draft], label: Found) -> Draft | None:
    """The one scan in the place of the label, or else in a place that contains it, or else anywhere.

    Of several scans there it is the only one with the size of the label.
    """
    split, folders = place_of(label.parts)
    same = [d for d in drafts if None in (split, own := place_of(d.parts)[0]) or own == split]
    here = [draft for draft in same if place_of(draft.parts)[1] == folders]
    if here:
        return _only(here) or _of_size(here, label)

    def related(others: tuple[str, ...]) -> bool:
        short, long = sorted((others, folders), key=len)
        return long[: len(short)] == short or long[len(long) - len(short) :] == short

    near = [draft for draft in same if related(place_of(draft.parts)[1])]
    return _only(near) or _of_size(near, label) or _only(same)


def _of_size(drafts: Sequence[Draft], label: Found) -> Draft | None:
    """The only one of several scans with the size of a label."""
    shape = shape_of(label.path) if len(drafts) > 1 else None
    return _only([d for d in drafts if shape_of(d.files[0].path) == shape]) if shape else None


def match_labels(
    drafts: Sequence[Draft], labels: Sequence[Found], classes: Mapping[int, str]
) -> tuple[Choice, list[Found]]:
    """Gives every scan its labels, and chooses among several; also returns the labels that belong to no scan.

    Args:
        drafts: the scans.
        labels: the labels.
        classes: the names of the classes, if a `dataset.json` gives them.
    """
    names = Names(drafts)
    alone = []
    for label in labels:
        draft = names.find(label)
        (alone if draft is None else draft.labels).append(label)
    for in_labels in (False, True):
        alone = _without_those_of_only_scans(names, alone, in_labels=in_labels)
    return choose_labels(drafts, classes), alone


def _without_those_of_only_scans(names: Names, labels: Sequence[Found], *, in_labels: bool) -> list[Found]:
    """Labels with names of their own belong to the only scan of a folder for each case, if it has no other label."""
    labelled = {place_of(d.parts) for drafts in names.places.values() for d in drafts if d.labels}
    alone = []
    for label in labels:
        place = place_of(label.parts)
        draft = _only(names.places.get(place, []))
        if draft is not None and place[1] and place not in labelled and label.in_labels == in_labels:
            draft.labels.append(label)
        else:
            alone.append(label)
    return alone

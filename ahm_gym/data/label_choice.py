"""Chooses among several labels of one image: of several observers one, of several classes all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ahm_gym.data.label_names import ENDINGS, WORD, Place, place_of, read_name
from ahm_gym.data.listing import LABEL_WORDS, Found, natural, role_of_folder, words_of
from ahm_gym.data.modalities import Draft
from ahm_gym.data.observers import in_numbered_folders, show_the_same
from ahm_gym.data.scaling import MAX_CLASSES
from ahm_gym.data.wording import counted, verb

CONSENSUS = re.compile(r"(?<![a-z])(maj|majority|consensus|staple|vote|voted)(?![a-z])", re.IGNORECASE)
"""A word in the name of the one of several labels on which their observers agree."""
BRAIN = re.compile(r"desc-brain|(?:brain|head|skull)[-_ ]?mask", re.IGNORECASE)
"""A mask that shows where the brain is, not what is to be found in it."""
SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])|(?<![A-Za-z])(left|right)(?=[A-Z])", re.IGNORECASE)
EDGES = " _-.()[]#0123456789"
"""Letters that are no part of the name of a class at its start and end."""


@dataclass
class Choice:
    """What was chosen, and what was said of it."""

    classes: dict[int, str] = field(default_factory=dict)
    """The names of the classes that have a file each."""
    left_out: dict[Path, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    merged: int = 0
    """The number of scans whose labels are in several files."""

    def keep(self, draft: Draft, kept: Sequence[Found], reason: str) -> None:
        """Keeps some of the labels of a draft."""
        paths = {label.path for label in kept}
        self.left_out |= {label.path: reason for label in draft.labels if label.path not in paths}
        draft.labels = [label for label in draft.labels if label.path in paths]


def choose_labels(drafts: Sequence[Draft], classes: Mapping[int, str]) -> Choice:
    """Leaves every scan one label, the parts of one, or a file for each class.

    Args:
        drafts: the scans with all labels that belong to them.
        classes: the names of the classes, if a `dataset.json` gives them.
    """
    found = Choice()
    unwanted: dict[tuple[str, str], str] = {}
    for draft in drafts:
        _choose_drawn(draft, found, unwanted)
    for draft in drafts:
        if reason := next((unwanted[kind] for kind in map(_kind, draft.labels) if kind in unwanted), ""):
            found.keep(draft, [label for label in draft.labels if _kind(label) not in unwanted], reason)
    several = [draft for draft in drafts if len(draft.labels) > 1]
    names = {id(draft): _names(draft) for draft in several}
    classes_found = _recurring(several, names)
    if len({_without_side(name) for name in classes_found}) > 1:
        _number_classes(drafts, classes_found, classes, found)
    else:
        _choose_folder(several, found)
        unclear = [labels for draft in several if (labels := _merge(draft, names[id(draft)], found))]
        if unclear:
            found.faults.append(_of_one_image(unclear))
    found.faults += _two_places(drafts)
    return found


def _recurring(several: Sequence[Draft], names: Mapping[int, list[str]]) -> set[str]:
    """The names that tell the labels of scans apart and recur, if most of the scans have no other names.

    Those of a single scan count if they are words without numbers.
    """
    counts = Counter(name for draft in several for name in set(names[id(draft)]))
    found = {name for name, number in counts.items() if number > 1 and WORD.search(name)}
    if len(several) == 1:
        found = {name for name in counts if WORD.search(name) and not re.search(r"\d", name)}
        return found if len(found) == len(counts) else set()
    named = [draft for draft in several if found.issuperset(names[id(draft)])]
    return {name for draft in named for name in names[id(draft)]} if 2 * len(named) > len(several) else set()


def _choose_drawn(draft: Draft, found: Choice, unwanted: dict[tuple[str, str], str]) -> None:
    """Keeps the labels with the best names: by name, of the consensus or the first observer, and not of the brain."""
    if len(draft.labels) < 2:
        return
    named = [label for label in draft.labels if label.image is None]
    if named:
        found.keep(draft, named, "it seems to be a label by its pixels, and its image has one by its name")
    agreed = [label for label in draft.labels if CONSENSUS.search(label.stem)]
    if len(agreed) == 1:
        word = (CONSENSUS.search(agreed[0].stem) or [""])[0]
        found.keep(draft, agreed, f"the label named {word}, on which several agree, is used")
    observers = {label.path: read_name(label).observer for label in draft.labels}
    drawn = sorted({number for number in observers.values() if number})
    if drawn:
        first = [label for label in draft.labels if observers[label.path] == drawn[0]]
        reason = "it may be a field of view, because observers have drawn other labels"
        others = [label for label in draft.labels if not observers[label.path]]
        unwanted |= {_kind(label): reason for label in others}
        found.left_out |= {label.path: reason for label in others}
        draft.labels = [label for label in draft.labels if label not in others]
        found.keep(draft, first, "the label of another observer is used")
    brains = [label for label in draft.labels if BRAIN.search(label.stem)]
    if brains and len(brains) < len(draft.labels):
        others = [label for label in draft.labels if label not in brains]
        found.keep(draft, others, "it is a mask of the brain, and there is another label")


def _choose_folder(several: Sequence[Draft], found: Choice) -> None:
    """Keeps the labels of one folder where folders that differ by a number hold drawings of several observers."""
    drafts = [draft for draft in several if in_numbered_folders(draft.labels)]
    if not drafts or not show_the_same([draft.labels for draft in drafts]):
        return
    for draft in drafts:
        found.keep(draft, draft.labels[:1], "the label of another observer is used")
    first = drafts[0].labels[0]
    found.doubts.append(
        f"{counted(len(drafts), 'image')} {verb(len(drafts), 'has', 'have')} labels in folders that differ by a number "
        f"and show much the same, as drawings of several observers do (likely), so that the first is used, such as "
        f"{first.path}; list others in a dataset.json, which ahm-gym look writes"
    )


def _kind(label: Found) -> tuple[str, str]:
    """What the labels of one kind share: the name of their folder, and the ending of their names."""
    folder = next((part for part in reversed(label.parts) if role_of_folder(part) == "label"), "")
    return folder.lower(), read_name(label).kind


def _names(draft: Draft) -> list[str]:
    """What tells the labels of a scan apart: in their names, or else in those of their folders; without numbers."""
    stems = [_bare(label.stem, draft) for label in draft.labels]
    if len({label.stem for label in draft.labels}) == len(stems) and all(map(WORD.search, stems)):
        return stems
    width = min(len(label.parts) for label in draft.labels)
    differ = [at for at in range(width) if len({label.parts[at] for label in draft.labels}) > 1]
    folders = [_bare(" ".join(label.parts[at] for at in differ), draft) for label in draft.labels]
    return folders if all(map(WORD.search, folders)) else stems


def _class_of(label: Found, draft: Draft, names: set[str]) -> str:
    """The class after which a label or one of its folders is named; empty if there is none."""
    places = (label.stem, *reversed(label.parts))
    return next((name for name in (_bare(place, draft) for place in places) if name in names), "")


def _bare(text: str, draft: Draft) -> str:
    """A name without that of its scan and without words for labels."""
    for name in sorted(draft.names, key=len, reverse=True):
        if text.startswith(name):
            text = text[len(name) :]
            break
    text = re.sub(rf"(?:^|[-_ .])(?:{ENDINGS})(?=$|[-_ .])", "", text, flags=re.IGNORECASE)
    text = re.sub(rf"(?<=[a-z])(?:{'|'.join(LABEL_WORDS)})$", "", text, flags=re.IGNORECASE)
    return text.strip(EDGES)


def _without_side(name: str) -> str:
    return SIDE.sub("", name).strip(EDGES)


def _number_classes(
    drafts: Sequence[Draft], names: set[str], given: Mapping[int, str], found: Choice
) -> None:
    """Gives every file of labels the class that it is named after; they are a fault if there are too many."""
    ordered = sorted(names, key=natural)
    labelled = [draft for draft in drafts if draft.labels]
    for draft in labelled:
        kept = [label for label in draft.labels if _class_of(label, draft, names)]
        found.keep(draft, kept, "it is named after none of the classes that have a file each")
    example = next(label.path for draft in labelled for label in draft.labels)
    if len(ordered) >= MAX_CLASSES:
        found.faults.append(
            f"the labels are in files named after {len(ordered)} classes, such as {example}: expected at most "
            f"{MAX_CLASSES - 1}; name those to use in `classes` of a dataset.json, with {{class}} in `labels`."
        )
        for draft in labelled:
            draft.labels = []
        return
    known = {name: index for index, name in given.items() if index > 0}
    numbers = known if known.keys() >= names else {name: at + 1 for at, name in enumerate(ordered)}
    found.classes = {index: name for name, index in numbers.items()}
    for draft in labelled:
        draft.classes = [numbers[_class_of(label, draft, names)] for label in draft.labels]
    listed = ", ".join(f"{numbers[name]} {name}" for name in ordered[:6])
    found.doubts.append(
        f"every image has several files of labels with the same names, such as {example.name}, so that each name is a "
        f"class (likely): {listed}{', ...' if len(ordered) > 6 else ''}; if they are none, keep one file for each image"
    )


def _merge(draft: Draft, names: Sequence[str], found: Choice) -> list[Found]:
    """Keeps the parts of one label; otherwise keeps the first and returns all, which are a fault."""
    if len(draft.labels) < 2:
        return []
    own = {label.path: read_name(label) for label in draft.labels}
    forms = {(label.path.parent, label.suffix, _without_number(label)) for label in draft.labels}
    unnamed = all(not own[label.path].bases and label.stem not in draft.names for label in draft.labels)
    sides = all(map(SIDE.search, names)) and len({_without_side(name) for name in names}) == 1
    if sides or len(forms) == 1 or (unnamed and len({form[:2] for form in forms}) == 1):
        found.merged += 1
        return []
    labels = list(draft.labels)
    draft.labels = labels[:1]
    return labels


def _of_one_image(unclear: Sequence[Sequence[Found]]) -> str:
    """A sentence on images with several labels, of which it is not known which to use."""
    first, second = unclear[0][:2]
    others = len(unclear) - 1
    more = f" ({counted(others, 'more image')} {verb(others, 'has', 'have')} several)" if others else ""
    return (
        f"{first.path} and {_told_apart(second, first)} are labels of one image{more}: expected one, or parts of one "
        "that differ by a number such as _mask and _mask_1; move the one that should not be used."
    )


def _told_apart(label: Found, other: Found) -> str:
    """The name of a file, with its folder if another file has the same."""
    return str(label.path) if label.path.name == other.path.name else label.path.name


def _without_number(label: Found) -> tuple[str, str]:
    name = read_name(label)
    return (name.bases[-1] if name.bases else label.stem), name.kind


def _two_places(drafts: Sequence[Draft]) -> Iterator[str]:
    """A sentence if scans of one place have labels both among them and in a folder, or in folders of two names."""
    seen: dict[Place, dict[str, Found]] = {}
    for draft in drafts:
        for label in draft.labels if not draft.classes else []:
            kinds = seen.setdefault(place_of(draft.parts), {})
            kinds.setdefault(_name_of_label_folder(label), label)
    for kinds in seen.values():
        if len(kinds) > 1:
            first, second = sorted(kinds.items(), key=lambda item: item[0] != "")[:2]
            yield (
                f"{first[1].path} is a label by its name or folder, and so is {second[1].path}: expected all labels in "
                "one place; rename or move those that should not be used."
            )


def _name_of_label_folder(label: Found) -> str:
    """The words of the folder of a label that say so; empty if it lies among the images."""
    folder = next(
        (part for part in reversed(label.parts) if role_of_folder(part) in ("label", "derivatives")), ""
    )
    words = (word for word in words_of(folder) if role_of_folder(word) in ("label", "derivatives"))
    return " ".join(words) if label.in_labels or role_of_folder(folder) == "derivatives" else ""

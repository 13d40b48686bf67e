"""Matches labels to scans by the names of their files and folders."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ahm_gym.data.listing import SPLIT_WORDS, Found, role_of_folder, split_of, words_of
from ahm_gym.data.modalities import Draft, without_modality

ENDINGS = "masks?|segmentations?|labels?|labelmaps?|d?seg|gt|ground[-_ ]?truth|annotations?|anno"
WEAK_ENDINGS = "lesions?|manual|roi|truth"
LABEL_NAME = re.compile(rf"(.+)[-_ .]({ENDINGS})((?:[-_ ]?\d+)?)", re.IGNORECASE)
"""The name of an image, an ending, and optionally a number: that of the image, or of one of its labels."""
WEAK_LABEL = re.compile(rf"(.+)[-_ ]({WEAK_ENDINGS})()", re.IGNORECASE)
"""An ending that names a label only beside an image without it."""
NUMBERED_LABEL = re.compile(rf"(?:{ENDINGS})[-_ ]?(\d+)", re.IGNORECASE)
"""A name that only numbers a label and does not name an image."""
BARE_LABEL = re.compile(ENDINGS, re.IGNORECASE)
OBSERVER = re.compile(
    r"(.+?)[-_ ]?(?:(1st|2nd|3rd)[-_ ]?(?:HO|observer|manual|reader|rater)"
    r"|(?:manual|observer|reader|rater|expert|annotator)[-_ ]?(\d))",
    re.IGNORECASE,
)
OBSERVER_FOLDER = re.compile(
    r"(\d)(?:st|nd|rd)[-_ ]?(?:manual|observer|reader|rater)|manual[-_ ]?(\d)", re.IGNORECASE
)
WORD = re.compile(r"[A-Za-z]{3}")
"""What the name of a class has, and the number of a part has not."""
NUMBER = re.compile(r"[-_ ]\d+$")
NUMBERED_IMAGE = re.compile(r"[A-Za-z]+[-_ ]?(\d+)")
ENTITY = re.compile(r"_(?:desc|label|space|res)-[^_]+")
"""What BIDS says of a derived file beyond the scan that it belongs to."""
DERIVED_NAME = re.compile(r"(.+)[-_ ](?:superpixels?|probseg|overlay|preview|heatmap)", re.IGNORECASE)
"""A name that says that the file was made from an image."""
WHOLE_SERIES = re.compile(r"(.+)[-_](?:4d|cine)", re.IGNORECASE)
IMAGE_ENDING = re.compile(
    r"[-_ ](?:images?|img|orig|original|raw|input|volume|scan|training|test)$", re.IGNORECASE
)

Place = tuple[str | None, tuple[str, ...]]
"""A split and the folders above a file, without those that only say what it holds."""


@dataclass(frozen=True)
class LabelName:
    """What the name of a label says."""

    bases: tuple[str, ...] = ()
    """Names that its image may have, the best first."""
    kind: str = ""
    number: str = ""
    observer: int = 0
    """The number of the observer who drew it; 0 if none is named."""


def read_name(label: Found) -> LabelName:
    """What the names of a label and its folders say."""
    stem = label.stem
    folder = next((int(m[1] or m[2]) for part in label.parts if (m := OBSERVER_FOLDER.fullmatch(part))), 0)
    if match := OBSERVER.fullmatch(stem):
        return LabelName((match[1],), "observer", observer=int((match[2] or match[3])[0]))
    match = LABEL_NAME.fullmatch(stem) or WEAK_LABEL.fullmatch(stem)
    if match is None:
        return LabelName(observer=folder)
    base, kind, number = match.groups()
    bases = (base + number, base) if number else (base,)
    return LabelName(bases, kind.lower(), number, observer=folder)


def looks_like_label(stem: str) -> bool:
    """Whether the name of a file is that of a label."""
    return any(form.fullmatch(stem) for form in (LABEL_NAME, NUMBERED_LABEL, BARE_LABEL))


def expected_image(stem: str) -> str:
    """The image that a label with this name should have, for a message."""
    if NUMBERED_LABEL.fullmatch(stem):
        return f"an image named {stem}, or a label with the name of its image,"
    match = LABEL_NAME.fullmatch(stem)
    return f"an image named {match[1] + match[3] if match else stem}"


@functools.cache
def place_of(parts: tuple[str, ...]) -> Place:
    """The split and the folders of a file, without folders that only name a split or say what they hold."""

    def says_something(part: str) -> bool:
        only_split = all(word in SPLIT_WORDS or word.isdecimal() for word in words_of(part))
        return role_of_folder(part) is None and not (only_split and split_of((part,)))

    return split_of(parts), tuple(part for part in parts if says_something(part))


def in_label_folder(file: Found) -> bool:
    """Whether the nearest folder that says what it holds says labels."""
    roles = (role_of_folder(part) for part in reversed(file.parts))
    return next((role for role in roles if role in ("label", "image")), None) == "label"


@dataclass
class Matches:
    """The labels that belong to no scan, and those that are not used."""

    alone: list[Found] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    merged: int = 0
    """The number of scans whose labels are in several files."""


class Names:
    """The scans by the names that their labels may have."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self.exact: dict[str, list[Draft]] = {}
        self.reduced: dict[str, list[Draft]] = {}
        self.numbers: dict[tuple[Place, str], list[Draft]] = {}
        self.places: dict[Place, list[Draft]] = {}
        self.numbered: set[tuple[Place, str]] = set()
        """Names that occur with a number behind them, so that a numbered label may belong to a number."""
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
        place, name = place_of(label.parts), read_name(label)
        bases = [label.stem, *name.bases]
        if label.in_labels and "." in label.stem:
            bases.append(label.stem.rsplit(".", 1)[0])
        if name.number and (place, name.bases[-1]) in self.numbered:
            bases.remove(name.bases[-1])
        for names in (self.exact, self.reduced):
            for base in bases:
                key = base if names is self.exact else reduced(base)
                if (found := _nearest(names.get(key, []), place)) is not None:
                    return found
        if match := NUMBERED_LABEL.fullmatch(label.stem):
            return _only(self.numbers.get((place, match[1]), []))
        return _only(self.places.get(place, [])) if BARE_LABEL.fullmatch(label.stem) else None


def reduced(name: str) -> str:
    """A name in lower case, without BIDS entities of derived files, a modality or a word for image at its end."""
    bare = IMAGE_ENDING.sub("", without_modality(ENTITY.sub("", name)) or name)
    return bare.lower()


def _only(drafts: Sequence[Draft]) -> Draft | None:
    return drafts[0] if len(drafts) == 1 else None


def _nearest(drafts: Sequence[Draft], place: Place) -> Draft | None:
    """The one scan in the place of the label, or else in a place that contains it, or else anywhere."""
    split, folders = place
    same = [d for d in drafts if None in (split, own := place_of(d.parts)[0]) or own == split]
    here = [draft for draft in same if place_of(draft.parts)[1] == folders]
    if here:
        return _only(here)

    def related(others: tuple[str, ...]) -> bool:
        short, long = sorted((others, folders), key=len)
        return long[: len(short)] == short or long[len(long) - len(short) :] == short

    near = [draft for draft in same if related(place_of(draft.parts)[1])]
    return _only(near) or _only(same)


def match_labels(drafts: Sequence[Draft], labels: Sequence[Found]) -> Matches:
    """Gives every scan its labels, and chooses among several."""
    names, found = Names(drafts), Matches()
    for label in labels:
        draft = names.find(label)
        (found.alone if draft is None else draft.labels).append(label)
    for in_labels in (False, True):
        _give_to_only_scan(names, found, in_labels=in_labels)
    stems = Counter(stem for draft in drafts for stem in {label.stem for label in draft.labels})
    recurring = {stem for stem, number in stems.items() if number > 1 and WORD.search(stem)}
    for draft in drafts:
        if len(draft.labels) > 1:
            _choose(draft, found, recurring)
    found.faults += _two_places(drafts)
    return found


def _give_to_only_scan(names: Names, found: Matches, *, in_labels: bool) -> None:
    """Labels with names of their own belong to the only scan of a folder for each case, if it has no other label."""
    labelled = {place_of(d.parts) for drafts in names.places.values() for d in drafts if d.labels}
    alone = []
    for label in found.alone:
        place = place_of(label.parts)
        draft = _only(names.places.get(place, []))
        if draft is not None and place[1] and place not in labelled and label.in_labels == in_labels:
            draft.labels.append(label)
        else:
            alone.append(label)
    found.alone = alone


def _choose(draft: Draft, found: Matches, recurring: set[str]) -> None:
    """Keeps the first observer, or the parts of one label; otherwise it is a fault."""
    names = {label.path: read_name(label) for label in draft.labels}
    observers = sorted({name.observer for name in names.values() if name.observer})
    if observers:
        for label in draft.labels:
            if names[label.path].observer != observers[0]:
                found.left_out[label.path] = "the label of another observer is used"
        draft.labels = [label for label in draft.labels if names[label.path].observer == observers[0]]
    brains = [label for label in draft.labels if "desc-brain" in label.stem]
    if brains and len(brains) < len(draft.labels):
        found.left_out |= {
            label.path: "it is a mask of the brain, and there is another label" for label in brains
        }
        draft.labels = [label for label in draft.labels if label not in brains]
    if len(draft.labels) < 2:
        return
    first, second = draft.labels[:2]
    forms = {(label.path.parent, label.suffix, _without_number(label)) for label in draft.labels}
    unnamed = all(not names[label.path].bases and label.stem not in draft.names for label in draft.labels)
    if unnamed and len(forms) > 1 and all(label.stem in recurring for label in draft.labels):
        found.faults.append(
            f"{first.path} and {second.path.name} are labels of one image, and files of these names belong to other "
            "images too, so that each may be a class of its own: merge them into one file with a value for each class."
        )
        draft.labels = []
        return
    if len(forms) == 1 or (unnamed and len({form[:2] for form in forms}) == 1):
        found.merged += 1
        return
    found.faults.append(
        f"{first.path} and {second.path.name} are labels of one image: expected one, or parts of one that differ by a "
        "number such as _mask and _mask_1; move the one that should not be used."
    )
    draft.labels = [first]


def _without_number(label: Found) -> tuple[str, str]:
    name = read_name(label)
    return (name.bases[-1] if name.bases else label.stem), name.kind


def _two_places(drafts: Sequence[Draft]) -> Iterator[str]:
    """A sentence if scans of one place have labels both among them and in a folder, or in folders of two names."""
    seen: dict[Place, dict[str, Found]] = {}
    for draft in drafts:
        for label in draft.labels:
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

"""Finds the patient in the names of images, from all names of a data set together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ahm_gym.data.name_words import (
    BY_LETTER,
    BY_WORD,
    CHUNK,
    CLASSES,
    COUNTED,
    DATE,
    PAIRS,
    SEPARATORS,
    SIDE,
    STRICT,
    TCGA,
    WITHIN,
)

Certainty = Literal["sure", "likely", "guess"]
ENOUGH: int = 10
"""With fewer patients, the shares of the splits and the scores are rough."""
FEW_WORDS: int = 4
"""Up to so many different words at one place of the names are views or phases rather than patients."""
MIN_GROUPS: int = 3
"""The number of splits: with fewer patients, a split would stay empty."""


@dataclass(frozen=True)
class Grouping:
    """The groups of images that show one patient each, as far as names tell."""

    groups: list[str]
    """The group of each name."""
    rule: str
    certainty: Certainty
    alone: bool = False
    """Every name is a group of its own, because no part of the names recurs."""
    series: bool = False
    """Every name is a group of its own, and they have running numbers."""
    class_words: bool = False
    """Every name is a group of its own, and what recurs in the names are classes."""


@dataclass(frozen=True)
class Part:
    """A part of a name that may identify its patient: where it stands, and its value to compare."""

    start: int
    end: int
    value: str


def group_names(names: Sequence[str]) -> Grouping:
    """Groups different names by patient: by words such as `patient`, or by the parts that recur.

    Where several parts could be the patient, the coarser one is taken that gives at least `ENOUGH` groups, because
    groups that are too large never put a patient into two splits.
    """
    if all(map(TCGA.search, names)):
        return _by_match(names, TCGA, "by the TCGA barcode in their names")
    for pattern in (BY_WORD, BY_LETTER):
        found = sum(pattern.search(name) is not None for name in names)
        if (
            found
            and found >= 0.9 * len(names)
            and not any(re.search("control", name, re.I) for name in names)
        ):
            grouping = _by_match(names, pattern, "by the word for a patient in their names")
            if len(set(grouping.groups)) >= (MIN_GROUPS if pattern is BY_LETTER else 1):
                return grouping
    return _by_columns(names)


def normalised(text: str) -> str:
    """A text to compare: in lower case, and numbers without leading zeros."""
    if DATE.fullmatch(text):
        return text
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", text.lower())


def counter(words: str) -> re.Pattern[str]:
    """A pattern of a counter in one piece, such as `slice003`."""
    return re.compile(rf"(?:{words})\d+[a-z]?", re.IGNORECASE)


def _by_match(names: Sequence[str], pattern: re.Pattern[str], rule: str) -> Grouping:
    """Groups by the first match, cut where a counter such as `slice3` begins; names without one are alone."""
    labels: dict[str, str] = {}
    groups = []
    for name in names:
        match = pattern.search(name)
        text = name
        if match is not None:
            text = re.sub(rf"(?<=\d)(?:{COUNTED})\d+.*", "", match[0], flags=re.IGNORECASE).rstrip("([")
            text = re.sub(r"(?<=\d)(?:l|r|od|os|ed|es)$", "", text, flags=re.IGNORECASE)
        key = re.sub(rf"{SEPARATORS}+", "", normalised(text)) if match else name
        groups.append(labels.setdefault(key, text))
    return Grouping(groups, rule, "likely")


def _by_columns(names: Sequence[str]) -> Grouping:
    """Groups by what stands at the same place of the names."""
    rows = _split_unique(names, [parts_of(name) for name in names])
    width = max(map(len, rows))
    columns = [[row[at].value if at < len(row) else "" for row in rows] for at in range(width)]
    chosen, certain, class_words = _choose(columns, len(names))
    if chosen:
        groups = _labels(names, rows, columns, chosen)
        if len(set(groups)) < len(names):
            return Grouping(groups, "by their names", "likely" if certain else "guess")
    return Grouping(
        list(names),
        "every image on its own",
        "guess",
        alone=True,
        series=_is_series(names),
        class_words=class_words,
    )


def parts_of(name: str) -> list[Part]:
    """The parts of a name, without phases, views, sides and counters; all of them if nothing else is there."""
    chunks = [(match.start(), match.end()) for match in CHUNK.finditer(name)]
    kept: list[Part] = []
    counted = False
    for start, end in (piece for chunk in chunks for piece in _pairs(name, *chunk)):
        text = name[start:end]
        words = COUNTED if kept else STRICT
        is_number = counted and text.isdigit()
        counted = re.fullmatch(words, text, re.IGNORECASE) is not None
        if not (counted or is_number or text.lower() in WITHIN or counter(words).fullmatch(text)):
            side = SIDE.fullmatch(text)
            first, last = (0, end - start) if side is None else side.span(side.lastindex or 0)
            kept.append(Part(start + first, start + last, normalised(text[first:last])))
    return kept or [
        Part(start, end, normalised(name[start:end])) for start, end in chunks or [(0, len(name))]
    ]


def _pairs(name: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    """Takes `case01slice03` apart if one of its words counts; keeps codes such as `A0S9V9`."""
    text = name[start:end]
    pieces = [
        (match.start() + start, match.end() + start) for match in re.finditer(r"[A-Za-z]+\d+|\d+", text)
    ]
    words = re.findall(r"[a-z]+", text.lower())
    joined = PAIRS.fullmatch(text) or re.fullmatch(r"\d+(?:[a-z]+\d+)+", text, re.IGNORECASE)
    if joined and all(len(word) > 1 for word in words) and any(re.fullmatch(COUNTED, w) for w in words):
        return pieces
    return [(start, end)]


def _split_unique(names: Sequence[str], rows: list[list[Part]]) -> list[list[Part]]:
    """Takes the first part apart at the borders of letters and digits if it is another one in every name."""
    firsts = [row[0] for row in rows]
    if len({part.value for part in firsts}) < len(rows) or len(rows) < 2:
        return rows
    pieces = [_pieces(name, part) for name, part in zip(names, firsts, strict=True)]
    kinds = {tuple(piece.value.isdigit() for piece in split) for split in pieces}
    columns = [[piece.value for piece in column] for column in zip(*pieces, strict=False)]
    words = [column for column in columns if not column[0].isdigit()]
    few = all(len(set(column)) <= max(FEW_WORDS, len(rows) // 4) for column in words)
    if len(kinds) > 1 or not few or not words:
        return rows
    return [[*split, *row[1:]] for row, split in zip(rows, pieces, strict=True)]


def _pieces(name: str, part: Part) -> list[Part]:
    """The runs of letters and of digits in a part."""
    found = re.finditer(r"\d+|[^\d]+", name[part.start : part.end])
    return [
        Part(match.start() + part.start, match.end() + part.start, normalised(match[0])) for match in found
    ]


def _choose(columns: list[list[str]], num: int) -> tuple[list[int], bool, bool]:
    """The columns that identify the patient (none: all names are alone), if that is likely, and if classes recur."""
    values = [set(column) - {""} for column in columns]
    varying = [at for at, column in enumerate(columns) if len(set(column)) > 1]
    dates = [at for at in varying if all(map(DATE.fullmatch, values[at]))]
    varying = [at for at in varying if at not in dates] or dates
    classes = [at for at in varying if 2 * len(values[at] & CLASSES) >= len(values[at])]
    words = [
        at
        for at in varying
        if len(values[at]) <= FEW_WORDS and all(map(str.isalpha, values[at])) and at not in classes
    ]
    rest = [at for at in varying if at not in classes and at not in words]
    rest = _without_running_number(columns, rest, num)
    if classes and len(rest) <= 1 and _count(columns, [*classes, *rest]) == num:
        return [], False, True
    if words and not _identify_alone(columns, rest, values, words):
        rest = sorted([*words, *rest])
    kept = list(rest)
    while len(kept) > 1 and _is_index(columns, kept) and _count(columns, kept[:-1]) >= MIN_GROUPS:
        kept.pop()
    left_out = [at for at in varying if at in words and at not in rest]
    certain = not left_out and all(len(set(columns[at])) <= _count(columns, kept) for at in rest[len(kept) :])
    prefixes = [kept[: end + 1] for end in range(len(kept))]
    counts = [_count(columns, prefix) for prefix in prefixes]
    usable = [(n, p) for n, p in zip(counts, prefixes, strict=True) if MIN_GROUPS <= n < num]
    enough = [(n, p) for n, p in usable if n >= ENOUGH]
    if enough:
        return enough[0][1], certain, bool(classes)
    if usable:
        return usable[-1][1], certain and not words, bool(classes)
    single = [[at] for at in rest if ENOUGH <= _count(columns, [at]) < num]
    return (single[0] if single else []), False, bool(classes)


def _without_running_number(columns: list[list[str]], rest: list[int], num: int) -> list[int]:
    """Leaves out numbers that no two names share, if another part recurs like a patient."""
    others = [at for at in rest if len(set(columns[at])) < num]
    if any(ENOUGH <= len(set(columns[at])) <= num / 2 for at in others):
        return others
    return rest


def _identify_alone(
    columns: list[list[str]], rest: list[int], values: list[set[str]], words: list[int]
) -> bool:
    """Whether the other parts are enough, so that the few words are views or phases."""
    if not rest:
        return False
    coded = any(not value.isdigit() and not value.isalpha() for at in rest for value in values[at])
    few = max(len(values[at]) for at in words) < MIN_GROUPS
    return _count(columns, rest) >= (MIN_GROUPS if coded or few else ENOUGH)


def _is_index(columns: list[list[str]], kept: list[int]) -> bool:
    """Whether values of the last part recur after different values of the parts before it, as numbers of slices do."""
    return _count(columns, kept) >= 2 * len(set(columns[kept[-1]]))


def _count(columns: list[list[str]], chosen: Sequence[int]) -> int:
    """The number of groups that these columns give."""
    return len(set(zip(*(columns[at] for at in chosen), strict=True))) if chosen else 1


def _labels(
    names: Sequence[str], rows: list[list[Part]], columns: list[list[str]], chosen: list[int]
) -> list[str]:
    """The name of each group: the parts of the first of its names that identify it, and what all names begin with."""
    start = _common_start(names)
    labels: dict[tuple[str, ...], str] = {}
    groups = []
    for at, (name, row) in enumerate(zip(names, rows, strict=True)):
        key = tuple(columns[column][at] for column in chosen)
        if key not in labels:
            parts = [row[column] for column in chosen if column < len(row)]
            first = min((part.start for part in parts), default=0)
            begin = 0 if first <= len(start) else first
            last = max((part.end for part in parts), default=len(name))
            labels[key] = name[begin:last].strip(" _-.") or name
        groups.append(labels[key])
    # Two groups of one name become one: coarser is safe.
    return groups


def _common_start(names: Sequence[str]) -> str:
    """What all names begin with."""
    first, last = min(names), max(names)
    length = next(
        (at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[:length]


def _is_series(names: Sequence[str]) -> bool:
    """Whether most names are those of numbered images, with at least half of the numbers in use."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)(\d{1,9})(\D*)", name)
        if match is not None:
            numbers.setdefault(match[1] + match[3], set()).add(int(match[2]))
    running = (
        len(own) for own in numbers.values() if 2 * len(own) >= max(own) - min(own) + 1 and len(own) > 2
    )
    return 2 * sum(running) > len(names)

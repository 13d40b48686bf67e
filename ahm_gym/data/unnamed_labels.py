"""Finds labels that no name tells from images: files of few values, each beside an image of the same case and size.

Files of a family differ from those of another by a folder (`x/1`, `y/1`), a word (`scan1`, `drawn1`), an ending
(`anna`, `anna_bw`), or their whole name (`anna/lgemri`, `anna/laendo`). The pixels of a few files of each are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ahm_gym.data.few_values import FEW_VALUES, a_few, count_label_values, count_values, is_flat
from ahm_gym.data.formats.headers import shape_of
from ahm_gym.data.listing import Found
from ahm_gym.data.modalities import MODALITIES
from ahm_gym.data.wording import counted, verb

MAX_FORMS = 8
"""A case with more files than that is none."""
MAX_NAMES = 64
"""The same where the files of a case have names that recur in others, such as those of organs."""
MAX_FAMILIES = 24
"""The largest families are looked at, or three times as many if their names recur."""
COVERED = 0.9
"""Share of the files of a family that must have an image for the family to be labels."""
SETTLE = "list images and labels in a dataset.json, which ahm-gym look writes, to settle it"

Rule = Callable[[Sequence[Found]], Iterator[tuple[Hashable, Hashable, Found]]]
"""Yields for files a case, and the form by which its files differ."""


@dataclass
class Unnamed:
    """The labels that were found, each with its image, and what is said of them."""

    labels: list[Found] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    unsure: dict[Path, str] = field(default_factory=dict)
    """The doubt about each file that may be a label."""


def find_unnamed(images: Sequence[Found]) -> Unnamed:
    """The labels among files that were taken for images."""
    found, known = Unnamed(), {}
    for rule in (_by_folder, _by_ending, _by_word, _by_name):
        taken = {label.path for label in found.labels} | found.left_out.keys()
        families = _families(rule, [image for image in images if image.path not in taken], known)
        for family in families:
            family.judge(families, found)
    taken = {label.path for label in found.labels} | found.left_out.keys()
    found.doubts += dict.fromkeys(doubt for path, doubt in found.unsure.items() if path not in taken)
    return found


def doubt_of_all(images: Sequence[Found]) -> str | None:
    """A sentence if all images that are looked at hold few values, as labels do; None if one holds more."""
    most = 1
    for image in a_few(images):
        count = count_label_values(image.path)
        if count is None:
            return None
        most = max(most, count)
    if most == 1:
        return None
    return (
        f"the images hold at most {most} values, such as {_shown(images[0])}, as labels do; if they are labels, give "
        "the folder of their images"
    )


@dataclass(eq=False)
class _Family:
    """Files of one form by their case."""

    files: dict[Hashable, Found]
    alone: list[Found]
    """Files of the form whose case has no other file."""
    known: dict[Path, int | None]
    """Numbers of values that were counted for any family."""

    @cached_property
    def counts(self) -> list[int | None]:
        """The numbers of values of a few files, read as labels; only one if the first is no label."""
        sampled = a_few(list(self.files.values()))
        first = self._count(sampled[0])
        return [first] if first is None else [first, *map(self._count, sampled[1:])]

    def _count(self, file: Found) -> int | None:
        if file.path not in self.known:
            self.known[file.path] = count_label_values(file.path)
        return self.known[file.path]

    def judge(self, families: Sequence[_Family], found: Unnamed) -> None:
        """Adds its files to the labels if they are some, or a doubt if that is not sure."""
        if found.unsure.keys() & {file.path for file in self.files.values()}:
            return
        if self.counts[0] is None:
            self._doubt_drawn(families, found)
            return
        unclear = self.counts.count(None)
        if 2 * unclear > len(self.counts) or {*self.counts} <= {None, 1}:
            return
        first, most = next(iter(self.files.values())), max(count or 0 for count in self.counts)
        number = len(self.files)
        hold = verb(number, "holds", "hold")
        seen = f"{counted(number, 'file')} such as {_shown(first)} {hold} at most {most} values, as labels do"
        partners = [other for other in families if other.counts[0] is None and self._shared(other)]
        if not partners:
            return
        partner = max(partners, key=lambda other: (len(self._shared(other)), self._fits(other)))
        keys = self._shared(partner)
        pairs = self._pairs(partner)
        reasons = [
            ("some of them hold more", unclear > 0),
            ("many have no image beside them", len(keys) < COVERED * (len(self.files) + len(self.alone))),
            ("their images hold few values too", not all(_is_image(image) for _, image in pairs)),
            ("their images have another size", not self._fits(partner)),
        ]
        if unsure := next((reason for reason, applies in reasons if applies), ""):
            doubt = f"{seen}, but {unsure}, so that they are used as images; {SETTLE}"
            found.unsure |= {file.path: doubt for file in self.files.values()}
            return
        found.labels += [replace(self.files[key], image=partner.files[key].path) for key in keys]
        others = [self.files[key] for key in self.files if key not in set(keys)] + self.alone
        found.left_out |= {file.path: "it is like the labels beside it, and has no image" for file in others}
        found.doubts.append(
            f"{seen}, and files such as {_shown(pairs[0][1])} of the same case and size hold many, so that they are "
            f"used as the labels of these (likely); {SETTLE}"
        )

    def _doubt_drawn(self, families: Sequence[_Family], found: Unnamed) -> None:
        """Adds a doubt if its files have flat areas of many values, as maps of numbered objects have."""
        others = [other for other in families if other.counts[0] is None and self._shared(other)]
        first = next(iter(self.files.values()))
        if not others or not is_flat(first.path):
            return
        partner = others[0].files[self._shared(others[0])[0]]
        if not is_flat(partner.path):
            doubt = (
                f"{counted(len(self.files), 'file')} such as {_shown(first)} may be labels that number objects, but "
                "have many values and are used as images; if they are labels, move them to a folder named labels"
            )
            found.unsure |= {file.path: doubt for file in self.files.values()}

    def _pairs(self, other: _Family) -> list[tuple[Found, Found]]:
        """A few of its files, each with that of another family."""
        return [(self.files[key], other.files[key]) for key in a_few(self._shared(other))]

    def _fits(self, other: _Family) -> bool:
        """Whether a few of its files have the sizes of those of another family."""
        return all(_same_size(own, image) for own, image in self._pairs(other))

    def _shared(self, other: _Family) -> list[Hashable]:
        """The cases of which both have a file."""
        return [key for key in self.files if key in other.files] if other is not self else []


def _families(rule: Rule, files: Sequence[Found], known: dict[Path, int | None]) -> list[_Family]:
    """The files by form; cases of which there is only one file, or very many, tell nothing."""
    recur = rule in (_by_word, _by_name)
    most, limit = (MAX_NAMES, 3 * MAX_FAMILIES) if recur else (MAX_FORMS, MAX_FAMILIES)
    cases: dict[Hashable, dict[Hashable, Found]] = {}
    for case, form, file in rule(files):
        cases.setdefault(case, {}).setdefault(form, file)
    forms: dict[Hashable, _Family] = {}
    for case, own in cases.items():
        if len(own) <= most:
            for form, file in own.items():
                family = forms.setdefault(form, _Family({}, [], known))
                if len(own) > 1:
                    family.files[case] = file
                else:
                    family.alone.append(file)
    several = [family for family in forms.values() if family.files]
    return sorted(several, key=lambda family: -len(family.files))[:limit]


def _by_folder(files: Sequence[Found]) -> Iterator[tuple[Hashable, Hashable, Found]]:
    """Files of one name: the form is the folder in which they differ."""
    for file in files:
        yield (file.stem, file.parts), (), file
        for at, part in enumerate(file.parts):
            yield (file.stem, (*file.parts[:at], *file.parts[at + 1 :])), (at, part), file


def _by_name(files: Sequence[Found]) -> Iterator[tuple[Hashable, Hashable, Found]]:
    """Files of one folder, or in folders in it: the form is the name without numbers.

    The name recurs in other folders, unless there are only two files.
    """
    names = Counter(file.stem for file in files)
    inner = Counter((file.parts[-1:], file.stem) for file in files if file.parts)
    for file in files:
        if names[file.stem] > 1 or len(files) == 2:
            numbers, name = tuple(re.findall(r"\d+", file.stem)), re.sub(r"\d+", "#", file.stem)
            yield (file.parts, numbers), name, file
            if inner[file.parts[-1:], file.stem] > 1:
                yield (file.parts[:-1], numbers), (file.parts[-1], name), file


def _by_word(files: Sequence[Found]) -> Iterator[tuple[Hashable, Hashable, Found]]:
    """Files of one number: the form is all of the name that is no number, and all numbers that do not vary."""
    split = [_words_and_numbers(file) for file in files]
    seen: dict[tuple[str, ...], list[set[str]]] = {}
    for words, numbers in split:
        columns = seen.setdefault(words, [set() for _ in numbers])
        for column, number in zip(columns, numbers, strict=True):
            column.add(number)
    for file, (words, numbers) in zip(files, split, strict=True):
        columns = seen[words]
        vary = any(len(column) > 1 for column in columns)
        kept = [n for n, column in zip(numbers, columns, strict=True) if not vary or len(column) > 1]
        if kept:
            fixed = [n for n, column in zip(numbers, columns, strict=True) if vary and len(column) == 1]
            yield tuple(kept), (words, tuple(fixed)), file


def _words_and_numbers(file: Found) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of a path with `#` for each number or code, and these. A number counts without leading zeros."""
    words: list[str] = []
    numbers: list[str] = []

    def add(text: str) -> None:
        if any(map(str.isdigit, text)) and text.lower() not in MODALITIES:
            words.append("#")
            numbers.append(text.lstrip("0") or "0")
        else:
            words.append(text.lower())

    for part in file.parts:
        add(part)
        words.append("/")
    for chunk in re.findall(r"[^\W_]+", file.stem):
        pieces = re.fullmatch(r"([A-Za-z]+)(\d+)", chunk)
        for text in pieces.groups() if pieces and chunk.lower() not in MODALITIES else (chunk,):
            add(text)
    return tuple(words), tuple(numbers)


def _by_ending(files: Sequence[Found]) -> Iterator[tuple[Hashable, Hashable, Found]]:
    """Files of one folder, of which one has the name of another with something before or behind it: the form."""
    stems: dict[tuple[str, ...], set[str]] = {}
    for file in files:
        stems.setdefault(file.parts, set()).add(file.stem)
    for file in files:
        yield (file.parts, file.stem), (), file
        for cut in re.finditer(r"[-_ .]+", file.stem):
            head, tail = file.stem[: cut.start()], file.stem[cut.end() :]
            if head in stems[file.parts]:
                yield (file.parts, head), ("behind", tail), file
            if tail in stems[file.parts]:
                yield (file.parts, tail), ("before", head), file


def _is_image(file: Found) -> bool:
    return count_values(file.path) > 2 * FEW_VALUES


def _same_size(label: Found, image: Found) -> bool:
    """Whether both have the same size, as far as their headers tell, apart from channels and time behind it."""
    one, other = shape_of(label.path), shape_of(image.path)
    if one is None or other is None:
        return True
    common = min(len(one), len(other))
    return one[:common] == other[:common]


def _shown(file: Found) -> str:
    return "/".join((*file.parts[-1:], file.path.name))

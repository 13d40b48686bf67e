"""`dataset.json`: a description of a folder of images that is followed to the letter.

A pattern is a path relative to the folder of the description, with `/` between its parts. `*` stands for any
characters within one part, `**/` for any number of folders, and a name in braces for characters that must be the same
wherever the name occurs: `{case}` tells which label belongs to which image, `{modality}` which of several images of a
case it is, `{patient}` whose it is, and `{class}` which class a label shows if each has a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ahm_gym.data.processing import Processing, Strict
from ahm_gym.data.sample import SPLITS, Split
from ahm_gym.data.wording import counted
from ahm_gym.errors import InputError
from ahm_gym.runs.schema import checked, read_json

VERSION: int = 1
"""Version of the schema, the value of the key `ahm_gym`, by which a description is told from those of nnU-Net."""
WAY_OUT: str = "correct it"
NAMES: tuple[str, ...] = ("case", "modality", "patient", "class")
"""Names that a pattern may have in braces."""


class Case(Strict):
    """The files of one case, with paths relative to the root."""

    images: tuple[str, ...] = Field(min_length=1)
    """The image, or one for each modality in the order of `modalities`."""
    labels: tuple[str, ...] | dict[str, tuple[str, ...]] = ()
    """Labels, or those of each class by its name if each class has files of its own."""
    patient: str | None = None
    split: Split | None = None


def _form_of_splits(value: Any) -> str:
    return "folds" if isinstance(value, (list, tuple)) else "named"


Named = dict[Split, tuple[str, ...]]
Splits = Annotated[
    Annotated[Named, Tag("named")] | Annotated[tuple[Named, ...], Tag("folds")],
    Discriminator(_form_of_splits),
]


class Description(Processing):
    """The content of a `dataset.json`."""

    ahm_gym: Literal[1]
    """Version of the schema."""
    name: str | None = None
    """Name of the data. None: that of its folder."""
    root: Path = Path()
    """Folder of the files, relative to that of the description."""
    images: tuple[str, ...] | str = ()
    """Patterns of the images; each has `{case}`."""
    labels: tuple[str, ...] | str = ()
    """Patterns of the labels; each has `{case}`. Several labels of one case are merged: the highest class counts. With
    `{class}`, each file shows the class of `classes` that it names, and files of other names are left out."""
    cases: dict[str, Case] = Field(default={})
    """The files of every case, in place of patterns."""
    patients: str | None = None
    """A regular expression that finds the patient in an image's path: its first group, or all that it matches.
    None: `{patient}`, or else the rules for folders without a description."""
    splits: Splits = Field(default={})
    """Patients, cases or patterns of images of each split. A list has those of each fold; without `fold` they are those
    of the first one. Empty: a split.csv, or else by patient."""


@dataclass
class Described:
    """The files of one case of a description."""

    images: dict[str, Path] = field(default_factory=dict)
    """The image of each modality; the key is empty if there are none."""
    labels: list[Path] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    """The class of each label; empty if their values are classes."""
    patient: str | None = None
    """What stands for `{patient}`."""
    split: Split | None = None


def read_description(path: Path) -> Description | None:
    """Reads a `dataset.json`; None if it is one of another program.

    Raises:
        InputError: if it is no JSON, or does not follow the schema.
    """
    content = read_json(path, WAY_OUT)
    if not isinstance(content, dict) or "ahm_gym" not in content:
        return None
    if content["ahm_gym"] != VERSION:
        raise InputError(
            f"{path} has the version {content['ahm_gym']!r} and this is version {VERSION} of the schema: write it "
            "again with `ahm-gym look`, or install the version of ahm-gym that wrote it."
        )
    description = checked(Description, content, path, WAY_OUT)
    _check(description, path)
    return description


def _check(description: Description, path: Path) -> None:
    """Raises InputError if a pattern, an expression, a class or a name cannot be used."""
    if bool(description.images) == bool(description.cases):
        raise InputError(f"{path} needs either `images` or `cases`: give one of the two.")
    for pattern in (*patterns(description.images), *patterns(description.labels)):
        if "{case}" not in pattern:
            raise InputError(
                f"the pattern {pattern!r} in {path} has no {{case}}: say where the case is named."
            )
        compile_pattern(pattern, description, str(path))
    if any("{class}" in pattern for pattern in patterns(description.images)):
        raise InputError(f"`images` in {path} has {{class}}, which only labels have: remove it.")
    if len({"{class}" in pattern for pattern in patterns(description.labels)}) > 1:
        raise InputError(
            f"only some patterns of `labels` in {path} have {{class}}: give it to all or to none."
        )
    if description.patients is not None:
        try:
            re.compile(description.patients)
        except re.error as error:
            raise InputError(
                f"`patients` in {path} is no regular expression ({error}): correct it."
            ) from error


def patterns(given: tuple[str, ...] | str) -> tuple[str, ...]:
    """One or several patterns as a tuple."""
    return (given,) if isinstance(given, str) else given


def compile_pattern(pattern: str, description: Processing, origin: str) -> re.Pattern[str]:
    """A pattern as a regular expression with a group for each name in braces.

    Raises:
        InputError: if a name in braces is unknown, or stands for modalities or classes and there are none.
    """
    known = {"modality": [*description.modalities], "class": [*description.classes.values()]}
    keys = {"modality": "modalities", "class": "classes"}
    written = ""
    for part in re.split(r"(\{[^{}]*\}|\*\*/|\*)", pattern):
        if part == "**/":
            written += "(?:.*/)?"
        elif part == "*":
            written += "[^/]*"
        elif part.startswith("{"):
            name = part[1:-1]
            if name not in NAMES:
                raise InputError(
                    f"the pattern {pattern!r} in {origin} has {part}: expected {{case}}, {{modality}}, {{patient}} or "
                    "{class}."
                )
            if name in known and not known[name]:
                raise InputError(
                    f"the pattern {pattern!r} in {origin} has {part}: list them in `{keys[name]}`."
                )
            values = "|".join(map(re.escape, known[name])) if name in known else "[^/]+"
            written += f"(?P={name})" if f"(?P<{name}>" in written else f"(?P<{name}>{values})"
        else:
            written += re.escape(part)
    return re.compile(written)


def match_files(description: Description, files: Mapping[str, Path], origin: str) -> dict[str, Described]:
    """The files of every case, by the name of the case. What matches a pattern of the labels is never an image.

    Args:
        description: what describes the files.
        files: all files, by their path relative to the folder of the description.
        origin: file of the description, for messages.

    Raises:
        InputError: if no image matches, two images stand for the same modality of a case, a modality is missing, or a
            label has no image.
    """
    if description.cases:
        return {
            name: _listed(name, case, description, files, origin) for name, case in description.cases.items()
        }
    labels = matches(patterns(description.labels), description, files, origin)
    taken = {place for place, _ in labels}
    images = [place for place in files if place not in taken]
    cases: dict[str, Described] = {}
    for place, groups in matches(patterns(description.images), description, images, origin):
        case = cases.setdefault(case_of(groups), Described(patient=groups.get("patient")))
        first = case.images.setdefault(groups.get("modality", ""), files[place])
        if first != files[place]:
            raise InputError(
                f"{first} and {files[place]} are the same image of case {case_of(groups)} by {origin}: make the "
                "pattern tell them apart, with {modality} or a longer {case}."
            )
    if not cases:
        listed = ", ".join(patterns(description.images))
        raise InputError(f"no file matches `images` in {origin} ({listed}): correct it.")
    for name, case in cases.items():
        if missing := [modality for modality in description.modalities if modality not in case.images]:
            raise InputError(
                f"case {name} has no image of the modality {missing[0]!r} in {origin}: add it, or remove the case."
            )
    for place, groups in labels:
        name, path = case_of(groups), files[place]
        if name not in cases:
            raise InputError(
                f"{path} is a label by {origin} and its case {name} has no image: correct the pattern."
            )
        if path not in cases[name].labels:
            cases[name].labels.append(path)
            if named := groups.get("class"):
                cases[name].classes.append(class_number(named, description, origin))
    return cases


def class_number(name: str, description: Processing, origin: str) -> int:
    """The number of the class of this name.

    Raises:
        InputError: if there is none.
    """
    found = next((int(index) for index, known in description.classes.items() if known == name), None)
    if found is None:
        raise InputError(f"`classes` in {origin} has no {name!r}, of which there is a label: add it.")
    return found


def _listed(
    name: str, case: Case, description: Description, files: Mapping[str, Path], origin: str
) -> Described:
    """The files of a case that a description lists.

    Raises:
        InputError: if one is missing, or there is not one image for each modality.
    """
    keys = [*description.modalities] or [""]
    if len(case.images) != len(keys):
        raise InputError(
            f"case {name} in {origin} has {counted(len(case.images), 'image')}: expected {len(keys)}; correct it."
        )
    named = case.labels if isinstance(case.labels, dict) else {"": case.labels}
    labels = [(name, place) for name, places in named.items() for place in places]
    for place in (*case.images, *(place for _, place in labels)):
        if place not in files:
            raise InputError(f"case {name} in {origin} names {place}, which is not there: correct the path.")
    images = {key: files[place] for key, place in zip(keys, case.images, strict=True)}
    classes = [class_number(name, description, origin) for name, _ in labels if name]
    return Described(images, [files[place] for _, place in labels], classes, case.patient, case.split)


def matches(
    given: Sequence[str], description: Description, files: Iterable[str], origin: str
) -> list[tuple[str, dict[str, Any]]]:
    """The files that match one of the patterns, and what stands for the names in braces."""
    expressions = [compile_pattern(pattern, description, origin) for pattern in given]
    found = ((place, expression.fullmatch(place)) for expression in expressions for place in files)
    return [(place, match.groupdict()) for place, match in found if match is not None]


def case_of(groups: Mapping[str, Any]) -> str:
    """The name of a case: of its patient too, if the pattern names one."""
    patient, case = groups.get("patient"), groups["case"]
    return case if patient is None or patient == case else f"{patient}/{case}"


def splits_of(
    description: Description, case: str, patient: str, places: list[str], origin: str
) -> tuple[Split, ...]:
    """The split that a description gives to a case, in each fold: by its patient, its name, or a pattern of its images.

    Raises:
        InputError: if it gives none, though it has splits, or two, or the case is for testing in some folds only.
    """
    folds = description.splits if isinstance(description.splits, tuple) else (description.splits,)
    chosen: list[Split] = []
    for number, splits in enumerate(folds if description.splits else ()):
        found: list[Split] = [
            split
            for split in SPLITS
            for entry in splits.get(split, ())
            if entry in (case, patient) or _matches(entry, places, description, origin)
        ]
        if len(set(found)) != 1:
            what = "none" if not found else " and ".join(dict.fromkeys(found))
            fold = f" in fold {number}" if len(folds) > 1 else ""
            raise InputError(
                f"`splits` in {origin} has {what} for case {case} of patient {patient}{fold}: give it one."
            )
        chosen.append(found[0])
    if "test" in chosen and set(chosen) != {"test"}:
        raise InputError(
            f"`splits` in {origin} has case {case} of patient {patient} in test in some folds only: put it there in "
            "all of them."
        )
    return tuple(chosen)


def _matches(entry: str, places: list[str], description: Description, origin: str) -> bool:
    return bool(set("*/{") & set(entry)) and bool(matches((entry,), description, places, origin))

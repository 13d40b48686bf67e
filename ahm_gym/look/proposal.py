"""Proposes a `dataset.json` that says the same as what was understood of a folder."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahm_gym.data.described import DescribedFolder
from ahm_gym.data.description import VERSION, Description
from ahm_gym.data.layout import Layout, Scan
from ahm_gym.data.listing import DESCRIPTION
from ahm_gym.data.processing import PLAIN, Processing
from ahm_gym.errors import InputError


def propose(layout: Layout, folder: Path, processing: Processing = PLAIN) -> dict[str, Any] | None:
    """A description of a folder by patterns, or else case by case; None for series of DICOM files.

    Args:
        layout: what was understood of the folder.
        folder: where the description will lie.
        processing: what is done to the values, which the description repeats.
    """
    if any(scan.series for scan in layout.scans):
        return None
    names = {"modalities", "classes"}  # of the layout
    kept = processing.model_dump(mode="json", exclude_defaults=True, exclude=names)
    if any(scan.split for scan in layout.scans):
        return _listed(layout, folder) | kept
    for relative in (_by_name, _by_folder):
        content = _described(layout, folder, relative)
        if content is not None and _finds_the_same(content, layout, folder):
            return content | kept
    return _listed(layout, folder) | kept


def _listed(layout: Layout, folder: Path) -> dict[str, Any]:
    """A description that lists the files of every case."""

    def shown(paths: Sequence[Path]) -> list[str]:
        return [Path(os.path.relpath(path, layout.root)).as_posix() for path in paths]

    def labels(scan: Scan) -> list[str] | dict[str, list[str]]:
        if not scan.label_classes:
            return shown(scan.labels)
        named = {layout.classes[index]: [] for index in scan.label_classes}
        for path, index in zip(shown(scan.labels), scan.label_classes, strict=True):
            named[layout.classes[index]].append(path)
        return named

    content = _start(layout, folder)
    content["cases"] = {
        scan.id: {"images": shown(scan.images), "labels": labels(scan)}
        | ({} if scan.split is None else {"split": scan.split})
        for scan in layout.scans
    }
    if layout.modalities:
        content["modalities"] = {name: name for name in layout.modalities}
    return content


def _start(layout: Layout, folder: Path) -> dict[str, Any]:
    """The keys that do not depend on how files are named."""
    content: dict[str, Any] = {
        "ahm_gym": VERSION,
        "root": Path(os.path.relpath(layout.root, folder)).as_posix(),
    }
    if names := {str(index): name for index, name in layout.classes.items() if index > 0}:
        content["classes"] = names
    return content


def _described(layout: Layout, folder: Path, relative: Any) -> dict[str, Any] | None:
    modalities = _modalities(layout)
    images = {
        relative(layout, scan, path, modality)
        for scan in layout.scans
        for path, modality in zip(scan.images, modalities or [""], strict=False)
    }
    labels = {
        _with_class(relative(layout, scan, path, ""), layout.classes.get(index, ""))
        for scan in layout.scans
        for path, index in itertools.zip_longest(scan.labels, scan.label_classes, fillvalue=0)
    }
    if None in images | labels or len(images) > MOST_PATTERNS or len(labels) > MOST_PATTERNS:
        return None
    content = _start(layout, folder) | {
        "images": sorted(filter(None, images)),
        "labels": sorted(filter(None, labels)),
    }
    if modalities:
        content["modalities"] = dict(zip(modalities, layout.modalities, strict=True))
    return content


MOST_PATTERNS: int = 8
"""A layout that needs more patterns than this is not described by patterns."""


def _by_name(layout: Layout, scan: Scan, path: Path, modality: str) -> str | None:
    """The path of a file with `{case}` for the name of its scan and `**/` for its folders."""
    return _pattern(layout, path, os.path.basename(scan.place), modality, nested=True)


def _by_folder(layout: Layout, scan: Scan, path: Path, modality: str) -> str | None:
    """The path of a file with `{case}` for the folder that holds its scan."""
    parts = scan.place.split("/")
    return _pattern(layout, path, parts[-2], modality, nested=False) if len(parts) > 1 else None


def _pattern(layout: Layout, path: Path, case: str, modality: str, *, nested: bool) -> str | None:
    try:
        place = path.relative_to(layout.root).as_posix()
    except ValueError:
        return None  # beside the root
    *folders, name = place.split("/")
    if nested:
        if case not in name:
            return None
        name = name.replace(case, "{case}", 1)
        folders = [_folder(part) for part in folders]
    elif case in folders:
        folders = ["{case}" if part == case else part for part in folders]
    else:
        return None
    if modality:
        head, found, tail = name.rpartition(modality)
        if not found:
            return None
        name = f"{head}{{modality}}{tail}"
    return "/".join((*folders, name)).replace("*/*/", "**/")


def _with_class(pattern: str | None, name: str) -> str | None:
    """A pattern with `{class}` in place of the last occurrence of the name of a class."""
    return pattern if pattern is None or not name else "{class}".join(pattern.rsplit(name, 1))


def _folder(name: str) -> str:
    """A folder of one role by its name; others, such as those of patients, by a star."""
    return name if re.fullmatch(r"[A-Za-z _-]+", name) else "*"


def _modalities(layout: Layout) -> list[str]:
    """What tells the images of one scan apart in their names; empty if a scan is one file."""
    first = next((scan for scan in layout.scans if scan.modal), None)
    if first is None:
        return []
    stems = [path.name for path in first.images]
    start, end = _shared(stems), _shared([stem[::-1] for stem in stems])
    while start and stems[0][start - 1].isalnum():  # whole words
        start -= 1
    while end and stems[0][-end].isalnum():
        end -= 1
    return [stem[start : len(stem) - end] for stem in stems]


def _shared(names: Sequence[str]) -> int:
    """Number of characters at the start that are the same in all names."""
    return sum(
        1 for _ in itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    )


def _finds_the_same(content: dict[str, Any], layout: Layout, folder: Path) -> bool:
    """Whether a description finds the same images and labels."""
    try:
        found = DescribedFolder(folder / DESCRIPTION, Description.model_validate(content)).layout
    except InputError:
        return False
    return _files(found.scans) == _files(layout.scans)


def _files(scans: Sequence[Scan]) -> set[tuple[tuple[str, ...], frozenset[tuple[str, int]]]]:
    """The files of every scan, with the class of each label that is of one."""

    def labels(scan: Scan) -> frozenset[tuple[str, int]]:
        pairs = itertools.zip_longest(map(os.path.abspath, scan.labels), scan.label_classes, fillvalue=0)
        return frozenset((str(path), int(index)) for path, index in pairs)

    return {(tuple(map(os.path.abspath, scan.images)), labels(scan)) for scan in scans}

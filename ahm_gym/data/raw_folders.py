"""Finds folders of raw scans beside which another folder holds the same, preprocessed (WMH has `orig` and `pre`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ahm_gym.data.label_names import looks_like_label, read_name
from ahm_gym.data.listing import Found
from ahm_gym.data.wording import counted, verb

RAW: frozenset[str] = frozenset("orig original originals raw native rawdata".split())
PROCESSED: frozenset[str] = frozenset(
    "pre preproc preprocessed preprocessing processed proc registered coregistered resampled".split()
)
Place = tuple[tuple[str, ...], str, int]
"""The folders above a folder, its name and its depth."""


@dataclass
class RawFolders:
    """The raw files that are left out, and what is said of them."""

    left_out: dict[Path, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def find_raw(files: Sequence[Found]) -> RawFolders:
    """The raw files whose folder has a preprocessed sibling, in which most of the scans are there again.

    A raw folder with labels of such scans stays, because its labels fit no other grid.
    """
    raw, processed = _places(files, RAW), _places(files, PROCESSED)
    found, twins = RawFolders(), {place[0]: place for place in processed}
    for place, own in raw.items():
        twin = twins.get(place[0])
        again = {} if twin is None else processed[twin]
        if twin is None or 2 * len(again.keys() & own.keys()) < len(again):
            continue
        stems = {stem for _, stem in again}
        if any(
            stems.intersection(read_name(file).bases) for file in own.values() if looks_like_label(file.stem)
        ):
            continue
        reason = f"the folder {twin[1]} beside it holds the scans preprocessed"
        found.left_out |= {file.path: reason for file in own.values()}
    if found.left_out:
        number, first = len(found.left_out), next(iter(found.left_out))
        found.doubts.append(
            f"{counted(number, 'raw file')} such as {first} {verb(number, 'is', 'are')} left out, because the same "
            "scans lie preprocessed in the folder beside (likely); list the images in a dataset.json, which ahm-gym "
            "look writes, to use others"
        )
    return found


def _places(
    files: Sequence[Found], words: frozenset[str]
) -> dict[Place, dict[tuple[tuple[str, ...], str], Found]]:
    """The files below each folder with one of these names, by the folders below it and their own name."""
    places: dict[Place, dict[tuple[tuple[str, ...], str], Found]] = {}
    for file in files:
        for at, part in enumerate(file.parts):
            if part.lower() in words:
                inner = places.setdefault((file.parts[:at], part, at), {})
                inner[file.parts[at + 1 :], file.stem] = file
                break
    return places

"""DICOM files that are the slices of one volume."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from ahm_gym.data.formats.dicom_series import key_of
from ahm_gym.data.formats.names import has_dicom_magic
from ahm_gym.data.listing import Found
from ahm_gym.data.wording import counted

TAGS: tuple[str, ...] = (
    "Modality", "SeriesInstanceUID", "SeriesNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "InstanceNumber", "NumberOfFrames", "Rows", "Columns",
)  # fmt: skip
NO_IMAGE: frozenset[str] = frozenset("RTSTRUCT RTPLAN RTDOSE SEG SR PR KO REG".split())
"""Modalities of files that hold something other than an image of the patient."""
NAMED_ENDINGS: frozenset[str] = frozenset({"", ".dicom"})
"""Suffixes of files that are DICOM if they start like it; so are those that end in a number."""


@dataclass(frozen=True)
class Series:
    """The slices of one volume in the order of their positions."""

    files: tuple[Found, ...]
    number: str
    """DICOM's number of the series, with the time point behind it if there are several."""


@dataclass
class Grouped:
    """DICOM files by what they are."""

    series: list[Series] = field(default_factory=list)
    single: list[Found] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def is_unnamed_dicom(file: Found) -> bool:
    """Whether a file without a known suffix starts as a DICOM file does."""
    if file.suffix not in NAMED_ENDINGS and not file.suffix[1:].isdecimal():
        return False
    return file.path.name != "DICOMDIR" and has_dicom_magic(file.path)


def group(files: Iterable[Found]) -> Grouped:
    """Groups the files of each folder by series, orientation and size; reads headers only.

    Files without a position, or alone in their series, stay single. Where several files have the same position, as in a
    cine series, each of them belongs to another time point.
    """
    found = Grouped()
    stacks: dict[Any, list[tuple[Found, Any]]] = {}
    for file in files:
        header: Any = None
        with contextlib.suppress(InvalidDicomError, OSError, ValueError, EOFError):
            header = pydicom.dcmread(file.path, stop_before_pixels=True, specific_tags=list(TAGS))
        if header is None:
            found.single.append(file)  # whatever is wrong is said when it is read
        elif header.get("Modality") in NO_IMAGE:
            found.left_out[file.path] = (
                f"it is DICOM of the kind {header.Modality}; convert contours to masks to use them"
            )
        elif (key := key_of(header)) is None:
            found.single.append(file)
        else:
            stacks.setdefault((file.parts, key), []).append((file, header))
    timed: dict[Path, int] = {}
    for slices in stacks.values():
        if len(slices) == 1:
            found.single.append(slices[0][0])
        else:
            found.series += _in_order(slices, found, timed)
    if timed:
        folder, number = next(iter(timed.items()))
        more = f" (and {counted(len(timed) - 1, 'more folder')} like it)" if len(timed) > 1 else ""
        found.doubts.append(
            f"the series in {folder}{more} has {number} files at every position, which are read as time points; export "
            "it as one file for each volume if they are something else"
        )
    return found


def _in_order(slices: Sequence[tuple[Found, Any]], found: Grouped, timed: dict[Path, int]) -> list[Series]:
    """The slices of one stack by position along its normal; a series for each time point, whose number is kept."""
    axes = np.array(slices[0][1].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(axes[0], axes[1])
    places: dict[float, list[tuple[int, Found]]] = {}
    for file, header in slices:
        at = round(float(np.dot(normal, np.array(header.ImagePositionPatient, float))), 2)
        places.setdefault(at, []).append((int(header.get("InstanceNumber") or 0), file))
    number = str(slices[0][1].get("SeriesNumber") or "")
    times = {len(files) for files in places.values()}
    ordered = [[file for _, file in sorted(places[at], key=lambda item: item[0])] for at in sorted(places)]
    folder = slices[0][0].path.parent
    if times == {1}:
        return [Series(tuple(files[0] for files in ordered), number)]
    if len(times) > 1:
        found.doubts.append(
            f"a series in {folder} has several files at some positions and fewer at others, so that each "
            "file is an image of its own; export it as one file for each volume"
        )
        return [Series((file,), number) for files in ordered for file in files]
    timed.setdefault(folder, max(times))
    return [
        Series(tuple(files[time] for files in ordered), f"{number}_t{time:02d}") for time in range(max(times))
    ]

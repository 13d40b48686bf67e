"""Reads a source once and writes its images, labels and statistics to the cache."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ahm_gym.data.checksums import CHECKSUMS_FILE, is_sound, write_checksums
from ahm_gym.data.columns import Columns
from ahm_gym.data.fallbacks import LabelError, MixedColoursError, Recolourable, WithoutLabels
from ahm_gym.data.sample import Record, Source
from ahm_gym.data.scaling import FOREGROUND
from ahm_gym.data.splits import HasTable
from ahm_gym.data.statistics import settled
from ahm_gym.data.store import ImageDataset, StoreWriter, replace_label_value
from ahm_gym.data.told import HasTold, Told
from ahm_gym.errors import InputError, printable, say
from ahm_gym.runs.places import expanded, home_folder
from ahm_gym.runs.storage import remove

STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """The folder of prepared data: `$AHM_CACHE`, or `ahm-gym` in the user's cache folder.

    Raises:
        InputError: if neither is known.
    """
    chosen = os.environ.get("AHM_CACHE")
    if chosen:
        return expanded(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "ahm-gym"
    home = home_folder()
    if home is None:
        raise InputError(
            "there is no home folder in which prepared data could be kept: set AHM_CACHE to a folder for it."
        )
    return home / ".cache" / "ahm-gym"


def prepare(
    source: Source,
    *,
    shortest_side: int | None,
    need_labels: bool = True,
    patient_regex: str | None = None,
) -> ImageDataset:
    """Prepares the dataset of a source, or opens it from the cache if the source has not changed.

    Both print what was said of its files, how its patients were found, and what is doubtful.

    Args:
        source: source of the images.
        shortest_side: maximum length of an image's shorter side, in pixels; larger images are shrunk. None: no limit.
        need_labels: labels that cannot be used are an error; otherwise all labels are left out then, with a note.
        patient_regex: pattern by which the patient is found in the place of an image; see `find_patients`.

    Raises:
        InputError: if a file cannot be used, the pattern finds no patient in a place, or the cache cannot be written.
    """
    told = source.told if isinstance(source, HasTold) else Told(source.name)
    parts = [_code(), shortest_side, source.name, source.fingerprint(), patient_regex]
    dataset = ImageDataset(_prepared(source, parts, told, shortest_side, need_labels, patient_regex))
    for note in dataset.notes:
        told.say(note)
    return dataset


@functools.cache
def _code() -> str:
    """A hash of the code that understands and reads files, so that another version prepares them again."""
    folder = Path(__file__).parent
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _prepared(
    source: Source,
    parts: list[Any],
    told: Told,
    shortest_side: int | None,
    need_labels: bool,
    patient_regex: str | None,
) -> Path:
    """The folder of the prepared data, which is written if it is not there."""
    labelled, unlabelled = (
        _store_folder(source.name, parts),
        _store_folder(source.name, [*parts, "no labels"]),
    )
    if is_sound(labelled):
        return labelled
    with _cache_errors(labelled.parent):
        _discard(labelled)
        if is_sound(unlabelled):
            if not need_labels:
                return unlabelled
        else:
            _discard(unlabelled)
        try:
            _build(source, labelled, told, shortest_side, patient_regex)
        except LabelError as error:
            if need_labels:
                raise
            told.say(f"its labels are left out, because {str(error).rstrip('.')}")
            _build(WithoutLabels(source), unlabelled, told, shortest_side, patient_regex)
            return unlabelled
    return labelled


def _store_folder(name: str, parts: list[Any]) -> Path:
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"{re.sub(r'[^A-Za-z0-9-]+', '_', name)}-{digest}"


def _discard(folder: Path) -> None:
    """Removes a damaged store, or one without checksums, so that it is prepared again."""
    if not os.path.lexists(folder):
        return
    if (folder / CHECKSUMS_FILE).exists():
        say(f"note: the prepared data in {folder} is damaged and is prepared again.")
    away = folder.with_name(f".{folder.name}.damaged-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):  # another process has just done so
        folder.rename(away)
        remove(away)


def _build(
    source: Source, folder: Path, told: Told, shortest_side: int | None, patient_regex: str | None
) -> None:
    """Writes the store under a temporary name and renames it, so that it is either complete or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just finished
            if time.time() - left_over.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        try:
            _write(source, temporary, told, shortest_side, patient_regex)
        except MixedColoursError:  # known only once both kinds have been read
            if not isinstance(source, Recolourable):
                raise
            _write(source.in_colour(), temporary, told, shortest_side, patient_regex)
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Otherwise another process has prepared the same data in the meantime.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    source: Source, folder: Path, told: Told, shortest_side: int | None, patient_regex: str | None
) -> None:
    writer = StoreWriter(folder)
    try:
        table = Columns()
        for record in _with_progress(source, patient_regex):
            table.add(record, writer, shortest_side)
        if not table.ids:
            raise InputError(
                f"{source.name} has only constant slices: expected at least one that is not constant."
            )
        split_table = source.table if isinstance(source, HasTable) else None
        index = table.index(source.name, split_table, patient_regex)
        writer.finish(index | {"said": told.sentences})
    finally:
        writer.close()
    if FOREGROUND in table.all_values():
        replace_label_value(folder, FOREGROUND, 1)
    write_checksums(folder)


def _with_progress(source: Source, patient_regex: str | None) -> Iterator[Record]:
    console = Console(stderr=True)
    yield from track(
        settled(source, patient_regex),
        description=f"preparing {escape(printable(source.name))}",
        total=source.num_images,
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )


@contextlib.contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Turns the error of a full or read-only cache folder into an InputError."""
    try:
        yield
    except OSError as error:
        reasons = {errno.ENOSPC: "has no space left", errno.EDQUOT: "is over its quota"}
        forbidden = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
        reasons |= dict.fromkeys(forbidden, "cannot be written")
        if error.errno not in reasons:
            raise
        raise InputError(
            f"the cache folder {folder} {reasons[error.errno]}: free some space there, or set AHM_CACHE to "
            "another folder."
        ) from error

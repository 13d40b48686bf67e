"""The files of a prepared store, and the checksums that mark it as complete."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

INDEX_FILE = "index.json"
IMAGES_FILE = "images.float16"
LABELS_FILE = "labels.uint8"
FILES = (INDEX_FILE, IMAGES_FILE, LABELS_FILE)
CHECKSUMS_FILE = "checksums.json"
HASHED_BYTES: int = 1 << 27
"""Largest size of a file whose hash is compared when a store is opened: 128 MiB, a tenth of a second."""


def write_checksums(folder: Path) -> None:
    """Writes size and hash of every file of a store, last of all: they mark it as complete."""
    found = {name: [(folder / name).stat().st_size, _hash(folder / name)] for name in FILES}
    with (folder / CHECKSUMS_FILE).open("w", encoding="utf-8") as file:
        json.dump(found, file)
        file.flush()
        os.fsync(file.fileno())


def read_checksums(folder: Path) -> dict[str, list[Any]] | None:
    """Size in bytes and hash of every file of a store; None if they are missing or damaged."""
    try:
        found = json.loads((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        return {name: [int(found[name][0]), str(found[name][1])] for name in FILES}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


@functools.cache
def _has_content(folder: Path, name: str, size: int, checksum: str, written: int) -> bool:
    """Whether a file has that hash; computed once in a process, as long as the file is not written again."""
    return _hash(folder / name) == checksum


def is_sound(folder: Path) -> bool:
    """Whether the files of a store are those that were written.

    Sizes are compared each time. Hashes are compared once in every process, of files up to `HASHED_BYTES`: a hash of
    gigabytes would delay each start by seconds, and a damage that keeps the size is rare.
    """
    checksums = read_checksums(folder)
    if checksums is None:
        return False
    for name, (size, checksum) in checksums.items():
        try:
            found = (folder / name).stat()
            if found.st_size != size:
                return False
            hashed = size <= HASHED_BYTES
            if hashed and not _has_content(folder, name, size, checksum, found.st_mtime_ns):
                return False
        except OSError:
            return False
    return True


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

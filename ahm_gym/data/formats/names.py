"""Tells the format of a file by its name and its first bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ahm_gym.errors import InputError

COMPOUND: tuple[str, ...] = (".nii.gz", ".ome.tiff", ".ome.tif")
"""Suffixes of two parts."""
SUFFIXES: tuple[str, ...] = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".ome.tif", ".ome.tiff", ".tif", ".tiff",
    ".dcm", ".nii", ".nii.gz", ".npy", ".mha", ".mhd", ".nrrd", ".nhdr", ".ima",
)  # fmt: skip
"""Suffixes of the files that are read."""
DICOM: tuple[str, ...] = (".dcm", ".ima")
"""Suffixes of DICOM."""
MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
)
"""First bytes of pictures, whose names often say another kind of picture."""
INTERCHANGEABLE: tuple[str, ...] = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".jp2",
    ".j2k",
    ".tif",
    ".tiff",
)


def suffix_of(path: Path) -> str:
    """The suffix in lower case; `.nii.gz` and `.ome.tif` count as one suffix."""
    name = path.name.lower()
    return next((suffix for suffix in COMPOUND if name.endswith(suffix)), path.suffix.lower())


def stem_of(path: Path) -> str:
    """The file name without its suffix; the whole name if it does not end in a known suffix."""
    suffix = suffix_of(path)
    return path.name[: len(path.name) - len(suffix)] if suffix in SUFFIXES else path.name


def is_readable(path: Path) -> bool:
    """Whether a file can be read: by its suffix, or as DICOM by its content if the suffix is unknown."""
    return suffix_of(path) in SUFFIXES or (not _has_word_as_suffix(path) and has_dicom_magic(path))


def has_dicom_magic(path: Path) -> bool:
    """Whether a file holds the letters that mark DICOM."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def kind_of(path: Path) -> str:
    """The suffix that fits the content: that of the name, unless the file is another kind of picture, or DICOM.

    Raises:
        OSError: if the file cannot be opened.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        return ".dcm" if has_dicom_magic(path) else suffix
    if suffix not in INTERCHANGEABLE:
        return suffix
    with path.open("rb") as file:
        start = file.read(16)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ".webp"
    found = next((kind for magic, kind in MAGIC if start.startswith(magic)), suffix)
    same = {".jpeg": ".jpg", ".tiff": ".tif"}
    return suffix if same.get(suffix, suffix) == found else found


def fingerprint_of(path: Path, folders: dict[Path, Path] | None = None) -> list[Any]:
    """The path, size and modification time of a file, and of the files that a header without data names.

    Args:
        path: the file.
        folders: folders without links by their path, filled here, so that each is resolved once for many files.

    Raises:
        InputError: if the file is a broken link.
    """
    folders = {} if folders is None else folders
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): expected a file; restore the target of the link, or remove it."
        ) from error
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve()
    real = path.resolve() if path.is_symlink() else folders[path.parent] / path.name
    parts = [str(real), status.st_size, status.st_mtime_ns]
    for other in _data_files(path):
        parts += [other.name, other.stat().st_size, other.stat().st_mtime_ns]
    return parts


def _data_files(path: Path) -> list[Path]:
    """The files with the values of a `.mhd` or `.nhdr` header."""
    if suffix_of(path) not in (".mhd", ".nhdr"):
        return []
    text = path.read_bytes()[:100_000].decode("latin-1")
    names = re.findall(
        r"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", text, re.MULTILINE | re.IGNORECASE
    )
    return [path.parent / name for name in names if (path.parent / name).is_file()]


def _has_word_as_suffix(path: Path) -> bool:
    """Whether the suffix names a format; that of DICOM files without one is none, or a part of a number."""
    return bool(re.fullmatch(r"\.[a-z][a-z0-9]{1,7}", suffix_of(path)))

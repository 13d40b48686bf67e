"""Tells images, labels and other files apart, by their names and the names of their folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ahm_gym.data.formats import READERS, suffix_of
from ahm_gym.data.label_names import (
    DERIVED_NAME,
    LABEL_NAME,
    NUMBER,
    OBSERVER,
    PREFIXED_LABEL,
    WEAK_LABEL,
    WHOLE_SERIES,
    in_label_folder,
    looks_like_label,
    reduced,
)
from ahm_gym.data.listing import DESCRIPTION, FOLDS, FORMAT_WORDS, SPLIT_TABLE, Found, role_of_folder
from ahm_gym.data.modalities import has_own_folder, modality_of
from ahm_gym.data.raw_folders import find_raw
from ahm_gym.data.same_names import labels_of_same_names
from ahm_gym.data.unnamed_labels import find_unnamed
from ahm_gym.data.wording import counted, verb
from ahm_gym.errors import InputError

UNREAD: dict[str, str] = {
    ".txt": "draw their boxes or polygons as masks in PNG, one value for each class",
    ".xml": "draw their boxes or polygons as masks in PNG, one value for each class",
    ".json": "draw their polygons (COCO, LabelMe) as masks in PNG, one value for each class",
    ".mat": "save their arrays as .npy files or PNG",
    ".zip": "unpack it",
}
"""What to do with labels that cannot be read, by suffix."""
ARCHIVES: frozenset[str] = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"})
ARRAYS: frozenset[str] = frozenset({".npz", ".h5", ".hdf5", ".mat", ".pkl", ".pt"})


@dataclass
class Kinds:
    """The files of a folder by what they are."""

    images: list[Found] = field(default_factory=list)
    labels: list[Found] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, files: Sequence[Found]) -> Kinds:
        """Sorts the files.

        Raises:
            InputError: if it cannot be told which of several files are the images.
        """
        found = cls()
        files = [_out_of_own_folder(file) for file in files]
        raw = find_raw(files)
        found.left_out |= raw.left_out
        found.doubts += raw.doubts
        files = [file for file in files if file.path not in raw.left_out]
        rest = found._without_derived(found._without_copies(files))
        apart = [file for file in rest if in_label_folder(file)]
        if len(apart) == len(rest):  # a folder such as brain_segmentation may hold images and labels
            apart = [] if _hold_pairs(apart) or find_unnamed(apart).labels else apart
        inside = {file.path for file in apart}
        found._by_name([file for file in rest if file.path not in inside])
        found.labels += [replace(file, in_labels=True) for file in apart]
        found._without_unnamed_labels()
        found._only_image_folders()
        return found

    def _without_copies(self, files: Sequence[Found]) -> list[Found]:
        """Leaves out folders that hold the same images in another format, such as PNG beside TIF."""
        stems: dict[tuple[tuple[str, ...], str, int], set[tuple[tuple[str, ...], str]]] = {}
        for file in files:
            for at, part in enumerate(file.parts):
                if part.lower() in FORMAT_WORDS:
                    key = (file.parts[:at], part, at)
                    stems.setdefault(key, set()).add((file.parts[at + 1 :], file.stem))
        copies: dict[tuple[tuple[str, ...], str, int], str] = {}
        for first in stems:
            for second in stems:
                same = first[0] == second[0] and first[1] < second[1]
                if same and len(stems[first] & stems[second]) * 2 > len(stems[second]):
                    copies[second] = first[1]
        kept = []
        for file in files:
            keys = [(file.parts[:at], part, at) for at, part in enumerate(file.parts)]
            own = next((copies[key] for key in keys if key in copies), None)
            if own is None:
                kept.append(file)
            else:
                self.left_out[file.path] = f"the folder {own} holds the same in another format"
        return kept

    def _without_derived(self, files: Sequence[Found]) -> list[Found]:
        stems = {file.stem for file in files}
        by_folder: dict[tuple[str, ...], list[str]] = {}
        for file in files:
            by_folder.setdefault(file.parts, []).append(file.stem)
        kept = []
        for file in files:
            roles = {role_of_folder(part) for part in file.parts}
            derived = DERIVED_NAME.fullmatch(file.stem)
            whole = WHOLE_SERIES.fullmatch(file.stem)
            if "derived" in roles:
                self.left_out[file.path] = "its folder is named as made from the images"
            elif "derivatives" in roles and not looks_like_label(file.stem):
                self.left_out[file.path] = "derivatives are no images of the scanner"
            elif derived and (derived[1] in stems or derived[0].lower().endswith("probseg")):
                self.left_out[file.path] = "its name says that it was made from an image"
            elif whole and any(
                stem.startswith(whole[1]) and stem != file.stem and not looks_like_label(stem)
                for stem in by_folder[file.parts]
            ):
                self.left_out[file.path] = "it is the whole series, of which single frames lie beside it"
            else:
                kept.append(file)
        return kept

    def _by_name(self, files: Sequence[Found]) -> None:
        """Tells labels among images by their names; if all files are numbered labels, they are images."""
        strong = [looks_like_label(file.stem) for file in files]
        if files and all(strong) and all(NUMBER.search(file.stem) for file in files):
            self.images += files
            self.notes.append("all files are named like labels, and are used as images")
            return
        plain = {reduced(file.stem) for file, label in zip(files, strong, strict=True) if not label}
        for file, label in zip(files, strong, strict=True):
            forms = (form.fullmatch(file.stem) for form in (WEAK_LABEL, OBSERVER, PREFIXED_LABEL))
            partner = any(form is not None and reduced(form[1]) in plain for form in forms)
            (self.labels if label or partner else self.images).append(file)

    def _without_unnamed_labels(self) -> None:
        """Takes out labels that only their pixels tell from images."""
        labels, doubts = labels_of_same_names(self.images)
        taken = {label.path for label in labels}
        unnamed = find_unnamed([image for image in self.images if image.path not in taken])
        self.labels += [*labels, *unnamed.labels]
        self.left_out |= unnamed.left_out
        self.doubts += [*doubts, *unnamed.doubts]
        gone = {label.path for label in self.labels} | unnamed.left_out.keys()
        self.images = [image for image in self.images if image.path not in gone]

    def _only_image_folders(self) -> None:
        """Images beside folders of images are ambiguous; those elsewhere are left out."""
        ours = [image for image in self.images if _image_folder(image) is not None]
        rest = [image for image in self.images if _image_folder(image) is None]
        if not ours or not rest:
            return
        above = {folder[:-1]: image for image in reversed(ours) if (folder := _image_folder(image))}
        for image in rest:
            if (other := above.get(image.parts)) is not None:
                folder = _image_folder(other) or ()
                place = image.path.parent.joinpath(*folder[len(image.parts) :])
                raise InputError(
                    f"{image.path.parent} holds images, and so does {place}: expected them in one place; give the "
                    "folder that should be used, or move the other images."
                )
        self.images = ours
        self.left_out |= {image.path: "it lies outside of the folders of images" for image in rest}
        self.doubts.append(
            f"only folders named as images are used, such as {ours[0].path.parent.name}; move other images into such a "
            "folder to use them too"
        )


def _out_of_own_folder(file: Found) -> Found:
    """A modality or a label that lies in a folder of its own name, as if it lay beside that folder."""
    apart = file.parts and has_own_folder(file) and (modality_of(file) or looks_like_label(file.stem))
    return replace(file, parts=file.parts[:-1]) if apart else file


def _image_folder(image: Found) -> tuple[str, ...] | None:
    """The innermost folder above an image that is named as one of images."""
    places = [at for at, part in enumerate(image.parts) if role_of_folder(part) == "image"]
    return image.parts[: places[-1] + 1] if places else None


def _hold_pairs(files: Sequence[Found]) -> bool:
    """Whether an image and its label lie among these files."""
    stems = {(file.parts, file.stem) for file in files if not looks_like_label(file.stem)}
    named = ((file.parts, LABEL_NAME.fullmatch(file.stem)) for file in files)
    return any((parts, match[1]) in stems for parts, match in named if match)


def unread_labels(others: Sequence[Found], stems: Sequence[str]) -> str:
    """A sentence on files that seem to be labels, but are of a kind that cannot be read; empty if there are none."""
    known = set(stems)
    found = [file for file in others if _seems_label(file, known)]
    if not found:
        return ""
    counts = Counter(file.suffix for file in found)
    suffix, count = counts.most_common(1)[0]
    first = next(file.path for file in found if file.suffix == suffix)
    way = UNREAD.get(suffix, "convert them to PNG or NIfTI")
    return (
        f"{counted(count, suffix + ' file')} {verb(count, 'looks', 'look')} like labels, such as {first}, and cannot "
        f"be used; {way}"
    )


def _seems_label(file: Found, stems: set[str]) -> bool:
    if file.suffix == ".json" and file.path.name != DESCRIPTION:
        with file.path.open("rb") as opened:
            start = opened.read(1 << 16)
        return b'"annotations"' in start or b'"shapes"' in start or "annotation" in file.stem.lower()
    match = LABEL_NAME.fullmatch(file.stem)
    named = file.stem in stems or (match is not None and match[1] in stems)
    if file.suffix == ".zip":
        return looks_like_label(file.stem) or "label" in file.stem.lower() or "mask" in file.stem.lower()
    return in_label_folder(file) or (named and file.suffix in UNREAD)


def other_kinds(others: Sequence[Found]) -> str | None:
    """A sentence on the files that cannot be read, with their numbers by suffix; None if there are none."""
    used = (SPLIT_TABLE, DESCRIPTION, FOLDS)
    counts = Counter(suffix_of(file.path) for file in others if file.path.name not in used)
    listed = ", ".join(f"{counts[suffix]} {suffix or 'without a suffix'}" for suffix in sorted(counts))
    return f"files of other kinds are left out: {re.sub(r'[^ -~]', '?', listed)}" if counts else None


def no_images(root: Path, others: Sequence[Found], kinds: Kinds) -> InputError:
    """The error for a folder without images: what was found there, and the way out."""
    return InputError(
        f"{root} holds no images: expected files ending in {', '.join(READERS)}; {_way_out(root, others, kinds)}."
    )


def _way_out(root: Path, others: Sequence[Found], kinds: Kinds) -> str:
    counts = Counter(file.suffix for file in others)
    for file in others:
        if file.suffix in ARCHIVES:
            return f"unpack {os.path.relpath(file.path, root)} and give the folder"
    if kinds.labels:
        first = kinds.labels[0].path
        return f"{first} is a label by its name or folder; put the images into a folder images beside it"
    for suffix in counts:
        if suffix in ARRAYS:
            first = next(file.path.name for file in others if file.suffix == suffix)
            return (
                f"it holds {counts[suffix]} {suffix} files such as {first}; save the arrays of each as .npy files in "
                "folders images and labels, or give one .npz file with train_images"
            )
    if kinds.left_out:
        path, reason = next(iter(kinds.left_out.items()))
        return f"{path} is left out: {reason}"
    if counts:
        listed = ", ".join(
            f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(counts.items())
        )
        return f"it holds other kinds ({listed}); convert them, or give another folder"
    return "give another folder"


def refuse_file(path: Path) -> None:
    """Raises InputError for a file that is neither `.npz` nor a folder, by its kind."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return
    expected = "expected an .npz file or a folder"
    if suffix in ARCHIVES:
        raise InputError(f"{path} is an archive: {expected}; unpack it and give the folder.")
    if suffix in (".csv", ".txt", ".xml", ".yaml", ".yml"):
        raise InputError(
            f"{path} only describes data: {expected}; give the folder of the images, such as {path.parent}."
        )
    if suffix in ARRAYS:
        raise InputError(
            f"{path} is a {suffix} file: {expected}; save its arrays as .npy files in a folder images."
        )

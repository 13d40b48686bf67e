"""Finds out what a folder holds: its scans, their labels and splits, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ahm_gym.data.formats import PICTURES, READERS
from ahm_gym.data.formats.names import DICOM
from ahm_gym.data.kinds import Kinds, no_images, other_kinds, unread_labels
from ahm_gym.data.label_choice import Choice
from ahm_gym.data.label_names import read_name
from ahm_gym.data.labels import match_labels
from ahm_gym.data.layout import Layout
from ahm_gym.data.listing import (
    DESCRIPTION,
    NNUNET_FOLDERS,
    PREDICTIONS,
    SPLIT_TABLE,
    Found,
    Tree,
    is_named,
    is_plain_label_name,
    label_folders_in,
    role_of_folder,
    walk,
)
from ahm_gym.data.modalities import Draft, Stacked, stack
from ahm_gym.data.named_folds import find_folds, in_folds, read_folds
from ahm_gym.data.naming import name_scans
from ahm_gym.data.nnunet import ForeignDescription
from ahm_gym.data.series import Series, group, is_unnamed_dicom
from ahm_gym.data.stated_splits import find_table, has_table, use_stated
from ahm_gym.data.unmatched import judge_unmatched
from ahm_gym.data.unnamed_labels import doubt_of_all
from ahm_gym.data.wording import counted, verb
from ahm_gym.errors import InputError

MIN_IMAGES = 3
"""The number of splits: with fewer images, a split stays empty."""
IMAGE_FOLDERS: tuple[str, ...] = ("images", "imagestr")


def find_layout(folder: Path) -> Layout:
    """What a folder and the folders below it hold; labels and `split.csv` beside the folder count too.

    Names decide; of some files the headers are read too, and the pixels of a few if their names are ambiguous.

    Raises:
        InputError: if it holds no images, or it cannot be told which files are the images.
    """
    return Search(folder).layout


class Search:
    """All files in a folder and in the folders of labels beside it, and the layout that they make."""

    def __init__(self, folder: Path) -> None:
        self.root: Path = Path(os.path.abspath(folder))
        _refuse_labels(self.root)
        self.tree: Tree = walk(self.root)
        direct = any(not file.parts for file in self.tree.files)
        parents = [self.root.parent]
        if self.root.is_symlink():
            parents.append(self.root.resolve().parent)
        self.parents: list[Path] = parents if direct or role_of_folder(self.root.name) == "image" else []
        """Folders beside whose contents the root may lie; links are followed only after what was typed."""
        self.folds: Path | None = find_folds(
            [self.root, *parents] if is_named(self.root, NNUNET_FOLDERS) else [self.root]
        )
        """The file of nnU-Net's folds, if there is one."""
        self.beside: list[Found] = next(filter(None, map(self._labels_in, self.parents)), [])

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.root.name

    def _labels_in(self, parent: Path) -> list[Found]:
        """The labels in folders beside the root."""
        places = [place for place in label_folders_in(parent) if not place.samefile(self.root)]
        return [
            replace(file, parts=(place.name, *file.parts), in_labels=True)
            for place in places
            for file in walk(place).files
        ]

    def paths(self) -> list[Path]:
        """The files on which the layout depends; their order and names are part of it."""
        unnamed = [file for file in self.tree.others if file.suffix in ("", ".csv", ".json", ".ima")]
        tables = [parent / SPLIT_TABLE for parent in self.parents]
        found = [file.path for file in (*self.tree.files, *self.beside, *unnamed)]
        tables += [] if self.folds is None or self.folds in found else [self.folds]
        return [*found, *(path for path in tables if path.is_file())]

    @cached_property
    def layout(self) -> Layout:
        """The layout; headers are read on first use."""
        return _Reading(self).layout()


class _Reading:
    """One pass over the files; every step hands the next what it has not decided."""

    def __init__(self, search: Search) -> None:
        self.search: Search = search
        self.root: Path = search.root
        self.left_out: dict[Path, str] = dict(search.tree.left_out)
        self.notes: list[str] = []
        self.doubts: list[str] = []
        self.faults: list[str] = []
        self.described, self.description = self._describe()

    def layout(self) -> Layout:
        tree = self.search.tree
        unnamed = [file for file in tree.others if is_unnamed_dicom(file)]
        kinds = Kinds.of([*tree.files, *unnamed])
        self.left_out |= kinds.left_out
        self.notes += kinds.notes
        self.doubts += kinds.doubts
        found = {file.path for file in unnamed}
        others = [file for file in tree.others if file.path not in found]
        images = self._listed(kinds.images)
        if not images:
            raise no_images(self.root, others, kinds)
        drafts, stacked = self._drafts(images, [*kinds.labels, *self.search.beside])
        given = self.description.classes()
        chosen, alone = match_labels(drafts, [*kinds.labels, *self.search.beside], given)
        self._say_choice(chosen)
        self._say_labels(alone, drafts, stacked.incomplete)
        drafts = self._use_splits(drafts)
        if len(drafts) < MIN_IMAGES and all(draft.files[0].suffix in PICTURES for draft in drafts):
            self.doubts.append(
                f"{counted(len(drafts), 'image')} {verb(len(drafts), 'is', 'are')} too few to learn from and to split "
                "into train, val and test, so that this is only a trial; add images"
            )
        scans = name_scans(drafts, channels_named=stacked.channels_named)
        if note := other_kinds(others):
            self.notes.append(note)
        if self.search.folds is not None:
            scans, sentences = in_folds(scans, self.search.folds, read_folds(self.search.folds))
            self.notes += sentences
        labelled = any(scan.labels for scan in scans)
        files = [draft.files[0] for draft in drafts if not draft.series]
        if files and not labelled and (doubt := doubt_of_all(files)):
            self.doubts.append(doubt)
        if ignore := self.description.ignored():
            self.notes.append(f"{self.described.name} says that label pixels of {ignore[0]} are ignored")
        return Layout(
            self.root,
            tuple(scans),
            modalities=stacked.modalities,
            classes=chosen.classes or given,
            ignore=ignore,
            table=find_table(self.root, self.search.tree, self.search.parents, drafts),
            left_out=self.left_out,
            notes=tuple(self.notes),
            doubts=tuple(self.doubts),
            faults=tuple(self.faults),
            unread_labels="" if labelled else unread_labels(others, [draft.stem for draft in drafts]),
            channels_named=stacked.channels_named,
        )

    def _describe(self) -> tuple[Path, ForeignDescription]:
        for folder in (self.root, *(self.search.parents if is_named(self.root, NNUNET_FOLDERS) else ())):
            if (path := folder / DESCRIPTION).is_file():
                return path, ForeignDescription.read(path)
        return self.root / DESCRIPTION, ForeignDescription()

    def _listed(self, images: list[Found]) -> list[Found]:
        """The images without those that the `dataset.json` excludes."""
        if self.described.parent == self.root and (doubt := self.description.doubt(self.described, images)):
            self.doubts.append(doubt)
        kept, tests = [], self.description.tests()
        for image in images:
            name = "/".join((*image.parts, image.path.name))
            is_test = name in tests or name.replace("_0000.", ".", 1) in tests
            reason = f"{DESCRIPTION} lists it as a test image" if is_test else None
            ending = self.description.file_ending.lower()
            if reason is None and ending and not image.path.name.lower().endswith(ending):
                reason = f"{DESCRIPTION} gives its files the ending {ending}"
            if reason is None:
                kept.append(image)
            else:
                self.left_out[image.path] = reason
        return kept

    def _drafts(self, images: list[Found], labels: list[Found]) -> tuple[list[Draft], Stacked]:
        dicom = [file for file in images if file.suffix not in READERS or file.suffix in DICOM]
        grouped = group(dicom)
        self.left_out |= grouped.left_out
        self.doubts += grouped.doubts
        apart = {file.path for file in dicom} - {f.path for f in grouped.single if f.suffix in READERS}
        rest = [file for file in images if file.path not in apart]
        bases = {name for label in labels for name in (label.stem, *read_name(label).bases)}
        stacked = stack(rest, bases, self.description.channels(), nnunet=is_named(self.root, NNUNET_FOLDERS))
        self.left_out |= stacked.left_out
        self.doubts += stacked.doubts
        unnamed = [Series((file,), "") for file in grouped.single if file.suffix not in READERS]
        per_folder = Counter(series.files[0].parts for series in grouped.series)
        drafts = list(stacked.drafts)
        for series in grouped.series:
            parts = series.files[0].parts
            stem = parts[-1] if parts else self.root.name
            if per_folder[parts] > 1:
                stem = f"{stem}_{series.number}"
            drafts.append(Draft(list(series.files), stem, (stem,), series=True))
        drafts += [
            Draft(list(s.files), s.files[0].path.name, (s.files[0].stem,), series=True) for s in unnamed
        ]
        if not drafts:
            raise no_images(self.root, [], Kinds(left_out=self.left_out))
        return drafts, stacked

    def _say_choice(self, chosen: Choice) -> None:
        """Keeps what was chosen among several labels of one image."""
        self.left_out |= chosen.left_out
        self.faults += chosen.faults
        self.doubts += chosen.doubts
        if chosen.merged:
            scans = counted(chosen.merged, "scan")
            self.notes.append(f"the labels of {scans} are in several files, which are merged")

    def _say_labels(self, alone: Sequence[Found], drafts: list[Draft], incomplete: set[str]) -> None:
        """Keeps what is wrong with the labels; it is an error only if labels are needed."""
        apart = set() if is_named(self.root, IMAGE_FOLDERS) else {label.path for label in self.search.beside}
        unmatched = judge_unmatched(alone, drafts, beside=apart, incomplete=incomplete)
        self.left_out |= unmatched.left_out
        self.faults += unmatched.faults
        for draft in drafts:
            if draft.series and draft.labels:
                self.left_out |= {label.path: "its image is a DICOM series" for label in draft.labels}
                self.faults.append(
                    f"{draft.labels[0].path} is the label of a DICOM series, whose orientation it may not share: "
                    "expected both in one format; convert the series to NIfTI, for example with dcm2niix."
                )
                draft.labels, draft.classes = [], []

    def _use_splits(self, drafts: list[Draft]) -> list[Draft]:
        """The scans without test images that have no labels, with the splits that folders state."""
        stated = use_stated(drafts, has_table=has_table(self.search.tree, self.search.parents))
        self.left_out |= stated.left_out
        self.notes += stated.notes
        self.doubts += stated.doubts
        return stated.kept


def _refuse_labels(root: Path) -> None:
    """Refuses a folder that only makes sense as the labels of another, or as predictions."""
    if (root / PREDICTIONS).is_file():
        raise InputError(f"{root} holds predicted masks: expected images; give the folder of the images.")
    if not is_plain_label_name(root.name):
        return
    for parent in dict.fromkeys((root.parent, root.resolve().parent)):
        try:
            names = os.listdir(parent)
        except OSError:
            continue
        if any(role_of_folder(name) == "image" and (parent / name).is_dir() for name in names):
            raise InputError(f"{root} holds labels, according to its name: expected images; give {parent}.")

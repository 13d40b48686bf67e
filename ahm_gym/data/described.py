"""A folder as its `dataset.json` describes it."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path, PurePosixPath

from ahm_gym.data.description import (
    Described,
    Description,
    match_files,
    read_description,
    splits_of,
)
from ahm_gym.data.formats import stem_of
from ahm_gym.data.layout import Layout, Scan
from ahm_gym.data.listing import DESCRIPTION, SPLIT_TABLE, Found, walk
from ahm_gym.data.patients import found_in
from ahm_gym.data.search import Search
from ahm_gym.errors import InputError


class DescribedFolder:
    """The files of a folder that its description names, and the layout that they make.

    Raises:
        InputError: if the description cannot be used.
    """

    def __init__(self, path: Path, description: Description) -> None:
        self.path: Path = path
        """The file of the description."""
        self.description: Description = description
        self.root: Path = path.absolute().parent / description.root
        if not self.root.is_dir():
            raise InputError(f"`root` in {path} is {self.root}, which is no folder: correct it.")
        self.files: dict[str, Path] = {_place(file): file.path for file in walk(self.root).files}
        self.name: str = description.name or self.root.resolve().name

    def paths(self) -> list[Path]:
        """The files on which the layout depends."""
        table = self.root / SPLIT_TABLE
        return [self.path, *self.files.values(), *([table] if table.is_file() else [])]

    @cached_property
    def layout(self) -> Layout:
        """What the description says of the files.

        Raises:
            InputError: if it does not fit them.
        """
        cases = match_files(self.description, self.files, str(self.path))
        scans = tuple(self._scan(name, case) for name, case in cases.items())
        used = {path for scan in scans for path in (*scan.images, *scan.labels)}
        table = self.root / SPLIT_TABLE
        return Layout(
            root=self.root,
            scans=scans,
            modalities=tuple(self.description.modalities.values()),
            classes={int(index): name for index, name in self.description.classes.items()},
            table=table if table.is_file() and not self.description.splits else None,
            left_out={
                path: f"{self.path.name} does not name it" for path in self.files.values() if path not in used
            },
            notes=(f"read as {self.path} describes it",),
        )

    def _scan(self, name: str, case: Described) -> Scan:
        images = tuple(case.images[key] for key in self.description.modalities or ("",))
        places = [PurePosixPath(path.relative_to(self.root)).as_posix() for path in images]
        patient = self._patient(case, places[0])
        splits = splits_of(self.description, name, patient or "", places, str(self.path))
        return Scan(
            id=name.replace("/", "_"),
            images=images,
            place=places[0].removesuffix(images[0].name) + stem_of(images[0]),
            case=name.replace("/", "_"),
            labels=tuple(case.labels),
            label_classes=tuple(case.classes),
            split=case.split or next(iter(splits), None),
            folds=splits if isinstance(self.description.splits, tuple) else (),
            patient=patient,
        )

    def _patient(self, case: Described, place: str) -> str | None:
        """The patient that the description tells, if it tells any."""
        if self.description.patients is None:
            return case.patient
        found = found_in(place, re.compile(self.description.patients))
        if not found:
            raise InputError(
                f"`patients` in {self.path} finds no patient in {place!r}: make it more general."
            )
        return found


def open_folder(path: Path) -> Search | DescribedFolder:
    """The contents of a folder: as its `dataset.json` describes them, or else as they are understood.

    Args:
        path: a folder, or the file of a description.

    Raises:
        InputError: if the description cannot be used, or is one of another program.
    """
    file = path / DESCRIPTION if path.is_dir() else path
    description = read_description(file) if file.is_file() else None
    if description is not None:
        return DescribedFolder(file, description)
    if not path.is_dir():
        raise InputError(
            f'{path} is no description of ahm-gym, which has the key "ahm_gym": give the folder of the images, such as '
            f"{path.parent}; `ahm-gym look` writes a description of it."
        )
    return Search(path)


def _place(file: Found) -> str:
    return "/".join((*file.parts, file.path.name))

"""A folder of images, with labels in the same folder or in a separate one."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ahm_gym.data.described import DescribedFolder, open_folder
from ahm_gym.data.formats import PICTURES, NotAnImage, Pixels, fingerprint_of, suffix_of, with_frames
from ahm_gym.data.label_files import join, own_notes, read_label
from ahm_gym.data.layout import Layout, Scan
from ahm_gym.data.processing import OF_IMAGES, Processing
from ahm_gym.data.sample import Record
from ahm_gym.data.scans import read_scan
from ahm_gym.data.search import Search
from ahm_gym.data.splits import SplitTable
from ahm_gym.data.told import Told
from ahm_gym.data.wording import counted, verb
from ahm_gym.errors import InputError


class FolderSource:
    """The scans of a folder, as `find_layout` understands it.

    The splits come from `split.csv`, otherwise from folders such as train and test, otherwise from the patients; see
    `find_patients`.

    Volumes become slices in the plane in which they were acquired; constant slices are left out. The frames of a
    series in time become images of one case.
    """

    def __init__(self, folder: Path) -> None:
        self.search: Search | DescribedFolder = open_folder(folder)
        self.name: str = self.search.name
        self.changes: list[Any] = []
        """What a run says of the images in place of the description."""
        self.told: Told = Told(self.name)
        self.colour: bool = False
        """Grey images are repeated in three channels."""

    def in_colour(self) -> FolderSource:
        """The same source, with three channels in every image."""
        other = copy.copy(self)
        other.colour = True
        return other

    def as_trained(self, processing: Processing) -> FolderSource:
        """The same source, with images scaled, resampled and sliced as those of a run were."""
        return self.processed({name: getattr(processing, name) for name in ("modalities", *OF_IMAGES)})

    def processed(self, changes: dict[str, Any]) -> FolderSource:
        """The same source, with other values of some fields of `Processing`."""
        other = copy.copy(self)
        other.processing = Processing(**{**dict(self.processing), **changes})
        other.changes = [other.processing.model_dump(mode="json", include=set(changes))]
        return other

    @cached_property
    def layout(self) -> Layout:
        """What the folder holds, and what was said of it."""
        found = self.search.layout
        for sentence in found.sentences():
            self.told.say(sentence)
        return found

    @cached_property
    def processing(self) -> Processing:
        """What is done to the values: what the description says, or else only what nnU-Net's says of the classes."""
        if isinstance(self.search, DescribedFolder):
            return Processing(
                **{name: getattr(self.search.description, name) for name in Processing.model_fields}
            )
        classes = {str(index): name for index, name in self.layout.classes.items()}
        return Processing(classes=classes, ignore=self.layout.ignore)

    @cached_property
    def table(self) -> SplitTable | None:
        """The table of splits, if there is one."""
        return None if self.layout.table is None else SplitTable(self.layout.table)

    @property
    def num_images(self) -> int | None:
        """The number of images; None if some files may hold several, or `records` was not called yet."""
        if "layout" not in self.__dict__:
            return None
        scans = self.layout.scans
        pictures_only = all(suffix_of(path) in PICTURES for scan in scans for path in scan.images)
        return len(scans) if pictures_only else None

    def fingerprint(self) -> list[Any]:
        folders: dict[Path, Path] = {}
        return [*(fingerprint_of(path, folders) for path in self.search.paths()), *self.changes]

    def records(self) -> Iterator[Record]:
        return self._records(self.layout)

    def _records(self, layout: Layout) -> Iterator[Record]:
        constant, decided = [], Counter[str]()
        faults = list(layout.faults[:1])
        for scan in layout.scans:
            try:
                pixels = read_scan(scan, self.processing)
            except NotAnImage:
                if scan.labels or len(layout.scans) == 1:
                    raise
                decided["left out, because it is a DICOM object without an image"] += 1
                continue
            if self.colour and (pixels.array.ndim == 2 + pixels.is_volume or pixels.array.shape[-1] == 1):
                pixels = _repeated(pixels)
                decided["grey, while others have colour: repeated in three channels"] += 1
            record, pixels = self._record(scan, pixels, decided)
            if faults:
                record = dataclasses.replace(record, label=None, label_error=faults.pop())
            if pixels.is_volume:
                for frame in frames(record, pixels):
                    yield from self._parts(frame, constant)
            else:
                if pixels.array.min() == pixels.array.max():
                    constant.append(record.origin)
                yield record
        for sentence, count in sorted(decided.items()):
            self.told.say(f"{count} of {counted(len(layout.scans), 'file')}: {sentence}")
        if constant:
            self._judge_constant(constant)

    def _record(self, scan: Scan, pixels: Pixels, decided: Counter[str]) -> tuple[Record, Pixels]:
        """The record of a scan, and its pixels as the label tells them; counts what was decided."""
        label, error = None, ""
        if scan.labels:
            try:
                parts = [read_label(path, scan.images[0], pixels) for path in scan.labels]
                pixels = with_frames(pixels, scan.images[0], parts[0])
                label, notes = join(parts, scan, self.processing)
                notes = dict.fromkeys([*notes, *(note for part in parts for note in own_notes(part, pixels))])
                decided.update(f"{note} (labels)" for note in notes)
            except InputError as caught:
                error = str(caught)
        decided.update(pixels.notes)
        spacing, axes = pixels.spacing, self.processing.axes
        record = Record(
            pixels.array,
            label,
            scan.id,
            scan.patient or pixels.patient,
            origin=str(scan.images[0]),
            label_origin=str(scan.labels[0] if scan.labels else None),
            volume=scan.case if pixels.is_volume else None,
            split=scan.split if self.table is None else self.table.of_file(scan.images[0], scan.id),
            folds=scan.folds,
            spacing=None if spacing is None or len(spacing) < axes else spacing[:axes],
            slice_spacing=None if axes == 3 or spacing is None or len(spacing) < 3 else spacing[2],
            place=scan.place,
            modalities=scan.modal,
            processing=self.processing,
            label_error=error,
        )
        return record, pixels

    def _parts(self, volume: Record, constant: list[str]) -> Iterator[Record]:
        """The slices of a volume, or the volume itself; adds it to `constant` if it shows nothing."""
        if not self.processing.volumes:
            yield from _slices(volume)
            return
        if volume.image.min() == volume.image.max():
            constant.append(volume.origin)
        yield volume

    def _judge_constant(self, constant: list[str]) -> None:
        """Says how many images show nothing.

        Raises:
            InputError: if all of them do.
        """
        total = len(self.layout.scans)
        if len(constant) == total:
            raise InputError(
                f"{self.name} has only constant images, such as {constant[0]}: expected images that show something; "
                "check how they were exported."
            )
        self.told.say(
            f"{len(constant)} of {total} images {verb(len(constant), 'has', 'have')} one value everywhere, such as "
            f"{constant[0]}; remove {verb(len(constant), 'it if it is an', 'them if they are')} empty "
            f"{verb(len(constant), 'frame', 'frames')}"
        )


def _repeated(pixels: Pixels) -> Pixels:
    """A grey image in three equal channels."""
    array = pixels.array if pixels.array.ndim == 3 + pixels.is_volume else pixels.array[..., None]
    return dataclasses.replace(pixels, array=np.repeat(array, 3, axis=-1))


def _slices(volume: Record) -> Iterator[Record]:
    """The slices of a volume; with a label that does not fit they have none, but the reason."""
    try:
        yield from slices(volume)
    except InputError as error:  # before the first slice
        if volume.label is None:
            raise
        yield from slices(dataclasses.replace(volume, label=None, label_error=str(error)))


def frames(volume: Record, pixels: Pixels) -> Iterator[Record]:
    """Yields a volume for each frame of a series in time, or the volume itself.

    Raises:
        InputError: if the label has another size than the volume.
    """
    if pixels.fourth != "time" or pixels.array.ndim != 4:
        yield volume
        return
    for frame in range(pixels.array.shape[3]):
        label = volume.label
        yield dataclasses.replace(
            volume,
            image=volume.image[..., frame],
            label=label[..., frame] if label is not None and label.ndim == 4 else label,
            id=f"{volume.id}_t{frame:03d}",
            origin=f"{volume.origin} (frame {frame})",
            label_origin=f"{volume.label_origin} (frame {frame})",
        )


def slices(volume: Record) -> Iterator[Record]:
    """Yields one record for each slice along the third axis; constant slices are left out.

    Raises:
        InputError: if the label has another size than the volume.
    """
    image, label = volume.image, volume.label
    if label is not None and label.shape[:3] != image.shape[:3]:
        raise InputError(
            f"{volume.label_origin} has the shape {label.shape} and its image {volume.origin} {image.shape}: "
            "expected the same size; resample the label with nearest neighbours."
        )
    num_slices = image.shape[2]
    for index in range(num_slices):
        picture = image[:, :, index]
        if picture.min() != picture.max():  # true for NaN, which is refused later
            yield dataclasses.replace(
                volume,
                image=picture,
                label=None if label is None else label[:, :, index],
                id=f"{volume.id}_s{index:03d}",
                position=(index, num_slices) if num_slices > 1 else None,
                origin=f"{volume.origin} (slice {index})",
                label_origin=f"{volume.label_origin} (slice {index})",
            )

"""A folder of images, with labels in the same folder or in a separate one."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ahm_gym.data.formats import (
    PICTURES,
    NotAnImage,
    Pixels,
    fingerprint_of,
    match_label,
    read_pixels,
    suffix_of,
    with_frames,
)
from ahm_gym.data.labels import Labels, find_labels, looks_like_label, without_channel
from ahm_gym.data.listing import SPLIT_TABLE, by_stem, find_images, is_named, note_on_other_files
from ahm_gym.data.sample import Record, patient_of
from ahm_gym.data.splits import SplitTable
from ahm_gym.errors import InputError

NNUNET_FOLDERS: tuple[str, ...] = ("imagesTr", "imagesTs")


class FolderSource:
    """Images directly in a folder, or in its `images` or `imagesTr`.

    Labels are among the images, or in a folder `labels`, `labelsTr`, `masks`, `label` or `mask` inside the folder
    of the images or next to it. A label has the name of its image (the suffix may differ), to which `_mask`,
    `_segmentation`, `_label`, `_seg`, `_gt`, `_groundtruth` or `_annotation` may be added, before or after the number
    of the image; among the images it must be added. The label of nnU-Net's `case_0000` is `case`.

    The splits come from `split.csv` in the folder of the images or its parent, otherwise from the patients: DICOM's
    PatientID, or the part of the case's name before its last underscore.

    Volumes become slices in the plane in which they were acquired; constant slices are left out. The frames of a
    series in time become images of one case.
    """

    def __init__(self, folder: Path) -> None:
        self.name: str = folder.resolve().name
        self.folder: Path = find_images(folder)
        self.images: dict[str, Path]
        self.labels: Labels
        self.images, self.labels = find_labels(by_stem(self.folder), self.folder)
        places = (self.folder / SPLIT_TABLE, self.folder.resolve().parent / SPLIT_TABLE)
        self.table: SplitTable | None = next((SplitTable(path) for path in places if path.is_file()), None)
        named = any(case == without_channel(stem) != stem for stem, (case, _) in self.labels.items())
        self.channels_named: bool = named or is_named(self.folder, NNUNET_FOLDERS)
        pictures_only = all(suffix_of(path) in PICTURES for path in self.images.values())
        self.num_images: int | None = len(self.images) if pictures_only else None

    def fingerprint(self) -> list[Any]:
        paths = [*self.images.values(), *(label for _, label in self.labels.values())]
        if self.table is not None:
            paths.append(self.table.path)
        return [fingerprint_of(path) for path in paths]

    def records(self) -> Iterator[Record]:
        for note in self._notes():
            print(f"note: {self.name}: {note}.", file=sys.stderr)
        decided: Counter[str] = Counter()
        for stem, path in self.images.items():
            case, label_path = self.labels.get(stem, (stem, None))
            try:
                pixels, label = read_pair(path, label_path)
            except NotAnImage:
                if label_path is not None or len(self.images) == 1:
                    raise
                decided["left out, because they are DICOM objects without an image"] += 1
                continue
            decided.update(pixels.notes)
            decided.update(() if label is None else (f"{note} (labels)" for note in own_notes(label, pixels)))
            patient = pixels.patient or patient_of(without_channel(stem) if self.channels_named else stem)
            record = Record(
                pixels.array,
                None if label is None else label.array,
                stem,
                patient,
                origin=str(path),
                label_origin=str(label_path),
                split=None if self.table is None else self.table.find(path, stem, patient),
                spacing=None if pixels.spacing is None else (pixels.spacing[0], pixels.spacing[1]),
            )
            if pixels.is_volume:
                for frame in frames(dataclasses.replace(record, volume=case), pixels):
                    yield from slices(frame)
            else:
                yield record
        for note, count in sorted(decided.items()):
            print(f"note: {self.name}: {count} of {len(self.images)} files: {note}.", file=sys.stderr)

    def _notes(self) -> Iterator[str]:
        if note := note_on_other_files(self.folder):
            yield note
        if self.labels:
            _, first = next(iter(self.labels.values()))
            yield f"{len(self.labels)} of {len(self.images)} files have a label, from {first.parent}"
        if all(map(looks_like_label, self.images)):
            yield "all files are named like labels, and are used as images"


def read_pair(path: Path, label_path: Path | None) -> tuple[Pixels, Pixels | None]:
    """Reads an image and its label, if it has one, on the same grid.

    Raises:
        InputError: if a file cannot be read, or the label lies elsewhere than its image.
    """
    image = read_pixels(path)
    label = None if label_path is None else read_label(label_path, path, image)
    return with_frames(image, path, label), label


def read_label(path: Path, image_path: Path, image: Pixels) -> Pixels:
    """Reads the label of an image, with its axes in the order of the image.

    Raises:
        InputError: if the file cannot be read, or lies elsewhere than the image.
    """
    return match_label(read_pixels(path, is_label=True), path, image, image_path)


def own_notes(label: Pixels, image: Pixels) -> Iterator[str]:
    """The notes on a label that do not repeat those on its image; the plane of a label is always that of its image."""
    for note in label.notes:
        if note not in image.notes and not note.startswith(("sliced in", "with a fourth axis")):
            yield note


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
    for index in range(image.shape[2]):
        picture = image[:, :, index]
        if picture.min() != picture.max():  # true for NaN, which is refused later
            yield dataclasses.replace(
                volume,
                image=picture,
                label=None if label is None else label[:, :, index],
                id=f"{volume.id}_s{index:03d}",
                origin=f"{volume.origin} (slice {index})",
                label_origin=f"{volume.label_origin} (slice {index})",
            )

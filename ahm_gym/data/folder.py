"""A folder of images, with labels in the same folder or in a separate one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ahm_gym.data.files import PICTURES, Pixels, fingerprint_of, read_pixels, suffix_of
from ahm_gym.data.labels import Labels, find_labels, looks_like_label, without_channel
from ahm_gym.data.listing import SPLIT_TABLE, by_stem, find_images, is_named, note_on_other_files
from ahm_gym.data.sample import Record
from ahm_gym.data.splits import SplitTable
from ahm_gym.errors import InputError

NNUNET_FOLDERS: tuple[str, ...] = ("imagesTr", "imagesTs")


class FolderSource:
    """Images directly in a folder, or in its `images` or `imagesTr`.

    Labels are among the images, or in a folder `labels`, `labelsTr`, `masks`, `label` or `mask` inside the folder
    of the images or next to it. A label has the name of its image (the suffix may differ), to which `_mask`,
    `_segmentation`, `_label`, `_seg`, `_gt`, `_groundtruth` or `_annotation` may be added, before or after the number
    of the image; among the images it must be added. The label of nnU-Net's `case_0000` is `case`.

    The splits come from `split.csv` in the folder of the images or its parent, otherwise from the patients; see
    `find_patients`.

    Volumes become slices along the last axis; constant slices are left out.
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
        for stem, path in self.images.items():
            pixels = read_pixels(path)
            case, label_path = self.labels.get(stem, (stem, None))
            label = None if label_path is None else read_label(label_path, path, pixels)
            record = Record(
                pixels.array,
                label,
                stem,
                pixels.patient,
                origin=str(path),
                label_origin=str(label_path),
                split=None if self.table is None else self.table.of_file(path, stem),
                spacing=pixels.spacing,
                slice_spacing=pixels.slice_spacing,
                place=without_channel(stem) if self.channels_named else stem,
            )
            if pixels.is_volume:
                yield from slices(dataclasses.replace(record, volume=case))
            else:
                yield record

    def _notes(self) -> Iterator[str]:
        if note := note_on_other_files(self.folder):
            yield note
        if self.labels:
            _, first = next(iter(self.labels.values()))
            yield f"{len(self.labels)} of {len(self.images)} files have a label, from {first.parent}"
        if all(map(looks_like_label, self.images)):
            yield "all files are named like labels, and are used as images"


def read_label(path: Path, image_path: Path, image: Pixels) -> np.ndarray:
    """Reads the label of an image.

    Raises:
        InputError: if the file cannot be read, or states another orientation than the image.
    """
    label = read_pixels(path, is_label=True)
    if label.orientation and image.orientation and label.orientation != image.orientation:
        found, expected = "".join(label.orientation), "".join(image.orientation)
        raise InputError(
            f"{path} has the orientation {found} and its image {image_path} {expected}: expected the same; copy the "
            "image's affine to the label if their voxels already match, otherwise resample it with nearest neighbours."
        )
    return label.array


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

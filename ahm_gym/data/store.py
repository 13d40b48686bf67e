"""Prepared images and labels in flat memory-mapped files: `StoreWriter` writes, `ImageDataset` reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from ahm_gym.data.checksums import IMAGES_FILE, INDEX_FILE, LABELS_FILE, read_checksums
from ahm_gym.data.crops import central_box, cut, padded
from ahm_gym.data.ignored import IGNORED
from ahm_gym.data.sample import SPLITS, Sample, Split
from ahm_gym.data.wording import counted
from ahm_gym.errors import InputError


class StoreWriter:
    """Appends images and labels to the flat files of a new store.

    Images and labels may have any size: the place of each is its offset (in values) and its size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Path = folder
        self._files = contextlib.ExitStack()
        self._images = self._files.enter_context((folder / IMAGES_FILE).open("wb"))
        self._labels = self._files.enter_context((folder / LABELS_FILE).open("wb"))

    def add_image(self, image: Float[Tensor, "C *S"]) -> list[int]:
        """Appends an image or a volume and returns its place: offset, and the length of each axis."""
        offset = self._images.tell() // 2
        self._images.write(image.numpy().astype(np.float16).tobytes())
        return [offset, *image.shape[1:]]

    def add_label(self, label: UInt8[np.ndarray, "*S"]) -> list[int]:
        """Appends a label and returns its place: offset, and the length of each axis."""
        offset = self._labels.tell()
        self._labels.write(label.tobytes())
        return [offset, *label.shape]

    def finish(self, index: dict[str, Any]) -> None:
        """Flushes everything to disk, and writes the index last."""
        for file in (self._images, self._labels):
            file.flush()
            os.fsync(file.fileno())
        self.close()
        with (self.folder / INDEX_FILE).open("w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


def replace_label_value(folder: Path, old: int, new: int) -> None:
    """Replaces a label value everywhere in a store, in pieces of bounded size."""
    path = folder / LABELS_FILE
    if path.stat().st_size == 0:
        return
    labels = np.memmap(path, dtype=np.uint8, mode="r+")
    for start in range(0, len(labels), 1 << 24):
        piece = labels[start : start + (1 << 24)]
        piece[piece == old] = new
    labels.flush()


class ImageDataset:
    """Images, labels and statistics of a prepared store, read through a memory map.

    It is cheap to pickle: a copy in another process opens the same files.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.folder: Path = folder
        self.name: str = index["name"]
        self.channels: int = index["channels"]
        self.axes: int = index.get("axes", 2)
        """2 for images and slices, 3 for volumes."""
        self.num_classes: int = index["num_classes"]
        self.mean: tuple[float, ...] = tuple(index["mean"])
        self.std: tuple[float, ...] = tuple(index["std"])
        self.patients: dict[str, str] = index["patients"]
        """The patient of each case, only for patients with several cases."""
        self.class_names: dict[int, str] = {
            label: index.get("class_names", {}).get(str(label), f"class {label}")
            for label in range(1, self.num_classes)
        }
        """The name of each foreground class; `class 1` and so on where the data gives none."""
        self.folds: list[list[Split]] = index.get("folds", [])
        """The split of every image in each fold that the data names."""
        self.processing: dict[str, Any] = index["processing"]
        """Fields of `Processing` that are not the default: what was done to the values."""
        self.has_ignored: bool = index.get("ignored", False)
        """Whether labels have pixels that are ignored, with the value `IGNORED`."""
        self.said: list[str] = index["said"]
        """What was said when the images were read, without a full stop."""
        self.found: dict[str, Any] = index["found"]
        """How patients were found: `patients` (of each image), `rule`, `certainty`, `doubts` and a `summary`."""
        self._records: dict[str, list[Any]] = index["records"]
        self._images = _open_flat(folder / IMAGES_FILE, np.float16)
        self._labels = _open_flat(folder / LABELS_FILE, np.uint8)
        self._mean = torch.tensor(self.mean).view(-1, *(1,) * self.axes)
        self._std = torch.tensor(self.std).view(-1, *(1,) * self.axes)

    def __len__(self) -> int:
        return len(self._records["id"])

    def __str__(self) -> str:
        splits = ", ".join(f"{len(self.indices(split))} {split}" for split in SPLITS)
        labelled = sum(label is not None for label in self._records["label"])
        return f"{self.name}: {counted(len(self), self.nouns[0])} ({splits}), {labelled} with labels"

    @property
    def nouns(self) -> tuple[str, str]:
        """What a sample and one of its values are called: image and pixel, or volume and voxel."""
        return ("image", "pixel") if self.axes == 2 else ("volume", "voxel")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "splits": self._records["split"]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ImageDataset.__init__(self, state["folder"])
        self._records["split"] = state["splits"]

    def with_splits(self, splits: Sequence[Split]) -> ImageDataset:
        """The same images with other splits, one for each image; mean and deviation stay as they are.

        Raises:
            InputError: if there is not one split for each image.
        """
        if len(splits) != len(self):
            raise InputError(
                f"{self.name} has {len(self)} images and not {len(splits)}: give a split for each."
            )
        other = ImageDataset(self.folder)
        other._records["split"] = list(splits)
        return other

    @property
    def notes(self) -> list[str]:
        """What was said of the files, how the patients were found and split, what scaling was found, and doubts."""
        return [*self.said, self.found["summary"], *self.found.get("told", ()), *self.found["doubts"]]

    def describe_patients(self) -> dict[str, Any]:
        """For files of results: the number of patients, the rule by which they were found, and what is doubtful."""
        found = self.found
        return {
            "patients": len(set(found["patients"])),
            "rule": found["rule"],
            "certainty": found["certainty"],
            "doubts": found["doubts"],
        }

    def digest(self) -> str:
        """A hash of twelve hexadecimal digits of the names, splits, labels and the images' mean and deviation."""
        described = [self._records, self.mean, self.std, self.num_classes]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest.update(self._labels.numpy().data)
        return digest.hexdigest()[:12]

    def content_digest(self) -> str:
        """A hash of twelve hexadecimal digits of all images, labels, names and splits; stored when they are prepared.

        Without a stored hash of the files, it is that of `digest`.
        """
        checksums = read_checksums(self.folder)
        if checksums is None:
            return self.digest()
        described = [self._records, self.mean, self.std, self.num_classes]
        described += [checksums[name] for name in (IMAGES_FILE, LABELS_FILE)]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]

    def indices(self, split: Split, *, labelled: bool = False) -> list[int]:
        """The indices of a split's samples, in a fixed order; with `labelled`, only those that have a label."""
        labels = self._records["label"]
        return [
            index
            for index, name in enumerate(self._records["split"])
            if name == split and (not labelled or labels[index] is not None)
        ]

    def image(self, index: int) -> Float[Tensor, "C *S"]:
        """The image of a sample, in [0, 1], without its label and names."""
        return self.values(index).float()

    def values(self, index: int) -> Float16[Tensor, "C *S"]:
        """The image of a sample as it is stored: what is not used of it is not read."""
        offset, *size = self._records["image"][index]
        length = self.channels * math.prod(size)
        return self._images[offset : offset + length].view(self.channels, *size)

    def crop(self, index: int, starts: tuple[int, ...], size: tuple[int, ...]) -> Float[Tensor, "C *S2"]:
        """A part of a volume, in [0, 1]; nothing else of it is read. It is 0 beyond the volume.

        Args:
            index: the sample.
            starts: the first voxel along each axis; may be negative.
            size: number of voxels along each axis.
        """
        return cut(self.values(index), (*starts, *size), size)

    def label_crop(self, index: int, starts: tuple[int, ...], size: tuple[int, ...]) -> UInt8[Tensor, "*S2"]:
        """The label of a part of a volume, on the grid of its image; `IGNORED` beyond the volume, or without a label.

        The arguments are those of `crop`.
        """
        label, whole = self.label(index), self.size_of(index)
        if label is None:
            return torch.full(size, IGNORED, dtype=torch.uint8)
        places = [
            nearest(range(max(start, 0), min(start + length, end)), end, own)
            for start, length, end, own in zip(starts, size, whole, label.shape, strict=True)
        ]
        for axis, along in enumerate(places):  # nothing is read yet
            label = label.narrow(axis, int(along[0]), int(along[-1] - along[0]) + 1)
        for axis, along in enumerate(places):
            label = label.index_select(axis, along - along[0])
        return padded(label, (*starts, *size), whole, IGNORED)

    def split_of(self, index: int) -> Split:
        """The split of a sample."""
        return self._records["split"][index]

    def case_of(self, index: int) -> str:
        """The case of a sample, without reading its image."""
        return self._records["case"][index]

    def size_of(self, index: int) -> tuple[int, ...]:
        """The length of each axis of a stored image, without reading it."""
        return tuple(self._records["image"][index][1:])

    def spacing_of(self, index: int) -> tuple[float, ...] | None:
        """Millimetres per pixel along each axis of a sample's file; None if unknown."""
        spacing = self._records["spacing"][index]
        return None if spacing is None else tuple(spacing)

    def is_labelled(self, index: int) -> bool:
        """Whether a sample has a label."""
        return self._records["label"][index] is not None

    def sample(self, index: int) -> Sample:
        """The image, label and names of one sample."""
        position = self._records["position"][index] if self.has_slices else None
        label = self.label(index)
        return Sample(
            image=self.image(index),
            label=None if label is None else label.long(),
            id=self._records["id"][index],
            case=self._records["case"][index],
            spacing=self.spacing_of(index),
            position=None if position is None else (position[0], position[1]),
            slice_spacing=self._records["slice_spacing"][index] if self.has_slices else None,
        )

    @property
    def has_slices(self) -> bool:
        """Whether some images are slices of volumes."""
        return "position" in self._records

    def label(self, index: int) -> UInt8[Tensor, "*S0"] | None:
        """The label of a sample as it is stored, with `IGNORED` for ignored pixels; None if it has none."""
        place = self._records["label"][index]
        if place is None:
            return None
        offset, *size = place
        return self._labels[offset : offset + math.prod(size)].view(size)

    @property
    def ids(self) -> list[str]:
        """The names of all samples."""
        return self._records["id"]

    def patient(self, index: int) -> str:
        """The patient of a sample; its case if no more is known."""
        case: str = self._records["case"][index]
        return self.patients.get(case, case)

    def normalise(self, images: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Normalises images (..., C, *S) so that every channel of the train split has mean 0 and deviation 1."""
        self._check_channels(images)
        return (images - self._mean.to(images)) / self._std.to(images)

    def denormalise(self, images: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The inverse of `normalise`; not clipped to [0, 1]."""
        self._check_channels(images)
        return images * self._std.to(images) + self._mean.to(images)

    def resized(self, indices: Sequence[int], image_size: tuple[int, ...]) -> Float[Tensor, "B C *S"]:
        """Normalised images, each scaled to cover `image_size` and cropped to its centre; volumes are not scaled."""
        if not indices:
            return torch.empty(0, self.channels, *image_size)
        return self.normalise(torch.stack([self._centre(index, image_size) for index in indices]))

    def _centre(self, index: int, image_size: tuple[int, ...]) -> Float[Tensor, "C *S"]:
        if self.axes == 2:
            return cover(self.image(index), image_size)
        return cut(self.values(index), central_box(self.size_of(index), image_size), image_size)

    def _check_channels(self, images: Tensor) -> None:
        found = images.shape[-1 - self.axes]
        if found != self.channels:
            raise InputError(
                f"the images have {found} channels and the data {self.name!r} has "
                f"{self.channels}: normalise images of the same data."
            )


def nearest(places: range, length: int, own: int) -> Int[Tensor, " n"]:
    """The pixels of an axis of length `own` that lie nearest to some places on one of `length` that covers the same."""
    return ((torch.tensor(places) + 0.5) * own / length).long()


def cover(image: Float[Tensor, "C H W"], image_size: tuple[int, ...]) -> Float[Tensor, "C H2 W2"]:
    """Scales an image, with its aspect ratio kept, to cover `image_size`, and crops its centre."""
    size = list(covering_size((image.shape[1], image.shape[2]), image_size))
    return functional.center_crop(functional.resize(image, size, antialias=True), list(image_size))


def covering_size(size: tuple[int, ...], image_size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of an image of `size` after scaling it, aspect ratio kept, to just cover `image_size`."""
    scale = max(image_size[0] / size[0], image_size[1] / size[1])
    return max(round(size[0] * scale), image_size[0]), max(round(size[1] * scale), image_size[1])


def working_size(
    size: tuple[int, ...], image_size: tuple[int, ...], native_resolution: bool
) -> tuple[int, ...]:
    """Rows and columns at which an image of this size is segmented; never smaller than the training size."""
    if native_resolution and size[0] >= image_size[0] and size[1] >= image_size[1]:
        return size
    return covering_size(size, image_size)


def _open_flat(path: Path, dtype: type[np.generic]) -> Tensor:
    """The values of a file as a flat tensor; pages are read on first use."""
    if path.stat().st_size == 0:
        return torch.from_numpy(np.empty(0, dtype))
    # Copy-on-write, because torch warns about arrays that are not writable.
    return torch.from_numpy(np.memmap(path, dtype=dtype, mode="c"))

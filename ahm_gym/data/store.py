"""Prepared images and labels in flat memory-mapped files: how they are written, and `ImageDataset`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from ahm_gym.data.sample import SPLITS, Sample, Split
from ahm_gym.errors import InputError

INDEX_FILE = "index.json"
IMAGES_FILE = "images.float16"
LABELS_FILE = "labels.uint8"


class StoreWriter:
    """Appends images and labels to the flat files of a new store.

    Images and labels may have any sizes: the place of each is an offset (in values) and a size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = contextlib.ExitStack()
        self._images = self._files.enter_context((folder / IMAGES_FILE).open("wb"))
        self._labels = self._files.enter_context((folder / LABELS_FILE).open("wb"))

    def add_image(self, image: Float[Tensor, "C H W"]) -> list[int]:
        """The place of the image: offset, rows, columns."""
        offset = self._images.tell() // 2
        self._images.write(image.numpy().astype(np.float16).tobytes())
        return [offset, *image.shape[1:]]

    def add_label(self, label: UInt8[np.ndarray, "H W"]) -> list[int]:
        """The place of the label: offset, rows, columns."""
        offset = self._labels.tell()
        self._labels.write(label.tobytes())
        return [offset, *label.shape]

    def finish(self, index: dict) -> None:
        """Flush everything to the disk; the index comes last."""
        for file in (self._images, self._labels):
            file.flush()
            os.fsync(file.fileno())
        self.close()
        with (self.folder / INDEX_FILE).open("w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self._files.close()


def replace_label_value(folder: Path, old: int, new: int) -> None:
    """Change one label value of a store everywhere, in pieces of bounded size."""
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

    It is small to pickle: a copy in another process opens the same files again.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.folder = folder
        self.name: str = index["name"]
        self.channels: int = index["channels"]
        self.num_classes: int = index["num_classes"]
        self.mean: tuple[float, ...] = tuple(index["mean"])
        self.std: tuple[float, ...] = tuple(index["std"])
        self.patients: dict[str, str] = index["patients"]
        """Of the cases of patients who have several."""
        self._records: dict[str, list] = index["records"]
        self._images = _open_flat(folder / IMAGES_FILE, np.float16)
        self._labels = _open_flat(folder / LABELS_FILE, np.uint8)
        self._mean = torch.tensor(self.mean).view(-1, 1, 1)
        self._std = torch.tensor(self.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._records["id"])

    def __str__(self) -> str:
        splits = ", ".join(f"{len(self.indices(split))} {split}" for split in SPLITS)
        labelled = sum(label is not None for label in self._records["label"])
        return f"{self.name}: {len(self)} images ({splits}), {labelled} with labels"

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        ImageDataset.__init__(self, state["folder"])

    def digest(self) -> str:
        """Twelve letters that change with the names, splits and labels, or with what the images are on average."""
        described = [self._records, self.mean, self.std, self.num_classes]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest.update(self._labels.numpy().tobytes())
        return digest.hexdigest()[:12]

    def indices(self, split: Split, *, labelled: bool = False) -> list[int]:
        """Indices of the split's samples, in a fixed order; only those with a label if `labelled`."""
        labels = self._records["label"]
        return [
            index
            for index, name in enumerate(self._records["split"])
            if name == split and (not labelled or labels[index] is not None)
        ]

    def image(self, index: int) -> Float[Tensor, "C H W"]:
        """The image in [0, 1], without the rest of its sample."""
        offset, height, width = self._records["image"][index]
        values = self._images[offset : offset + self.channels * height * width]
        return values.view(self.channels, height, width).float()

    def sample(self, index: int) -> Sample:
        """Image, label and names of one sample."""
        place, spacing = self._records["label"][index], self._records["spacing"][index]
        label = None
        if place is not None:
            offset, height, width = place
            label = self._labels[offset : offset + height * width].view(height, width).long()
        return Sample(
            image=self.image(index),
            label=label,
            id=self._records["id"][index],
            case=self._records["case"][index],
            spacing=None if spacing is None else (spacing[0], spacing[1]),
        )

    def normalise(self, images: Float[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """Images with the train split's mean 0 and deviation 1 in every channel."""
        self._check_channels(images)
        return (images - self._mean.to(images)) / self._std.to(images)

    def denormalise(self, images: Float[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """The inverse of `normalise`; not clipped to [0, 1]."""
        self._check_channels(images)
        return images * self._std.to(images) + self._mean.to(images)

    def resized(self, indices: Sequence[int], image_size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Normalised whole images: fitted so that they cover `image_size`, the surplus cropped evenly."""
        if not indices:
            return torch.empty(0, self.channels, *image_size)
        images = [cover(self.image(index), image_size) for index in indices]
        return self.normalise(torch.stack(images))

    def _check_channels(self, images: Tensor) -> None:
        if images.shape[-3] != self.channels:
            raise InputError(
                f"the images have {images.shape[-3]} channels and the data {self.name!r} has "
                f"{self.channels}: normalise images of the same data."
            )


def cover(image: Float[Tensor, "C H W"], image_size: tuple[int, int]) -> Float[Tensor, "C H2 W2"]:
    """The image scaled (aspect kept) until it covers `image_size`, and its centre cut out."""
    size = list(covering_size((image.shape[1], image.shape[2]), image_size))
    return functional.center_crop(functional.resize(image, size, antialias=True), list(image_size))


def covering_size(size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an image of `size` once it is scaled, aspect kept, to just cover `image_size`."""
    scale = max(image_size[0] / size[0], image_size[1] / size[1])
    return max(round(size[0] * scale), image_size[0]), max(round(size[1] * scale), image_size[1])


def _open_flat(path: Path, dtype: type[np.generic]) -> Tensor:
    """The file's values as one long tensor; pages are read when they are first used."""
    if path.stat().st_size == 0:
        return torch.from_numpy(np.empty(0, dtype))
    # Copy-on-write, because torch warns of arrays that it could not write to.
    return torch.from_numpy(np.memmap(path, dtype=dtype, mode="c"))

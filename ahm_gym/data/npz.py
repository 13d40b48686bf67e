"""NumPy archives with the keys of MedSegBench or MedMNIST, read one image at a time."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ahm_gym.data.formats import fingerprint_of
from ahm_gym.data.sample import SPLITS, Record, Split
from ahm_gym.errors import InputError, say

EXPECTED: str = "train_images, and optionally val_images, test_images and, for each split, _label and _id"


@runtime_checkable
class Readable(Protocol):
    """The part of an open file's interface that is used here."""

    def read(self, size: int = -1, /) -> bytes: ...


class NpzSource:
    """The images and masks of an `.npz` file: `{train,val,test}_images`, `_label`, `_id`.

    Images are (N, H, W) or (N, H, W, C); MedMNIST's cubes (N, S, S, S) become slices along the last
    axis. MedMNIST's `_labels` are not read: they are classes of images, not of pixels.
    """

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.name: str = path.stem
        with self._opened() as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if "train_images" not in keys:
                raise InputError(
                    f"{path} has the keys {', '.join(sorted(keys)) or '(none)'}: expected {EXPECTED}; "
                    "rename its arrays."
                )
            self.unread: list[str] = sorted(
                key for key in keys if key.endswith("_images") and key[:-7] not in SPLITS
            )
            read = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "label", "id")]
            self.shapes: dict[str, tuple[int, ...]] = {
                key: array_shape(archive, key) for key in read if key in keys
            }
        for split in SPLITS:
            self._check_shapes(split)
        cubes = len(set(self.shapes["train_images"][1:])) == 1 and len(self.shapes["train_images"]) == 4
        self.num_images: int | None = (
            None if cubes else sum(self.shapes.get(f"{s}_images", (0,))[0] for s in SPLITS)
        )

    def fingerprint(self) -> list[Any]:
        return fingerprint_of(self.path)

    def records(self) -> Iterator[Record]:
        if self.unread:
            say(
                f"note: {self.name}: {', '.join(self.unread)} are left out; splits are named {', '.join(SPLITS)}.",
            )
        with self._opened() as archive:
            for split in SPLITS:
                if f"{split}_images" in self.shapes:
                    yield from self._split_records(archive, split)

    def _split_records(self, archive: zipfile.ZipFile, split: Split) -> Iterator[Record]:
        labels, ids = (
            array_rows(archive, key) if key in self.shapes else None
            for key in (f"{split}_label", f"{split}_id")
        )
        for number, image in enumerate(array_rows(archive, f"{split}_images")):
            label = None if labels is None else next(labels)
            name = f"{split}_{number}" if ids is None else _text(next(ids))
            origin = f"{self.path} ({split}_images[{number}])"
            label_origin = f"{self.path} ({split}_label[{number}])"
            if label is None and image.ndim == 3 and len(set(image.shape)) == 1:
                for depth in range(image.shape[2]):
                    slice_name = f"{name}_s{depth:03d}"
                    yield Record(image[:, :, depth], None, slice_name, None, origin, volume=name, split=split)
            else:
                yield Record(image, label, name, None, origin, label_origin, split=split)

    def _check_shapes(self, split: Split) -> None:
        shape = self.shapes.get(f"{split}_images")
        if shape is None:
            return
        if len(shape) not in (3, 4):
            raise InputError(
                f"{self.path} has {split}_images of the shape {shape}: expected images, rows, columns and, "
                "optionally, channels; reshape them."
            )
        if split == "train" and shape[0] == 0:
            raise InputError(
                f"the train split of {self.path} is empty: expected at least one training image."
            )
        for key in (f"{split}_label", f"{split}_id"):
            other = self.shapes.get(key)
            empty = key.endswith("_id") and other is not None and 0 in other[1:]
            if other is not None and (other[:1] != shape[:1] or empty):
                raise InputError(
                    f"{self.path} has {key} of the shape {other}: expected one for each of the "
                    f"{shape[0]} images of {split}_images."
                )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """Opens the archive, and turns a failure to read it into an InputError."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except InputError:
            raise
        except RuntimeError as error:  # of zipfile, for a password or a method that it does not know
            raise InputError(
                f"{self.path} cannot be read ({error}): expected an .npz file as numpy saves it; save its arrays "
                "again with np.savez_compressed."
            ) from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{self.path} cannot be read ({error}): expected a complete .npz file; copy it again."
            ) from error


def array_shape(archive: zipfile.ZipFile, key: str) -> tuple[int, ...]:
    """The shape of an array in the archive, without reading it."""
    with archive.open(f"{key}.npy") as file:
        shape, _, dtype = _read_header(file)
    if dtype.hasobject:
        raise InputError(
            f"{archive.filename} has {key} as an array of Python objects: expected numbers, or strings for ids; save "
            "ids with .astype(str), and images of different sizes as files in a folder."
        )
    return shape


def array_rows(archive: zipfile.ZipFile, key: str) -> Iterator[np.ndarray]:
    """Yields the rows of an array in the archive; each is decompressed when it is needed."""
    with archive.open(f"{key}.npy") as file:
        shape, column_major, dtype = _read_header(file)
        if column_major:
            data = np.frombuffer(_exactly(file, math.prod(shape) * dtype.itemsize), dtype)
            yield from data.reshape(shape, order="F")
            return
        size = math.prod(shape[1:]) * dtype.itemsize
        for _ in range(shape[0]):
            yield np.frombuffer(_exactly(file, size), dtype).reshape(shape[1:])


def _read_header(file: Readable) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"an array of the format version {version}")
    return read[version](file)


def _exactly(file: Readable, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("an array ends too early")
    return data


def _text(value: np.ndarray) -> str:
    item = value.ravel()[0]
    return item.decode() if isinstance(item, bytes) else str(item)

"""The records that a data source yields, and the samples that a dataset returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ahm_gym.data.processing import PLAIN, Processing

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image with its label and metadata."""

    image: Float[Tensor, "C *S"]
    """Intensities in [0, 1], clipped at the image's 0.5 and 99.5 percentiles over all channels."""
    label: Int[Tensor, "*S0"] | None
    """Class indices at the label's native resolution; `IGNORED` where pixels are ignored."""
    id: str
    case: str
    """Patient or volume if known, otherwise the id."""
    spacing: tuple[float, ...] | None
    """Millimetres per pixel of the native resolution (row, column), or per voxel along each axis; None if unknown."""
    position: tuple[int, int] | None = None
    """Number of this slice in its volume, from 0, and the number of slices of the volume; None if it is no slice."""
    slice_spacing: float | None = None
    """Millimetres between two slices of the volume; None if unknown."""

    @property
    def voxel(self) -> tuple[float, ...] | None:
        """Millimetres along each axis, and of a slice of a volume also per slice; None if one is unknown."""
        if self.spacing is None or self.position is None:
            return self.spacing
        return None if self.slice_spacing is None else (*self.spacing, self.slice_spacing)


@dataclass(frozen=True)
class Record:
    """One image as a source reads it, before any check or scaling."""

    image: np.ndarray
    """(H, W) or (H, W, C), any real dtype; with `Processing.volumes` the three axes of a volume, and perhaps C."""
    label: np.ndarray | None
    """The axes of the image, or these and equal channels."""
    id: str
    patient: str | None
    """The patient that the file itself names, as DICOM does; None if it names none. See `find_patients`."""
    origin: str
    """The file of the image, for error messages."""
    label_origin: str = ""
    """The file of the label, for error messages."""
    volume: str | None = None
    """The volume from which this image is a slice, if any."""
    split: Split | None = None
    """None: chosen by patient once all records are known."""
    folds: tuple[Split, ...] = ()
    """The split in each fold, if the data names folds."""
    spacing: tuple[float, ...] | None = None
    """Millimetres per pixel (row, column), or per voxel of a volume."""
    position: tuple[int, int] | None = None
    """Number of this slice in its volume, from 0, and the number of slices of the volume, if it is a slice."""
    slice_spacing: float | None = None
    """Millimetres between two slices of the volume."""
    place: str = ""
    """Path relative to the folder of the data, without suffix and with `/` between its parts, in which the patient is
    sought. Empty: the volume, or else the id."""
    modalities: bool = False
    """The channels are modalities, each of which is scaled by itself."""
    processing: Processing = PLAIN
    """What is done to the values; that of labels has been done."""
    label_error: str = ""
    """Why the label of the image cannot be used, if there is one; `label` is None then."""


@runtime_checkable
class Source(Protocol):
    """A source of raw images."""

    name: str

    @property
    def num_images(self) -> int | None:
        """Number of images; None if it is only known after reading them."""
        ...

    def fingerprint(self) -> list[Any]:
        """JSON values that change whenever the records change."""
        ...

    def records(self) -> Iterator[Record]:
        """Reads the images one by one."""
        ...


class OneSplit:
    """A source whose images are all in train, so that no class has to occur in a part of them."""

    def __init__(self, source: Source) -> None:
        self.source: Source = source
        self.name: str = source.name
        self.num_images: int | None = source.num_images

    def fingerprint(self) -> list[Any]:
        return ["one split", *self.source.fingerprint()]

    def records(self) -> Iterator[Record]:
        for record in self.source.records():
            yield replace(record, split="train")

"""What a data source yields, and what a dataset gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it."""

    image: Float[Tensor, "C H W"]
    """In [0, 1]: clipped at the image's 0.5 and 99.5 percentiles, all channels together."""
    label: Int[Tensor, "H0 W0"] | None
    """Class indices at the label's native resolution."""
    id: str
    case: str
    """Patient or volume where the ids tell, else the id itself."""
    spacing: tuple[float, float] | None
    """Millimetres per native pixel (row, column); None where unknown."""


@dataclass(frozen=True)
class Record:
    """One image as a source reads it, before anything is checked or scaled."""

    image: np.ndarray
    """(H, W) or (H, W, C), any real dtype."""
    label: np.ndarray | None
    """(H, W), or (H, W, C) with equal channels."""
    id: str
    patient: str
    """Images of one patient stay in one split."""
    origin: str
    """The file of the image, as error messages name it."""
    label_origin: str = ""
    """The file of the label, as error messages name it."""
    volume: str | None = None
    """The volume that this image is a slice of."""
    split: Split | None = None
    """None: decided by patient once all records are known."""
    spacing: tuple[float, float] | None = None
    """Millimetres per pixel (row, column)."""


@runtime_checkable
class Source(Protocol):
    """Raw images from one place."""

    name: str
    num_images: int | None
    """Images to come; None where only reading them tells."""

    def fingerprint(self) -> list:
        """JSON values that change whenever the records do."""
        ...

    def records(self) -> Iterator[Record]: ...


def patient_of(name: str) -> str:
    """The part of a name before its last underscore, the whole name where there is none."""
    return name.rsplit("_", 1)[0] or name

"""How a source is prepared when it cannot be prepared as it is: without its labels, or with grey images in colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ahm_gym.data.sample import Record, Source
from ahm_gym.data.scaling import class_indices
from ahm_gym.data.splits import HasTable, SplitTable
from ahm_gym.errors import InputError


class LabelError(InputError):
    """A label that cannot be used; pretraining can do without it."""


class MixedColoursError(InputError):
    """Grey images among colour ones."""


@runtime_checkable
class Recolourable(Protocol):
    """A source that can repeat its grey images in three channels."""

    def in_colour(self) -> Source:
        """The same source, with three channels in every image."""
        ...


class WithoutLabels:
    """A source without its labels."""

    def __init__(self, source: Source) -> None:
        self.source: Source = source
        self.name: str = source.name

    @property
    def num_images(self) -> int | None:
        return self.source.num_images

    def fingerprint(self) -> list[Any]:
        return self.source.fingerprint()

    def records(self) -> Iterator[Record]:
        for record in self.source.records():
            yield replace(record, label=None, label_error="")

    @property
    def table(self) -> SplitTable | None:
        return self.source.table if isinstance(self.source, HasTable) else None

    def in_colour(self) -> Source:
        return WithoutLabels(
            self.source.in_colour() if isinstance(self.source, Recolourable) else self.source
        )


def checked_label(record: Record, size: tuple[int, ...]) -> np.ndarray | None:
    """The label as class indices.

    Raises:
        LabelError: if it cannot be used.
    """
    if record.label_error:
        raise LabelError(record.label_error)
    if record.label is None:
        return None
    try:
        ignored = bool(record.processing.ignore)
        return class_indices(record.label, size, record.label_origin, ignored=ignored)
    except InputError as error:
        raise LabelError(str(error)) from error

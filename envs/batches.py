"""The images of an environment: what it opens, and the batches that it goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ahm_gym.data import BatchStream, ImageDataset, open_data
from ahm_gym.errors import InputError


class ImageBatches:
    """Batches in the order of a seed; none before `open`.

    Args:
        data: a dataset, or normalised images (N, C, H, W).
        num_images: images in a batch.
        image_size: rows and columns of the images given out.
        num_workers: processes that load images; 0 loads in this one.
        pin_memory: whether they go to a GPU.
    """

    def __init__(
        self,
        data: ImageDataset | Tensor,
        num_images: int,
        image_size: tuple[int, int],
        num_workers: int,
        pin_memory: bool = False,
    ) -> None:
        self.data, self.num_images, self.image_size = data, num_images, image_size
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._stream: BatchStream | None = None
        self._seed = 0
        self._present: Tensor | None = None
        self._again = False

    @property
    def opened(self) -> bool:
        return self._stream is not None

    def open(self, seed: int, start: int = 0) -> None:
        """Begins with batch `start` of the seed's order."""
        present = self._present is not None and self.state_dict() == {"seed": seed, "batch": start}
        self._again = present and self.num_workers > 0
        if self._again:  # the loading processes go on
            return
        self.close()
        self._present = None
        self._seed = seed
        self._stream = BatchStream(
            self.data,
            batch_size=self.num_images,
            image_size=self.image_size,
            seed=seed,
            num_workers=self.num_workers,
            start=start,
            pin_memory=self.pin_memory,
        )

    def next(self) -> Float[Tensor, "B C H W"]:
        assert self._stream is not None, "open() comes first"
        if self._present is None or not self._again:
            self._present = next(self._stream)
        self._again = False
        return self._present

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def state_dict(self) -> dict[str, Any]:
        """The present batch: its seed and number."""
        assert self._stream is not None, "open() comes first"
        return {"seed": self._seed, "batch": self._stream.index - 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the batch of `state` come next."""
        self.open(state["seed"], state["batch"])


def check_reset_mask(options: dict[str, Any] | None) -> None:
    """Raises InputError where the options of a reset leave out some images of the batch."""
    reset_mask = (options or {}).get("reset_mask")
    if reset_mask is not None and not np.all(reset_mask):
        raise InputError(
            "options['reset_mask'] leaves some images out: all images of a batch are one update of the "
            "autoencoder and end together; reset all of them."
        )


def open_images(
    data: str | Path | ImageDataset | Tensor | None, root: Path | None, image_size: tuple[int, int]
) -> ImageDataset | Tensor:
    """The opened data that the `data` argument of an environment means."""
    if isinstance(data, (ImageDataset, Tensor)):
        return data
    return open_data(None if data is None else str(data), root=root, image_size=image_size)


def channels_of(data: ImageDataset | Tensor) -> int:
    return data.shape[1] if isinstance(data, Tensor) else data.channels


def check_channels(of_data: int, of_autoencoder: int) -> None:
    """Raises InputError where the autoencoder takes images of another number of channels."""
    if of_data != of_autoencoder:
        raise InputError(
            f"the data has {of_data} channels and the autoencoder takes {of_autoencoder}: "
            "build it with that number of channels, or choose other data."
        )

"""The images of an environment: its data, and a stream of batches that can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ahm_gym.data import BatchStream, ImageDataset, open_data
from ahm_gym.data.crops import check_crop
from ahm_gym.device import ranks
from ahm_gym.errors import InputError


class ImageBatches:
    """A stream of batches in an order fixed by a seed; `open` starts it.

    Args:
        data: a dataset, or normalised images (N, C, H, W) or volumes (N, C, D, H, W).
        num_images: images in a batch.
        image_size: length of each axis of the images, in pixels.
        num_workers: processes that load images; 0 loads in this process.
        pin_memory: whether to pin the batches in memory, for copies to a GPU.
        crop: which random crops to use, a name in `CROPS`.

    Raises:
        InputError: if `crop` is unknown, or the images are a tensor, which is never cropped.
    """

    def __init__(
        self,
        data: ImageDataset | Tensor,
        num_images: int,
        image_size: tuple[int, ...],
        num_workers: int,
        pin_memory: bool = False,
        crop: str = "uniform",
    ) -> None:
        check_crop(crop, random=not isinstance(data, Tensor))
        self.data: ImageDataset | Tensor = data
        self.num_images: int = num_images
        self.image_size: tuple[int, ...] = image_size
        self.num_workers: int = num_workers
        self.pin_memory: bool = pin_memory
        self.crop: str = crop
        self._stream: BatchStream | None = None
        self._seed = 0
        self._current: Tensor | None = None
        self._repeat = False

    @property
    def opened(self) -> bool:
        return self._stream is not None

    def open(self, seed: int, start: int = 0) -> None:
        """Starts with batch `start` in the order of the seed."""
        is_current = self._current is not None and self.state_dict() == {"seed": seed, "batch": start}
        self._repeat = is_current and self.num_workers > 0
        if self._repeat:  # keep the loading processes
            return
        self.close()
        self._current = None
        self._seed = seed
        self._stream = BatchStream(
            self.data,
            batch_size=self.num_images,
            image_size=self.image_size,
            seed=seed,
            num_workers=self.num_workers,
            start=start,
            pin_memory=self.pin_memory,
            crop=self.crop,
            rows=ranks.rows(),
        )

    def next(self) -> Float[Tensor, "B C *S"]:
        """The next batch; with several ranks, the rows of this one."""
        assert self._stream is not None, "open() comes first"
        if self._current is None or not self._repeat:
            self._current = next(self._stream)
        self._repeat = False
        return self._current

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def state_dict(self) -> dict[str, Any]:
        """Seed and number of the current batch."""
        assert self._stream is not None, "open() comes first"
        return {"seed": self._seed, "batch": self._stream.index - 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the batch of `state` the next one."""
        self.open(state["seed"], state["batch"])


def check_reset_mask(options: dict[str, Any] | None) -> None:
    """Raises InputError if the options of a reset leave out some images of the batch."""
    reset_mask = (options or {}).get("reset_mask")
    if reset_mask is not None and not np.all(reset_mask):
        raise InputError(
            "options['reset_mask'] leaves out some images: the images of a batch share one update of the "
            "autoencoder and end together; reset all of them."
        )


def open_images(
    data: str | Path | ImageDataset | Tensor | None, root: Path | None, image_size: tuple[int, ...]
) -> ImageDataset | Tensor:
    """The data that the `data` argument of an environment names, opened."""
    if isinstance(data, (ImageDataset, Tensor)):
        return data
    return open_data(None if data is None else str(data), root=root, image_size=image_size)


def axes_of(data: object) -> int:
    """The number of axes of the images: 3 for a tensor of volumes (N, C, D, H, W), otherwise 2."""
    return 3 if isinstance(data, Tensor) and data.ndim == 5 else 2


def channels_of(data: ImageDataset | Tensor) -> int:
    return data.shape[1] if isinstance(data, Tensor) else data.channels


def check_channels(of_data: int, of_autoencoder: int) -> None:
    """Raises InputError if data and autoencoder differ in their number of channels."""
    if of_data != of_autoencoder:
        raise InputError(
            f"the data has {of_data} channels and the autoencoder expects {of_autoencoder}: "
            f"build the autoencoder with channels={of_data}, or choose other data."
        )


def split_held_out(
    data: ImageDataset | Tensor, held_out: int, image_size: tuple[int, ...]
) -> tuple[ImageDataset | Tensor, Tensor]:
    """What is trained on, and the images (held_out, C, H, W) of the battery, which are not.

    Raises:
        InputError: if there are too few images.
    """
    if isinstance(data, Tensor):
        if len(data) <= held_out:
            raise InputError(
                f"`held_out={held_out}` of {len(data)} images leaves none to train on: choose fewer, or give "
                "more images."
            )
        return data[:-held_out], data[-held_out:]
    indices = data.indices("val")
    if len(indices) < held_out:
        raise InputError(
            f"`held_out={held_out}` is more than the {len(indices)} validation images of {data.name}, which training "
            "does not see: choose fewer, or data with a validation split."
        )
    places = np.linspace(0, len(indices) - 1, held_out).round().astype(int)
    return data, data.resized([indices[place] for place in places], image_size)

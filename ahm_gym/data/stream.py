"""An endless stream of training batches; each is a pure function of the seed and its number."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ahm_gym.data.crops import check_crop, random_crops
from ahm_gym.data.ignored import in_structure
from ahm_gym.data.store import ImageDataset
from ahm_gym.errors import InputError, RunError, say
from ahm_gym.runs.interrupt import end_with_the_parent

AHEAD: int = 2
"""Number of batches that each worker process loads ahead."""
SILENCE: int = 300
"""Seconds without a batch after which the worker processes count as hung."""


@contextlib.contextmanager
def data_workers_may_fail() -> Iterator[None]:
    """Turns the death of processes that load images into a RunError; a hung one is killed, see `SILENCE`."""
    try:
        yield
    except (RuntimeError, EOFError, OSError) as error:
        lost = isinstance(error, (EOFError, ConnectionError)) or str(error).startswith("DataLoader worker")
        if not lost or str(error).startswith("Caught"):  # which is an error of our own in such a process
            raise
        raise RunError(
            f"a process that loads images died, or gave no image for {SILENCE} s and was killed: continue from the "
            "last checkpoint with `resume`; in a new run, `data_workers=0` loads images between updates."
        ) from error


@contextlib.contextmanager
def _ended_if_silent(workers: Sequence[Any]) -> Iterator[None]:
    """Kills these processes if the body takes more than `SILENCE` seconds, without those in which this one slept.

    The timeout of a DataLoader does not help: this process also waits for a worker's end of a socket, for ever.
    """
    done = threading.Event()

    def watch() -> None:
        for _ in range(SILENCE):
            if done.wait(1.0):
                return
        for worker in workers:
            worker.kill()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def free_shared_memory() -> int | None:
    """Free bytes of the shared memory; None where it is not a folder of its own."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None


def _mib(size: int) -> int:
    return math.ceil(size / 2**20)


class BatchStream:
    """Normalised batches of the train split, in an order and with crops that the seed determines.

    Batch i depends only on the seed and i: a stream that starts at i continues exactly, and worker
    processes load exactly the same batches. The global random state is neither used nor changed.

    Args:
        dataset: a dataset, or normalised images of exactly `image_size`, which are never augmented.
        batch_size: number of images in a batch; may exceed the number of images in the dataset.
        image_size: length of each axis of the images in a batch.
        seed: seed of the order, the crops and the flips.
        augment: whether to use random crops and flips: of images resized crops and horizontal flips, of volumes crops
            of `image_size` and flips along every axis. Otherwise centre crops.
        crop: which random crops to use, a name in `CROPS`.
        num_workers: number of processes that load ahead, one thread each; 0 loads in this process.
        start: number of the first batch.
        pin_memory: whether worker processes load into page-locked memory, for asynchronous copies to a GPU.
        rows: the images of each batch that are loaded; those of one rank (`ahm_gym.device.ranks`).

    Raises:
        InputError: if a count is out of range, the images do not have `image_size`, or `crop` is unknown or does not
            apply.
    """

    def __init__(
        self,
        dataset: ImageDataset | Float[Tensor, "N C *S"],
        *,
        batch_size: int,
        image_size: tuple[int, ...],
        seed: int,
        augment: bool = True,
        crop: str = "uniform",
        num_workers: int = 0,
        start: int = 0,
        pin_memory: bool = False,
        rows: slice = slice(None),
    ) -> None:
        counts = {"batch size": (batch_size, 1), "number of workers": (num_workers, 0), "seed": (seed, 0)}
        for name, (value, least) in counts.items():
            if value < least:
                raise InputError(f"{name} {value} is out of range: choose {least} or more.")
        if isinstance(dataset, Tensor) and dataset.shape[2:] != image_size:
            raise InputError(
                f"the images are {tuple(dataset.shape[2:])} pixels and image_size is {image_size}: "
                "resize them first, or give the dataset itself."
            )
        check_crop(crop, random=augment and not isinstance(dataset, Tensor))
        if (
            crop == "oracle"
            and isinstance(dataset, ImageDataset)
            and not dataset.indices("train", labelled=True)
        ):
            raise InputError(
                f"`crop=oracle` looks at labels, and {dataset.name} has none: choose another `crop`."
            )
        self.index: int = start
        self.num_workers: int = num_workers
        self.pin_memory: bool = pin_memory
        train = list(range(len(dataset))) if isinstance(dataset, Tensor) else dataset.indices("train")
        self._batches = _Batches(dataset, train, batch_size, image_size, seed, augment, crop, rows)
        self._loaded: Iterator[Tensor] | None = None

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Float[Tensor, "B C *S"]:
        if self._loaded is None and self.num_workers > 0:
            self._check_shared_memory()
        if self.num_workers == 0:
            batch = self._batches[self.index]
        else:
            with data_workers_may_fail():
                if self._loaded is None:
                    get_temp_dir()  # for the sockets of the workers: this process removes it
                    self._loaded = iter(self._loader())
                loaded: Any = self._loaded
                with _ended_if_silent(loaded._workers):
                    batch = next(loaded)
        self.index += 1
        return batch

    def _check_shared_memory(self) -> None:
        """Loads in this process if the batches of the workers do not fit into the shared memory, and says so."""
        free = free_shared_memory()
        batches = self._batches
        channels = (
            batches.dataset.shape[1] if isinstance(batches.dataset, Tensor) else batches.dataset.channels
        )
        batch = 4 * batches.batch_size * channels * math.prod(batches.image_size)
        needed = batch * (AHEAD * self.num_workers + 2)
        if free is not None and needed > free:
            say(
                f"note: {self.num_workers} data workers need {_mib(needed)} MiB of shared memory (/dev/shm) and "
                f"{_mib(free)} are free: images are loaded between updates instead. In docker, --shm-size=2g gives "
                "more.",
            )
            self.num_workers = 0

    def close(self) -> None:
        """Stops the worker processes; the next batch would start new ones."""
        self._loaded = None

    def _loader(self) -> DataLoader[Tensor]:
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=_CountFrom(self.index),
            num_workers=self.num_workers,
            prefetch_factor=AHEAD,
            pin_memory=self.pin_memory,
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # otherwise the loader would draw from the global one
            # Otherwise a spawned process would spawn them too, and each would take seconds for its imports.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )


@dataclass(frozen=True)
class _Batches(Dataset[Tensor]):
    """The batches by number."""

    dataset: ImageDataset | Tensor
    train: list[int]
    batch_size: int
    image_size: tuple[int, ...]
    seed: int
    augment: bool
    crop: str
    rows: slice

    def __getitem__(self, number: int) -> Float[Tensor, "b C *S"]:
        chosen = [self.train[place] for place in self.places(number)]
        loaded = range(len(chosen))[self.rows]
        if isinstance(self.dataset, Tensor):
            return self.dataset[chosen[self.rows]]
        if not self.augment:
            return self.dataset.resized(chosen[self.rows], self.image_size)
        images = [self._image(index, at in loaded) for at, index in enumerate(chosen)]
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the accelerators, and fork_rng does not restore their state here.
            torch.default_generator.manual_seed(derive_seed(self.seed, 1, number))
            shown = [self._foreground(index) for index in chosen] if self.crop == "oracle" else None
            batch = random_crops(images, self.image_size, self.crop, shown, self.rows)
            axes = (-1,) if self.dataset.axes == 2 else (-3, -2, -1)  # the top of a slice may mean something
            flips = [(axis, (torch.rand(len(chosen)) < 0.5)[self.rows]) for axis in axes]
        for axis, flipped in flips:
            batch[flipped] = batch[flipped].flip(axis)
        return self.dataset.normalise(batch)

    def _image(self, index: int, loaded: bool) -> Float[Tensor, "C *S"]:
        """An image, or a mapped volume; if it is not loaded, one of its size without memory, for what is drawn."""
        assert isinstance(self.dataset, ImageDataset), "checked"
        if loaded and self.dataset.axes == 2:
            return self.dataset.image(index)
        if loaded:
            return self.dataset.values(index)
        return torch.zeros(()).expand(self.dataset.channels, *self.dataset.size_of(index))

    def _foreground(self, index: int) -> Float[Tensor, "1 *S"]:
        """Where structures are, at the size of the image; nowhere without a label."""
        assert isinstance(self.dataset, ImageDataset), "checked"
        size, label = list(self.dataset.size_of(index)), self.dataset.label(index)
        if label is None:
            return torch.zeros(1, *size)
        return functional.interpolate(in_structure(label)[None, None].float(), size, mode="nearest-exact")[0]

    def places(self, number: int) -> list[int]:
        """Positions in the train split: a window over the concatenated permutations of all epochs."""
        size = len(self.train)
        first = number * self.batch_size
        wanted = range(first, first + self.batch_size)
        return [epoch_order(self.seed, at // size, size)[at % size] for at in wanted]


class _CountFrom:
    """A sampler that yields batch numbers without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def derive_seed(*numbers: int) -> int:
    """A 63-bit seed that differs for every tuple of non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@functools.lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, size: int) -> list[int]:
    """The permutation of `size` images in one epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, epoch))
    return torch.randperm(size, generator=generator).tolist()


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ignores Ctrl-C, which reaches all processes of a terminal: the parent handles it. Ends with the parent."""
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Training batches: pure functions of the seed and their number."""

import itertools
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ahm_gym.data import BatchStream, ImageDataset, open_data
from ahm_gym.data.crops import random_crop
from ahm_gym.data.stream import derive_seed, epoch_order
from ahm_gym.errors import InputError

SIZE = (16, 16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    path = tmp_path_factory.mktemp("stream") / "small.npz"
    images = np.random.default_rng(0).integers(0, 255, (13, 32, 40), dtype=np.uint8)
    np.savez(path, train_images=images, val_images=images[:3])
    return open_data(str(path), image_size=SIZE)


def stream(dataset, seed: int = 0, batch_size: int = 8, **options) -> BatchStream:
    return BatchStream(dataset, batch_size=batch_size, image_size=SIZE, seed=seed, **options)


def take(batches: BatchStream, num: int) -> torch.Tensor:
    return torch.stack(list(itertools.islice(batches, num)))


def numbered(num: int) -> torch.Tensor:
    """Images in which every pixel is the image's number."""
    return torch.arange(num).float().view(-1, 1, 1, 1).expand(-1, 1, *SIZE)


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(dataset: ImageDataset):
    first = take(stream(dataset), 4)
    assert first.shape == (4, 8, 1, *SIZE)
    assert torch.equal(first, take(stream(dataset), 4))
    assert not torch.equal(first, take(stream(dataset, seed=1), 4))


def test_a_stream_that_starts_later_continues_exactly(dataset: ImageDataset):
    batches = stream(dataset)
    take(batches, 3)
    assert batches.index == 3
    assert torch.equal(take(batches, 3), take(stream(dataset, start=3), 3))


def test_worker_processes_change_no_bit(dataset: ImageDataset):
    batches = stream(dataset, num_workers=2, start=1)
    try:
        loaded = take(batches, 3)
        assert batches.index == 4
        assert torch.equal(loaded, take(stream(dataset, start=1), 3))
        batches.close()
        assert torch.equal(next(batches), next(stream(dataset, start=4)))
    finally:
        batches.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_random_state_is_neither_used_nor_changed(dataset: ImageDataset, num_workers: int):
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        batches = stream(dataset, num_workers=num_workers)
        drawn.append(take(batches, 2))
        batches.close()
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("num", "batch_size"), [(13, 8), (3, 8), (1, 4), (12, 4)])
def test_every_epoch_shows_every_image_once_in_a_new_order(num: int, batch_size: int):
    order = take(stream(numbered(num), batch_size=batch_size), 3 * num)[..., 0, 0, 0].flatten().int().tolist()
    epochs = [order[start : start + num] for start in range(0, len(order) - num + 1, num)]
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
    assert num < 4 or len({tuple(epoch) for epoch in epochs}) > len(epochs) // 2


def test_only_the_train_split_is_used(dataset: ImageDataset):
    assert set(stream(dataset)._batches.train) == set(dataset.indices("train"))


def test_tensors_are_not_changed():
    images = torch.randn(5, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    batch = next(stream(images, batch_size=5))
    assert torch.equal(batch, images[epoch_order(0, 0, 5)])


def test_tensors_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"\(16, 8\) pixels and image_size is \(16, 16\)"):
        stream(torch.zeros(4, 1, 16, 8))


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"num_workers": -1}, {"seed": -1}])
def test_counts_out_of_range_are_refused(option: dict):
    with pytest.raises(InputError, match="is out of range: choose"):
        stream(**{"dataset": numbered(2), **option})


def test_batches_are_normalised_crops_of_the_images(dataset: ImageDataset):
    batches = dataset.denormalise(take(stream(dataset), 6))
    assert batches.min() > -1e-5 and batches.max() < 1 + 1e-5
    assert len({image.numpy().tobytes() for image in batches.flatten(0, 1)}) == 48


def test_without_augmentation_batches_hold_whole_images(dataset: ImageDataset):
    batch = next(stream(dataset, augment=False, batch_size=13))
    expected = dataset.resized([dataset.indices("train")[i] for i in epoch_order(0, 0, 13)], SIZE)
    assert torch.equal(batch, expected)


def test_half_of_the_crops_are_flipped(tmp_path: Path):
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    np.savez(tmp_path / "ramp.npz", train_images=ramp[None])
    dataset = open_data(str(tmp_path / "ramp.npz"), image_size=SIZE)
    batch = next(stream(dataset, batch_size=400))
    flipped = (batch[:, 0, :, 0] > batch[:, 0, :, -1]).all(dim=1).float().mean().item()
    assert 0.4 < flipped < 0.6


def test_crops_are_those_of_the_library():
    image = torch.rand(3, 30, 20, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), antialias=True)(image)
        torch.manual_seed(5)
        assert torch.equal(random_crop(image, SIZE), expected)


def test_images_smaller_than_the_training_size_are_enlarged():
    image = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        assert random_crop(image, (32, 48)).shape == (1, 32, 48)


def test_derived_seeds_do_not_collide():
    seeds = Counter(derive_seed(*numbers) for numbers in itertools.product(range(5), range(2), range(200)))
    assert len(seeds) == 2000


def test_a_batch_costs_less_than_a_tiny_training_step(shared_data: Path):
    """The goal is 12 ms; the limit leaves room for a busy machine and the type checks of the tests."""
    dataset = open_data("hc18_128.npz", root=shared_data, image_size=(64, 64))
    batches = BatchStream(dataset, batch_size=64, image_size=(64, 64), seed=0)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.06


@pytest.mark.parametrize("pin_memory", [False, True])
def test_batches_of_worker_processes_are_pinned_only_for_a_gpu(dataset: ImageDataset, pin_memory: bool):
    assert stream(dataset, num_workers=1, pin_memory=pin_memory)._loader().pin_memory == pin_memory

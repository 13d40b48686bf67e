"""Rules that choose among random crops."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ahm_gym.data import BatchStream, ImageDataset, open_data
from ahm_gym.data.crops import CROPS, contrast, draw_box, nearness_to_centre, random_crop, random_crops
from ahm_gym.data.stream import derive_seed
from ahm_gym.errors import InputError

SIZE = (16, 16)
RULES = pytest.mark.parametrize("crop", ["centre", "contrast"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    path: Path = tmp_path_factory.mktemp("crops") / "small.npz"
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 40), dtype=np.uint8)
    np.savez(path, train_images=images)
    return open_data(str(path), image_size=SIZE)


def stream(dataset, crop: str, **options) -> BatchStream:
    return BatchStream(dataset, batch_size=8, image_size=SIZE, crop=crop, **({"seed": 3} | options))


def take(batches: BatchStream, num: int) -> torch.Tensor:
    return torch.stack(list(itertools.islice(batches, num)))


def crops_of(image: torch.Tensor, crop: str, num: int = 1000, *, draw=random_crop) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if draw is random_crops:
            return random_crops([image] * num, SIZE, crop)
        return torch.stack([random_crop(image, SIZE, crop) for _ in range(num)])


def marked_image() -> torch.Tensor:
    """Black with a white corner: a crop that shows some of it has the larger deviation."""
    image = torch.zeros(1, 40, 40)
    image[:, :6, :6] = 1.0
    return image


def share_marked(crops: torch.Tensor) -> float:
    return (crops.amax(dim=(1, 2, 3)) > 0).float().mean().item()


@RULES
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_depends_on_the_seed_and_its_number_alone(dataset: ImageDataset, crop: str, num_workers: int):
    all_batches = take(stream(dataset, crop), 4)
    later = stream(dataset, crop, start=2, num_workers=num_workers)
    try:
        assert torch.equal(take(later, 2), all_batches[2:])
    finally:
        later.close()
    assert not torch.equal(take(stream(dataset, crop, seed=4), 4), all_batches)


def test_the_rules_differ(dataset: ImageDataset):
    batches = {
        crop: take(stream(dataset, crop), 2).numpy().tobytes() for crop in ("uniform", "centre", "contrast")
    }
    assert len(set(batches.values())) == 3


def test_uniform_crops_are_those_of_the_library_in_the_order_of_the_batch(dataset: ImageDataset):
    batches = stream(dataset, "uniform")
    images = [dataset.image(dataset.indices("train")[place]) for place in batches._batches.places(0)]
    crop = v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(3, 1, 0))
        expected = torch.stack([crop(image) for image in images])
        flipped = torch.rand(8) < 0.5
    expected[flipped] = expected[flipped].flip(3)
    batch = next(batches)
    assert torch.equal(batch, dataset.normalise(expected))
    assert torch.equal(batch, next(BatchStream(dataset, batch_size=8, image_size=SIZE, seed=3)))


def test_centre_crops_are_nearer_to_the_centre():
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    image = torch.stack((rows - 19.5, columns - 29.5))  # the mean of a crop is the offset of its centre
    distance = {
        crop: crops_of(image, crop).mean(dim=(2, 3)).norm(dim=1).mean().item()
        for crop in ("uniform", "centre")
    }
    assert distance["centre"] < 0.6 * distance["uniform"]


def test_contrast_crops_vary_more():
    image = marked_image()
    deviation = {
        crop: crops_of(image, crop).std(dim=(1, 2, 3)).mean().item() for crop in ("uniform", "contrast")
    }
    assert deviation["contrast"] > 1.5 * deviation["uniform"]


@pytest.mark.parametrize("score", [nearness_to_centre, contrast])
def test_a_rule_keeps_the_best_of_four_crops(score):
    image = torch.rand(2, 30, 50, generator=torch.Generator().manual_seed(1))
    name = next(crop for crop, rule in CROPS.items() if rule is score)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        top, left, height, width = max(
            (draw_box(image, SIZE) for _ in range(4)), key=lambda box: score(image, box)
        )
        torch.manual_seed(0)
        found = random_crop(image, SIZE, name)
    part = image[:, top : top + height, left : left + width]
    assert torch.equal(found, v2.functional.resize(part, list(SIZE), antialias=True))


def test_the_scores_are_the_distance_in_pixels_and_the_deviation_of_all_channels():
    image = torch.rand(2, 30, 50, generator=torch.Generator().manual_seed(1))
    assert nearness_to_centre(image, (10, 10, 20, 20)) == -(((20 - 15) ** 2 + (20 - 25) ** 2) ** 0.5)
    assert contrast(image, (3, 4, 10, 20)) == pytest.approx(image[:, 3:13, 4:24].numpy().std(), rel=1e-5)


def test_about_half_of_the_images_follow_the_rule():
    image = marked_image()
    uniform, ruled = (share_marked(crops_of(image, crop)) for crop in ("uniform", "contrast"))
    assert ruled - uniform > 0.3
    mixed = share_marked(crops_of(image, "contrast", draw=random_crops))
    assert (mixed - uniform) / (ruled - uniform) == pytest.approx(0.5, abs=0.15)


@RULES
def test_images_that_are_never_cropped_are_refused(dataset: ImageDataset, crop: str):
    with pytest.raises(InputError, match=f"`crop={crop}` chooses among random crops"):
        stream(torch.zeros(4, 1, *SIZE), crop)
    with pytest.raises(InputError, match="`augment=False` has none: leave `crop` out"):
        stream(dataset, crop, augment=False)


def test_oracle_crops_show_more_of_the_labelled_structures(tmp_path):
    random = np.random.default_rng(0)
    labels = np.zeros((12, 64, 80), np.uint8)
    labels[:, 4:16, 60:76] = 1
    images = random.integers(0, 100, labels.shape, dtype=np.uint8)  # stored at half the size of the labels
    images[labels > 0] = 255
    np.savez(tmp_path / "labelled.npz", train_images=images, train_label=labels)
    labelled = open_data(str(tmp_path / "labelled.npz"), image_size=SIZE)
    white = {
        crop: (take(stream(labelled, crop), 40) > 2).float().mean().item() for crop in ("uniform", "oracle")
    }
    assert white["oracle"] > 1.5 * white["uniform"]


def test_oracle_crops_need_labels(dataset: ImageDataset):
    with pytest.raises(InputError, match="`crop=oracle` looks at labels, and small has none"):
        stream(dataset, "oracle")


def test_an_unknown_rule_is_refused(dataset: ImageDataset):
    with pytest.raises(InputError, match="unknown crop 'contrst': did you mean 'contrast'"):
        stream(dataset, "contrst")

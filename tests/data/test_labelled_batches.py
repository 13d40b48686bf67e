import numpy as np
import pytest
import torch

from ahm_gym.data import open_data
from ahm_gym.data.labelled import LabelledBatches, choose_labelled
from ahm_gym.errors import InputError


@pytest.fixture(scope="module")
def dataset(discs):
    return open_data(str(discs), image_size=(32, 32))


def batches(dataset, indices, **options):
    return LabelledBatches(
        dataset, indices, **({"batch_size": 4, "image_size": (32, 32), "seed": 0} | options)
    )


def test_fewer_labelled_images_are_part_of_more(dataset):
    most = choose_labelled(dataset, None, 3)
    assert sorted(most) == dataset.indices("train")
    assert all(choose_labelled(dataset, number, 3) == most[:number] for number in (1, 5, 24))
    assert choose_labelled(dataset, 5, 4) != most[:5]


@pytest.mark.parametrize("number", [0, -1, 25])
def test_more_labels_than_there_are_or_none_are_refused(dataset, number):
    with pytest.raises(InputError, match=rf"`labels={number}` is out of range: discs has 24 labelled"):
        choose_labelled(dataset, number, 0)


def test_image_and_label_are_cropped_and_flipped_together(dataset):
    images, labels = batches(dataset, dataset.indices("train"), batch_size=16)[0]
    assert images.shape == (16, 1, 32, 32) and labels.shape == (16, 1, 32, 32)
    bright = dataset.denormalise(images) > 0.5
    agreement = (bright == labels.bool()).float().mean(dim=(1, 2, 3))
    assert agreement.min() > 0.9
    whole = dataset.resized(dataset.indices("train"), (32, 32))
    assert not any(torch.equal(image, other) for image in images for other in whole)


def test_a_batch_is_a_pure_function_of_the_seed_and_its_number(dataset):
    indices = choose_labelled(dataset, 6, 0)
    first, again = batches(dataset, indices)[5], batches(dataset, indices)[5]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], batches(dataset, indices)[6][0])
    assert not torch.equal(first[0], batches(dataset, indices, seed=1)[5][0])


def test_batches_do_not_change_the_global_generator(dataset):
    before = torch.get_rng_state()
    batches(dataset, [0, 1])[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_is_used_once_before_any_is_used_again(dataset, monkeypatch):
    shown = []
    own = dataset.sample
    monkeypatch.setattr(dataset, "sample", lambda index: shown.append(index) or own(index))
    stream = batches(dataset, [3, 5, 8, 9, 11, 12], batch_size=4)
    for number in range(3):
        stream[number]
    assert sorted(shown) == sorted([3, 5, 8, 9, 11, 12] * 2)


def test_fewer_images_than_the_batch_size_are_shown_in_several_crops(dataset):
    images, _ = batches(dataset, [0], batch_size=3)[0]
    assert not torch.equal(images[0], images[1])


def test_labels_larger_than_their_images_keep_their_classes(tmp_path):
    label = np.zeros((3, 256, 256), np.uint8)
    label[:, 64:, 64:], label[:, 160:, 160:] = 1, 5
    image = (label * 40).astype(np.uint8)
    np.savez(tmp_path / "large.npz", train_images=image, train_label=label)
    dataset = open_data(str(tmp_path / "large.npz"), image_size=(32, 32))
    assert dataset.sample(0).image.shape == (1, 64, 64)
    images, labels = batches(dataset, [0, 1, 2], batch_size=6)[0]
    assert set(labels.unique().tolist()) <= {0, 1, 5} and len(labels.unique()) == 3
    assert ((dataset.denormalise(images) > 0.6) == (labels == 5)).float().mean() > 0.9


def test_native_resolution_shows_windows_of_about_the_training_size(tmp_path):
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None], (2, 256, 256))
    np.savez(tmp_path / "ramp.npz", train_images=ramp, train_label=(ramp > 128).astype(np.uint8))
    spans = {}
    for native in (False, True):
        dataset = open_data(str(tmp_path / "ramp.npz"), image_size=(32, 32), native_resolution=native)
        images, _ = batches(dataset, [0, 1], batch_size=8, native_resolution=native)[0]
        pixels = dataset.denormalise(images) * 256
        spans[native] = (pixels.amax(dim=(1, 2, 3)) - pixels.amin(dim=(1, 2, 3))).mean().item()
    assert 17 < spans[True] < 40
    assert spans[False] > 150

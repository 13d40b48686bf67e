"""The mean of the training labels as a segmentation of every image."""

import numpy as np
import pytest

from ahm_gym.data import open_data
from ahm_gym.segmentation.fixed_map import fixed_map_dice, mean_map


def dataset_of(path, train, test):
    images = np.random.default_rng(0).integers(0, 255, (len(train), 64, 64), dtype=np.uint8)
    others = np.random.default_rng(1).integers(0, 255, (len(test), 64, 64), dtype=np.uint8)
    np.savez(path, train_images=images, train_label=train, test_images=others, test_label=test)
    return open_data(str(path), image_size=(32, 32))


def block(rows, value=1):
    label = np.zeros((64, 64), dtype=np.uint8)
    label[rows, 16:32] = value
    return label


def test_structures_that_are_always_in_one_place_are_found_without_a_look(tmp_path):
    train = np.stack([block(slice(8, 24)), block(slice(8, 24)) + block(slice(40, 56), 2)])
    dataset = dataset_of(tmp_path / "a.npz", train, train[1:])
    assert fixed_map_dice(dataset, [0, 1], "test") == pytest.approx(1.0)


def test_the_dice_is_that_of_the_overlap_at_the_best_threshold(tmp_path):
    rows = (slice(0, 16), slice(16, 32), slice(16, 32))
    dataset = dataset_of(
        tmp_path / "b.npz", np.stack([block(one) for one in rows]), block(slice(24, 40))[None]
    )
    found = mean_map(dataset, [0, 1, 2])
    assert found.threshold == 0.5 and found.shares[1, 20, 20] == pytest.approx(2 / 3)
    assert fixed_map_dice(dataset, [0, 1, 2], "test") == pytest.approx(0.5)


def test_structures_that_are_never_in_one_place_are_missed(tmp_path):
    rows = [slice(4 * start, 4 * start + 4) for start in range(12)]
    dataset = dataset_of(
        tmp_path / "c.npz", np.stack([block(one) for one in rows]), block(slice(60, 64))[None]
    )
    assert fixed_map_dice(dataset, list(range(12)), "test") == 0.0

"""Tests of what a description does to the values of images and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ahm_gym.data.processing import Processing, scale, to_classes
from ahm_gym.data.scaling import scale_intensities
from ahm_gym.errors import InputError


def two_channels():
    """PET and CT, as it were: one channel up to 2,000, the other up to 0.003."""
    random = np.random.default_rng(0)
    return np.stack([random.uniform(0, 2000, (40, 50)), random.uniform(0, 0.003, (40, 50))], axis=2)


def test_channels_share_a_range_unless_they_are_modalities():
    image = two_channels()
    together, alone = scale(image, Processing()), scale(image, Processing(), num_modalities=2)
    assert together[1].std() < 1e-6 < 0.2 < alone[1].std()
    assert torch.equal(alone, scale(image, Processing(scaling="channel")))
    assert torch.equal(alone[:1], scale_intensities(image[:, :, :1]))


def test_a_window_clips_and_scales():
    image = np.array([[-1000.0, -160.0], [40.0, 240.0], [300.0, 3000.0]])[:, :, None]
    expected = torch.tensor([[[0.0, 0.0], [0.5, 1.0], [1.0, 1.0]]])
    assert torch.equal(scale(image, Processing(scaling={"low": -160, "high": 240})), expected)


def test_each_modality_may_have_its_own_scaling():
    processing = Processing(modalities={"0": "CT", "1": "PET"}, scaling={"CT": {"low": 0, "high": 4000}})
    scaled = scale(two_channels(), processing, num_modalities=2)
    assert 0.45 < scaled[0].max() <= 0.5
    assert scaled[1].max() == 1.0


COLOURS = np.array([[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [1, 2, 3]]], np.uint8)


@pytest.mark.parametrize(
    ("keys", "label", "expected"),
    [
        ({}, [[0, 7]], [[0, 7]]),
        ({"label_values": {"128": 1, "255": 0, "0": 2}}, [[255, 128], [0, 0]], [[0, 1], [2, 2]]),
        ({"label_values": {"255": 1}}, [[0, 255]], [[0, 1]]),
        ({"instances": True}, [[0, 1], [300, 2]], [[0, 1], [1, 1]]),
        ({"label_values": {"#ff0000": 1, "#00ff00": 2, "#010203": 1}}, COLOURS, [[0, 1], [2, 1]]),
    ],
)
def test_the_values_of_labels_become_classes(keys, label, expected):
    found = to_classes(np.asarray(label), Processing(**keys), "a.png")
    assert found.tolist() == expected


def test_equal_channels_count_as_one():
    label = np.repeat(np.array([[0, 255]], np.uint8)[:, :, None], 3, axis=2)
    assert to_classes(label, Processing(label_values={"255": 3}), "a.png").tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label_values": {"#ff0000": 1, "#00ff00": 2}}, "a.png contains the colour #010203"),
        ({"label_values": {"128": 1}}, "a.png contains the value 77"),
    ],
)
def test_a_value_that_is_not_listed_is_refused(keys, message):
    label = COLOURS if "colour" in message else np.array([[0, 77]])
    with pytest.raises(InputError, match=message):
        to_classes(label, Processing(**keys), "a.png")


def test_the_slices_of_a_volume_are_no_channels():
    label = np.full((2, 2, 3), 255, np.uint8)
    found = to_classes(label, Processing(label_values={"255": 3}), "a.nii", is_volume=True)
    assert found.shape == (2, 2, 3) and (found == 3).all()

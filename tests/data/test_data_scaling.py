"""Intensities by percentiles, sizes, and label values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ahm_gym.data.scaling as scaling
from ahm_gym.errors import InputError


def test_intensities_are_clipped_at_the_percentiles_of_all_channels_together():
    values = np.arange(2000, dtype=np.int16).reshape(40, 25, 2) - 700
    low, high = np.percentile(values, 0.5), np.percentile(values, 99.5)
    expected = np.clip((values - low) / (high - low), 0, 1).transpose(2, 0, 1)
    scaled = scaling.scale_intensities(values)
    torch.testing.assert_close(scaled, torch.from_numpy(expected).float(), atol=1e-6, rtol=0)


@given(
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "uint64", "float32", "float64"]),
    offset=st.integers(0, 50),
    seed=st.integers(0, 1000),
)
def test_images_of_any_depth_and_sign_are_scaled_to_zero_and_one(dtype: str, offset: int, seed: int):
    values = (np.random.default_rng(seed).random((9, 7, 3)) * 60 + offset).astype(dtype)
    scaled = scaling.scale_intensities(values)
    assert scaled.dtype == torch.float32
    assert scaled.min() == 0.0 and scaled.max() == 1.0


def test_a_small_range_far_from_zero_keeps_its_detail():
    values = (10_000_000 + np.arange(100)).reshape(10, 10, 1)
    assert scaling.scale_intensities(values).unique().numel() > 90


def test_a_constant_image_becomes_zero():
    assert not scaling.scale_intensities(np.full((5, 6, 2), 7, np.uint16)).any()


def test_a_nearly_constant_image_is_scaled_by_its_extremes():
    values = np.zeros((100, 100, 1), np.uint8)
    values[3, 4] = 10
    values[3, 5] = 5
    scaled = scaling.scale_intensities(values)
    assert scaled[0, 3, 4] == 1.0 and scaled[0, 3, 5] == 0.5


@pytest.mark.parametrize(
    ("size", "shortest_side", "expected"),
    [
        ((60, 90), 20, (20, 30)),
        ((90, 60), 20, (30, 20)),
        ((10, 90), 20, (10, 90)),
        ((60, 90), None, (60, 90)),
    ],
)
def test_images_are_shrunk_by_their_short_side_and_never_enlarged(size, shortest_side, expected):
    image = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    shrunk = scaling.shrink(image, shortest_side)
    assert shrunk.shape == (2, *expected)
    assert shrunk.min() >= 0 and shrunk.max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_pixels_are_refused_with_the_file(bad: float):
    image = np.zeros((4, 4), np.float32)
    image[1, 2] = bad
    with pytest.raises(InputError, match=r"scan\.npy contains NaN or infinite"):
        scaling.channels_last(image, "scan.npy")


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), complex), np.zeros((4, 0)), np.zeros(4), np.zeros((2, 2, 2, 2))]
)
def test_an_array_that_is_not_an_image_is_refused_with_the_file(image: np.ndarray):
    with pytest.raises(InputError, match=r"odd\.npy"):
        scaling.channels_last(image, "odd.npy")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.float32])
def test_labels_of_any_type_become_indices(dtype: type):
    label = np.array([[0, 1], [1, 0]], dtype)
    indices = scaling.class_indices(label, (2, 2), "a.png")
    assert indices.dtype == np.uint8 and indices.tolist() == [[0, 1], [1, 0]]


def test_a_label_with_equal_channels_is_collapsed():
    label = np.array([[0, 1], [2, 0]], np.uint8)
    assert (scaling.class_indices(np.stack([label] * 3, axis=2), (2, 2), "a.png") == label).all()


def test_a_label_with_one_channel_before_its_rows_is_accepted():
    label = np.arange(12).reshape(3, 4) % 2
    assert scaling.class_indices(label[None], (3, 4), "a.npy").tolist() == label.tolist()


def test_the_blurred_borders_of_a_mask_become_sharp():
    label = np.zeros((20, 30), np.uint8)
    label[:, 10:], label[:, 11:], label[:, 12:] = 90, 180, 251
    label[0, 0] = 3
    sharp = scaling.sharpen_mask(label, "a.jpg")
    assert sharp.dtype == np.uint8 and (sharp == np.where(np.arange(30) > 10, 255, 0)).all()
    assert (scaling.sharpen_mask(label * 0, "a.jpg") == 0).all()
    label[:, :6] = 128  # as wide at the rim as in the middle
    assert (scaling.sharpen_mask(label, "a.jpg")[:, :6] == 255).all()


@pytest.mark.parametrize("values", [(0, 1), (0, 128, 255), (0, 1, 2, 3)])
def test_class_indices_in_jpeg_are_refused(values: tuple[int, ...]):
    label = np.repeat(np.array(values, np.uint8), 12)[None].repeat(20, axis=0)
    with pytest.raises(InputError, match=r"a\.jpg is a label in JPEG"):
        scaling.sharpen_mask(label, "a.jpg")


def test_a_label_with_colours_is_refused():
    with pytest.raises(InputError, match=r"a\.png has the shape .* one channel"):
        scaling.class_indices(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), (2, 2), "a.png")


def test_a_label_of_another_size_than_its_image_is_refused():
    with pytest.raises(InputError, match=r"a\.png is 2x3 pixels and its image 2x2"):
        scaling.class_indices(np.zeros((2, 3), np.uint8), (2, 2), "a.png")


def test_label_values_near_whole_numbers_are_rounded():
    label = np.array([[0, 0.9995], [2.0009, 0.99999994]])
    assert scaling.class_indices(label, (2, 2), "a.nii").tolist() == [[0, 1], [2, 1]]
    with pytest.raises(InputError, match="contains the value -0.0015"):
        scaling.class_indices(label - 0.0015, (2, 2), "a.nii")


def soft_disc(centre: int = 255) -> np.ndarray:
    """A disc with grey edges."""
    rows, columns = np.mgrid[:40, :40]
    return np.clip(centre * (10.5 - np.hypot(rows - 20, columns - 20)), 0, centre).astype(np.uint8)


def test_a_mask_with_soft_edges_is_told_from_classes():
    assert scaling.is_soft_edged(soft_disc())
    classes = np.zeros((40, 40), np.uint8)
    classes[5:10, 5:10], classes[20:30, 20:30] = 128, 255
    assert not scaling.is_soft_edged(classes)  # of its own colour, far from white
    classes[20:30, 18:20] = 128
    assert not scaling.is_soft_edged(classes)
    far = soft_disc()
    far[0, :3] = (100, 150, 200)
    assert not scaling.is_soft_edged(far)
    assert not scaling.is_soft_edged(soft_disc(20)) and not scaling.is_soft_edged(soft_disc().astype(float))


@pytest.mark.parametrize("value", [64, 128, -1, 0.5, 256, np.nan, np.inf])
def test_label_values_that_are_not_classes_are_refused_with_file_and_value(value: float):
    label = np.zeros((2, 2))
    label[0, 1] = value
    with pytest.raises(InputError, match=rf"class index out of range: a\.png contains the value {value:g},"):
        scaling.class_indices(label, (2, 2), "a.png")


def test_soft_masks_are_told_from_labels_with_other_values():
    rows, columns = np.mgrid[:64, :64]
    far = np.clip(300 - 12 * np.hypot(rows - 32, columns - 32), 0, 250).astype(np.uint8)
    for label, seen in (
        (far, r"values up to 250, with grey areas or edges wider than 8 pixels"),
        (far / np.float32(250), r"values between 0 and 1, such as 0\.0"),
    ):
        with pytest.raises(InputError, match=f"a soft one: it has .*{seen}.*cut it at a threshold"):
            scaling.class_indices(label, (64, 64), "a.png")
    objects = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(8, axis=0).repeat(8, axis=1)
    objects = np.where((rows % 8 < 6) & (columns % 8 < 6), objects + 40, 0).astype(np.uint8)
    with pytest.raises(InputError, match="class index out of range"):
        scaling.class_indices(objects, (64, 64), "a.png")

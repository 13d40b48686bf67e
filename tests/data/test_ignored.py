"""Tests of label pixels that a description ignores: how they are read, stored, drawn from and cropped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import write

from ahm_gym.data import open_data
from ahm_gym.data.draws import class_counts, describe_draw, summary_of_draw
from ahm_gym.data.ignored import IGNORED, areas, in_structure
from ahm_gym.data.label_files import merged
from ahm_gym.data.labelled import LabelledBatches
from ahm_gym.data.processing import Processing, to_classes
from ahm_gym.data.scaling import MAX_CLASSES
from ahm_gym.data.search import find_layout
from ahm_gym.errors import InputError

SIZE = (16, 16)


def label_with(*values: int) -> np.ndarray:
    """A label (16, 16) of background with a row of four pixels of each value."""
    label = np.zeros((16, 16), np.uint8)
    for row, value in enumerate(values):
        label[2 + row, 4:8] = value
    return label


def folder(path: Path, label: np.ndarray, **keys) -> str:
    for number in range(6):
        write(
            path / "images" / f"p{number}.png",
            np.random.default_rng(number).integers(0, 200, (16, 16), np.uint8),
        )
        write(path / "labels" / f"p{number}.png", label)
    if keys:
        content = {"ahm_gym": 1, "images": "images/{case}.png", "labels": "labels/{case}.png", **keys}
        (path / "dataset.json").write_text(json.dumps(content))
    return str(path)


def test_the_stored_value_is_no_class_and_not_that_of_a_binary_mask():
    assert MAX_CLASSES <= IGNORED < 255


@pytest.mark.parametrize(
    ("keys", "label", "expected"),
    [
        ({"ignore": [255]}, [[0, 1], [255, 2]], [[0, 1], [IGNORED, 2]]),
        ({"ignore": [7, 9]}, [[0, 7], [9, 255]], [[0, IGNORED], [IGNORED, 255]]),
        ({"ignore": [0], "label_values": {"1": 0, "2": 1}}, [[0, 1], [2, 0]], [[IGNORED, 0], [1, IGNORED]]),
        ({"ignore": [300], "instances": True}, [[0, 5], [300, 301]], [[0, 1], [IGNORED, 1]]),
        ({"ignore": [255]}, [[0.0, 254.9999], [1.0, 2.0]], [[0, IGNORED], [1, 2]]),
        ({"ignore": [IGNORED]}, [[0, IGNORED]], [[0, IGNORED]]),
    ],
)
def test_values_to_ignore_become_one_stored_value(keys, label, expected):
    found = to_classes(np.asarray(label), Processing(**keys), "a.png")
    assert found.tolist() == expected


def test_a_colour_may_be_ignored():
    label = np.array([[[0, 0, 0], [255, 0, 0], [255, 255, 255]]], np.uint8)
    processing = Processing(label_values={"#ff0000": 1}, ignore=("#ffffff",))
    assert to_classes(label, processing, "a.png").tolist() == [[0, 1, IGNORED]]


def test_the_stored_value_is_refused_where_it_means_something_else():
    with pytest.raises(
        InputError, match=f"a.png contains the value {IGNORED}, which stands for ignored pixels"
    ):
        to_classes(np.array([[0, IGNORED]]), Processing(ignore=(255,)), "a.png")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"ignore": [128], "label_values": {"128": 1}},
            "ignore names 128, to which label_values gives a class",
        ),
        ({"ignore": ["#ffffff"], "label_values": {"1": 1}}, "name colours and other values"),
        ({"ignore": [255], "label_values": {"#ff0000": 1}}, "name colours and other values"),
        ({"ignore": [-1]}, "`ignore.0"),
        ({"ignore": ["red"]}, "`ignore.0"),
    ],
)
def test_what_cannot_be_ignored_is_refused(tmp_path: Path, keys, message):
    with pytest.raises(InputError, match=message):
        open_data(folder(tmp_path, label_with(1), **keys), image_size=SIZE)


def test_of_several_labels_one_that_ignores_a_pixel_decides():
    parts = [np.array([0, 1, IGNORED, 0, IGNORED]), np.array([0, 2, 1, IGNORED, 255])]
    assert merged(parts, may_ignore=True).tolist() == [0, 2, IGNORED, IGNORED, IGNORED]
    assert merged(parts).tolist() == [0, 2, IGNORED, IGNORED, 255]


def test_ignored_pixels_are_no_class_and_in_no_count(tmp_path: Path):
    dataset = open_data(
        folder(tmp_path, label_with(1, 2, 255), ignore=[255]), image_size=SIZE, need_labels=True
    )
    assert (dataset.num_classes, dataset.has_ignored) == (3, True)
    label = dataset.sample(0).label
    assert label is not None and label.unique().tolist() == [0, 1, 2, IGNORED]
    assert in_structure(label).sum() == 8
    assert class_counts(dataset, 0).tolist() == [244, 4, 4]
    draw = describe_draw(dataset, dataset.indices("train"))
    assert draw["ignored_share"] == pytest.approx(4 / 256)
    assert draw["class_shares"]["1"] == pytest.approx(4 / 252)
    assert "1.56% are ignored" in summary_of_draw(dataset, draw)


def test_a_binary_mask_may_have_ignored_pixels(tmp_path: Path):
    dataset = open_data(
        folder(tmp_path, label_with(255, 128), ignore=[128]), image_size=SIZE, need_labels=True
    )
    assert dataset.num_classes == 2
    assert class_counts(dataset, 0).tolist() == [248, 4]


def test_labels_that_only_ignore_are_no_labels(tmp_path: Path):
    with pytest.raises(InputError, match="hold only background"):
        open_data(folder(tmp_path, label_with(255), ignore=[255]), image_size=SIZE, need_labels=True)


def test_without_a_description_255_beside_classes_names_the_way_out(tmp_path: Path):
    with pytest.raises(InputError, match=r'"ignore": \[255\] in a dataset.json'):
        open_data(folder(tmp_path, label_with(1, 255)), image_size=SIZE, need_labels=True)


def test_a_mask_of_0_and_255_is_a_class_as_before(tmp_path: Path):
    dataset = open_data(folder(tmp_path, label_with(255)), image_size=SIZE, need_labels=True)
    assert (dataset.num_classes, dataset.has_ignored) == (2, False)
    assert "ignored_share" not in describe_draw(dataset, dataset.indices("train"))


def test_the_ignore_label_of_nnunet_is_ignored(tmp_path: Path, capsys):
    for number in range(6):
        write(tmp_path / "imagesTr" / f"p{number}_0000.png")
        write(tmp_path / "labelsTr" / f"p{number}.png", label_with(1, 2)[:12, :10])
    labels = {"background": 0, "tumour": 1, "ignore": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".png", "numTraining": 6}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert find_layout(tmp_path).ignore == (2,)
    dataset = open_data(str(tmp_path), image_size=(8, 8), need_labels=True)
    assert dataset.class_names == {1: "tumour"} and dataset.num_classes == 2
    assert class_counts(dataset, 0).tolist() == [112, 4]
    assert "dataset.json says that label pixels of 2 are ignored" in capsys.readouterr().err


@pytest.mark.parametrize("augmentation", ["light", "nnunet"])
def test_crops_and_changes_leave_ignored_pixels_ignored(tmp_path: Path, augmentation):
    label = np.full((16, 16), 255, np.uint8)
    label[4:12, 4:12] = 1
    dataset = open_data(folder(tmp_path, label, ignore=[255]), image_size=(8, 8), need_labels=True)
    batches = LabelledBatches(
        dataset, dataset.indices("train"), batch_size=4, image_size=(8, 8), seed=0, augmentation=augmentation
    )
    values = torch.cat([batches[number][1] for number in range(20)]).unique()
    assert values.tolist() == [1, IGNORED]


def test_areas_have_a_channel_more_for_ignored_pixels():
    found = areas(torch.tensor([[0, 1], [IGNORED, 1]]), 2)
    assert found.tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [1, 0]]]

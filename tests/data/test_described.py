"""Tests of folders that a `dataset.json` describes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ahm_gym.data import open_data
from ahm_gym.errors import InputError

SIZE = (16, 16)
RNG = np.random.default_rng(0)


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


def describe(folder: Path, **keys) -> str:
    (folder / "dataset.json").write_text(json.dumps({"ahm_gym": 1, "images": "scans/{case}.png", **keys}))
    return str(folder)


def scans(folder: Path, names=("a1", "a2", "b1", "b2", "c1", "c2"), value: int = 7) -> Path:
    """Pictures under a name that no rule knows, with labels of 0 and `value` under another."""
    for name in names:
        picture(folder / "scans" / f"{name}.png", RNG.integers(0, 255, (20, 24), dtype=np.uint8))
        label = np.zeros((20, 24), np.uint8)
        label[4:10, 4:12] = value
        picture(folder / "drawn" / f"{name}-x.png", label)
    return folder


def test_a_description_is_followed_to_the_letter(tmp_path: Path):
    spec = describe(
        scans(tmp_path),
        name="ward 7",
        labels="drawn/{case}-x.png",
        patients="scans/([abc])",
        label_values={"0": 0, "7": 1},
        classes={"1": "tumour"},
        splits={"train": ["scans/a*"], "val": ["b1", "b2"], "test": ["c1", "c2"]},
    )
    dataset = open_data(spec, image_size=SIZE, need_labels=True)
    assert (dataset.name, len(dataset), dataset.num_classes) == ("ward 7", 6, 2)
    assert dataset.class_names == {1: "tumour"}
    ids = [
        [dataset.sample(index).id for index in dataset.indices(split)] for split in ("train", "val", "test")
    ]
    assert ids == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]
    assert dataset.sample(0).label.sum() == 6 * 8


def test_the_file_itself_may_be_given_and_its_folder_may_be_elsewhere(tmp_path: Path):
    scans(tmp_path / "data")
    (tmp_path / "notes").mkdir()
    describe(tmp_path / "notes", root="../data", labels="drawn/{case}-x.png", instances=True)
    dataset = open_data(str(tmp_path / "notes" / "dataset.json"), image_size=SIZE, need_labels=True)
    assert (dataset.name, len(dataset), dataset.num_classes) == ("data", 6, 2)


def test_patients_of_a_description_stay_together(tmp_path: Path, capsys):
    names = [f"{patient}{number}" for patient in "abcdef" for number in (1, 2)]
    spec = describe(scans(tmp_path, names), patients="scans/(.)")
    dataset = open_data(spec, image_size=SIZE)
    splits = {}
    for index in range(len(dataset)):
        splits.setdefault(dataset.sample(index).id[0], set()).add(dataset.split_of(index))
    assert set(splits) == set("abcdef") and all(len(found) == 1 for found in splits.values())


def test_modalities_are_scaled_as_the_description_says(tmp_path: Path):
    for name in "abc":
        for kind, array in (("ct", np.array([[0, 100], [200, 255]])), ("pet", np.array([[0, 1], [2, 3]]))):
            picture(tmp_path / f"{name}.{kind}.png", np.kron(array, np.ones((8, 8))).astype(np.uint8))
    spec = describe(
        tmp_path,
        images="{case}.{modality}.png",
        modalities={"ct": "CT", "pet": "PET"},
        scaling={"CT": {"low": 100, "high": 200}},
    )
    dataset = open_data(spec, image_size=SIZE)
    image = dataset.image(0)
    assert dataset.channels == 2
    assert [image[0, y, x].item() for y in (0, 15) for x in (0, 15)] == [0, 0, 1, 1]
    assert image[1, 15, 15] == 1 and 0.3 < image[1, 0, 15] < 0.36


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"root": "nowhere"}, "`root` in .* is no folder"),
        ({"labels": "drawn/{case}-y.png"}, "has no training labels"),
        ({"patients": "z"}, "finds no patient in 'scans/a1.png'"),
        ({"labels": "drawn/{case}-x.png", "label_values": {"1": 1}}, "contains the value 7, which is not in"),
        ({"splits": {"train": ["a1"]}}, "has none for case a2"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, keys, message):
    spec = describe(scans(tmp_path), **keys)
    with pytest.raises(InputError, match=message):
        open_data(spec, image_size=SIZE, need_labels=True)


def test_a_description_of_another_program_is_no_data(tmp_path: Path):
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "CT"}}')
    with pytest.raises(InputError, match="is no description of ahm-gym"):
        open_data(str(tmp_path / "dataset.json"), image_size=SIZE)

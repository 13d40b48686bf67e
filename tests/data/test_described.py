"""Tests of folders that a `dataset.json` describes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ahm_gym.data import open_data
from ahm_gym.data.search import find_layout
from ahm_gym.errors import InputError
from ahm_gym.look.proposal import propose

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


def organs(folder: Path, names=("aorta", "liver")) -> Path:
    for case in ("a", "b", "c"):
        picture(folder / case / "ct.png", RNG.integers(0, 255, (20, 24), dtype=np.uint8))
        for number, name in enumerate(names):
            label = np.zeros((20, 24), np.uint8)
            label[4 + 3 * number : 10 + 3 * number, 4:12] = 255
            picture(folder / case / "organs" / f"{name}.png", label)
    return folder


def test_labels_in_a_file_for_each_class_have_its_number(tmp_path: Path, capsys):
    organs(tmp_path, ("aorta", "liver", "spleen"))
    keys = {"images": "{case}/ct.png", "labels": "{case}/organs/{class}.png"}
    spec = describe(tmp_path, **keys, classes={"1": "liver", "2": "aorta"})
    dataset = open_data(spec, image_size=SIZE, native_resolution=True, need_labels=True)
    assert dataset.class_names == {1: "liver", 2: "aorta"} and len(dataset) == 3
    label = dataset.sample(0).label
    assert label[5, 5] == 2 and label[8, 5] == 2 and label[12, 5] == 1 and label[13:].sum() == 0
    said = capsys.readouterr().err
    assert (
        "3 of 3 files: in files that overlap, where the class with the highest number counts (labels)" in said
    )
    assert "spleen.png and 2 more are left out: dataset.json does not name it" in said


def test_a_case_may_list_the_labels_of_each_class(tmp_path: Path):
    organs(tmp_path)
    cases = {
        case: {"images": [f"{case}/ct.png"], "labels": {"aorta": [f"{case}/organs/aorta.png"]}}
        for case in "abc"
    }
    (tmp_path / "dataset.json").write_text(
        json.dumps({"ahm_gym": 1, "cases": cases, "classes": {"3": "aorta"}})
    )
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert dataset.sample(0).label.max() == 3
    (tmp_path / "dataset.json").write_text(
        json.dumps({"ahm_gym": 1, "cases": cases, "classes": {"3": "liver"}})
    )
    with pytest.raises(InputError, match="`classes` in .* has no 'aorta', of which there is a label"):
        open_data(str(tmp_path), image_size=SIZE)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": "{class}/{case}.png"}, "`images` in .* has {class}, which only labels have"),
        (
            {"labels": ["{case}/{class}.png", "{case}.png"]},
            "only some patterns of `labels` in .* have {class}",
        ),
        ({"labels": "{case}/{class}.png"}, "has {class}: list them in `classes`"),
    ],
)
def test_classes_in_patterns_are_checked(tmp_path: Path, keys: dict, message: str):
    classes = {} if "list them" in message else {"classes": {"1": "x"}}
    with pytest.raises(InputError, match=message):
        open_data(describe(scans(tmp_path), **keys, **classes), image_size=SIZE)


def test_what_is_proposed_for_labels_of_classes_says_the_same(tmp_path: Path):
    found = find_layout(organs(tmp_path / "data"))
    proposed = propose(found, tmp_path)
    assert proposed is not None and proposed["labels"] == ["{case}/organs/{class}.png"]
    (tmp_path / "dataset.json").write_text(json.dumps(proposed))
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert dataset.class_names == {1: "aorta", 2: "liver"} and dataset.num_classes == 3


def test_labels_of_one_class_hold_one_value(tmp_path: Path):
    organs(tmp_path)
    picture(tmp_path / "a" / "organs" / "liver.png", np.arange(480, dtype=np.uint8).reshape(20, 24) % 3)
    with pytest.raises(
        InputError, match=r"liver\.png is the label of one of several classes .* the values 0, 1, 2:"
    ):
        open_data(str(tmp_path), image_size=SIZE, need_labels=True)

"""Tests of folds that nnU-Net's splits_final.json or a description names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from image_folders import mask, names, write

from ahm_gym.data import open_data
from ahm_gym.data.folds import describe_fold, with_fold
from ahm_gym.data.search import find_layout
from ahm_gym.errors import InputError

FOLDS = [
    {"train": ["c0", "c1", "c2", "c3"], "val": ["c4"]},
    {"train": ["c4", "c2", "c3"], "val": ["c0", "c1"]},
]


def raw(path: Path) -> Path:
    """A data set of six cases as nnU-Net has it, in a folder nnUNet_raw."""
    folder = path / "nnUNet_raw" / "Dataset001_Disc"
    for number in range(6):
        write(folder / "imagesTr" / f"c{number}_0000.png")
        write(folder / "labelsTr" / f"c{number}.png", mask())
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "disc": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("nnUNet_raw/Dataset001_Disc", ""),
        ("nnUNet_raw/Dataset001_Disc", "imagesTr"),
        ("nnUNet_preprocessed/Dataset001_Disc", ""),
        ("nnUNet_preprocessed/Dataset001_Disc", "imagesTr"),
    ],
)
def test_the_folds_of_nnunet_are_found_and_divide_train_and_val(tmp_path: Path, capsys, place, given):
    folder = raw(tmp_path)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "splits_final.json").write_text(json.dumps(FOLDS))
    dataset = open_data(str(folder / given), image_size=(8, 8), need_labels=True)
    assert "names 2 folds, of which --fold uses one" in capsys.readouterr().err
    for number, fold in enumerate(FOLDS):
        divided = with_fold(dataset, number, 5)
        assert {
            split: sorted(name[:2] for name in names(divided, split)) for split in ("train", "val", "test")
        } == {
            "train": sorted(fold["train"]),
            "val": fold["val"],
            "test": ["c5"],  # which no fold names
        }
    assert "fold 1 of 2 that the data names: 3 patients in train and 2 in val" in describe_fold(divided, 1, 5)
    with pytest.raises(InputError, match="`fold` is 2: choose from 0 to 1, as .* names 2 folds"):
        with_fold(dataset, 2, 5)


def test_without_a_fold_the_splits_are_as_without_the_file(tmp_path: Path):
    folder = raw(tmp_path)
    before = open_data(str(folder), image_size=(8, 8))
    (folder / "splits_final.json").write_text(json.dumps(FOLDS))
    after = open_data(str(folder), image_size=(8, 8))
    splits = [[one.split_of(index) for index in range(6)] for one in (before, after)]
    assert splits[0] == splits[1] and not before.folds and len(after.folds) == 2


def test_a_changed_file_is_read_again(tmp_path: Path):
    folder = raw(tmp_path)
    place = tmp_path / "nnUNet_preprocessed" / "Dataset001_Disc"
    place.mkdir(parents=True)
    (place / "splits_final.json").write_text(json.dumps(FOLDS))
    assert len(open_data(str(folder), image_size=(8, 8)).folds) == 2
    (place / "splits_final.json").write_text(json.dumps(FOLDS[:1]))
    assert len(open_data(str(folder), image_size=(8, 8)).folds) == 1


def test_folds_of_other_cases_are_said(tmp_path: Path):
    folder = raw(tmp_path)
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["c0", "x"], "val": ["c1"]}]))
    layout = find_layout(folder)
    assert "1 of their 3 cases are not here, such as x" in layout.notes
    assert [scan.folds for scan in layout.scans[:3]] == [("train",), ("val",), ("test",)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["x"], "val": ["y"]}]))
    layout = find_layout(folder)
    assert any("names folds of other cases, and is not used" in note for note in layout.notes)
    assert not any(scan.folds for scan in layout.scans)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "splits_final.json is not JSON .*expected nnU-Net's splits_final.json"),
        ('[{"train": ["a"]}]', "`0.val` is missing in .*splits_final.json: expected"),
        ('[{"train": ["c0"], "val": ["c0"]}]', "fold 0 in .* has the case c0 in train and in val"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content, message):
    folder = raw(tmp_path)
    (folder / "splits_final.json").write_text(content)
    with pytest.raises(InputError, match=message):
        find_layout(folder)


def described(path: Path, splits: object) -> str:
    for number in range(6):
        write(path / "i" / f"c{number}.png")
        write(path / "l" / f"c{number}.png", mask())
    content = {"ahm_gym": 1, "images": "i/{case}.png", "labels": "l/{case}.png", "splits": splits}
    (path / "dataset.json").write_text(json.dumps(content))
    return str(path)


def test_the_splits_of_a_description_may_be_a_list_of_folds(tmp_path: Path):
    folds = [{**fold, "test": ["i/c5*"]} for fold in FOLDS]
    dataset = open_data(described(tmp_path, folds), image_size=(8, 8), need_labels=True)
    assert names(dataset, "val") == ["c4"] and names(dataset, "test") == ["c5"]  # those of the first fold
    divided = with_fold(dataset, 1, 5)
    assert (names(divided, "val"), names(divided, "test")) == (["c0", "c1"], ["c5"])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"train": ["c0", "c1", "c2", "c3"], "val": ["c4"]},
            "has none for case c5 .* in fold 1: give it one",
        ),
        (
            {"train": ["c0", "c1", "c2", "c5"], "val": ["c4"], "test": ["c3"]},
            "case c3 .* in test in some folds only",
        ),
    ],
)
def test_folds_of_a_description_must_fit_the_cases(tmp_path: Path, second, message):
    first = {"train": ["c0", "c1", "c2", "c3"], "val": ["c4"], "test": ["c5"]}
    with pytest.raises(InputError, match=message):
        open_data(described(tmp_path, [first, second]), image_size=(8, 8))

"""Splits by patient, by volume, by CSV and in blocks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahm_gym.data.patients import Evidence, find_patients
from ahm_gym.data.splits import (
    SplitTable,
    choose_splits,
    complete_splits,
    describe_shared_patients,
    name_cases,
    patients_of_cases,
    split_blocks,
    split_groups,
    split_series,
    summarise,
)
from ahm_gym.errors import InputError


@given(num_patients=st.integers(3, 60), images_each=st.integers(1, 4))
def test_no_patient_is_in_two_splits_and_no_split_is_empty(num_patients: int, images_each: int):
    patients = [f"p{i}" for i in range(num_patients) for _ in range(images_each)]
    splits = split_groups(patients)
    assert len(set(zip(patients, splits, strict=True))) == num_patients
    assert set(splits) == {"train", "val", "test"}


def test_the_shares_are_70_10_20_and_do_not_depend_on_the_order():
    patients = [f"p{i}" for i in range(100)]
    splits = split_groups(patients)
    assert [splits.count(name) for name in ("train", "val", "test")] == [70, 10, 20]
    assert split_groups(patients[::-1]) == splits[::-1]


def test_patients_are_shuffled():
    splits = split_groups([f"p{i:03d}" for i in range(100)])
    assert splits != sorted(splits, key=("train", "val", "test").index)


@pytest.mark.parametrize(
    ("num", "counts"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (20, [14, 2, 4])]
)
def test_blocks_are_contiguous_and_ordered(num: int, counts: list[int]):
    splits = split_blocks(num) if num else []
    assert [splits.count(name) for name in ("train", "val", "test")] == counts
    assert splits == sorted(splits, key=("train", "val", "test").index)


def test_fewer_than_three_patients_are_not_divided():
    assert complete_splits([None] * 4, ["a"] * 4) == ["train"] * 4
    splits = complete_splits([None] * 4, ["a", "b", "a", "b"])
    assert splits[:2] == splits[2:] and set(splits) == {"train", "test"}


def test_each_numbered_series_is_split_in_blocks():
    names = [f"{kind} ({i})" for kind in ("benign", "malignant") for i in range(10)]
    assert split_series(names) == split_blocks(10) * 2
    assert split_series(["a_1", "a_2", "a_3", "b"]) == split_blocks(4)


def test_given_splits_are_kept_and_hold_for_the_other_images_of_the_patient():
    assert complete_splits(["test", "train", "val"], ["a", "b", "c"]) == ["test", "train", "val"]
    assert complete_splits(["val", None, None], ["a", "a", "b"])[1] == "val"


def test_volumes_of_a_numbered_series_are_shuffled_and_images_are_not():
    names = [f"la_{i}" for i in range(20)]
    volumes, images = ([Evidence(name, volume=name if v else None) for name in names] for v in (True, False))
    assert choose_splits([None] * 20, images, find_patients(images), None) == split_blocks(20)
    shuffled = choose_splits([None] * 20, volumes, find_patients(volumes), None)
    assert shuffled != split_blocks(20) and shuffled.count("test") == 4


def test_the_summary_counts_patients_in_splits_with_examples():
    patients = find_patients([Evidence(f"ED_A{i}S{i}_sa") for i in range(12)] * 2)
    splits = complete_splits([None] * 24, patients.of_images)
    found = summarise(patients, splits, chosen=True)
    assert found.startswith("24 images of 12 patients (") and found.endswith(
        "9/1/2 patients in train/val/test"
    )


def test_a_note_names_patients_in_more_than_one_split():
    patients = ["a", "a", "b", "c"]
    note = describe_shared_patients(["train", "test", "train", "val"], patients)
    assert note == "1 of 3 patients is in more than one split: a"
    assert describe_shared_patients(["train", "train", "test", "val"], patients) is None
    assert describe_shared_patients(["train", "test"], ["img", "img"]) is not None


def test_the_patient_is_listed_for_cases_that_share_one():
    cases, patients = ["p1_ed", "p1_ed", "p1_es", "p2_ed", "p3_ed"], ["p1", "p1", "p1", "p2", "p3"]
    assert patients_of_cases(cases, patients) == {"p1_ed": "p1", "p1_es": "p1"}
    assert patients_of_cases(["la_1", "la_2", "la_3"], ["la"] * 3) == {}


def test_a_case_is_the_volume_or_else_the_patient_or_else_the_image():
    assert name_cases(["a_s1", "b_s1"], ["x", "y"], ["a", "b"]) == ["a", "b"]
    assert name_cases(["a_1", "b_1", "c_1"], ["a", "b", "c"], [None] * 3) == ["a", "b", "c"]
    assert name_cases(["img_1", "img_2", "img_3"], ["img"] * 3, [None] * 3) == ["img_1", "img_2", "img_3"]


def table(folder: Path, text: str) -> SplitTable:
    path = folder / "split.csv"
    path.write_text(text, encoding="utf-8-sig")
    return SplitTable(path)


def test_a_table_knows_file_names_stems_and_patients_and_the_most_exact_wins(tmp_path: Path):
    splits = table(tmp_path, "name,split\np1,train\np1_2,val\np1_3.png,test\n")
    assert [splits.of_file(Path(f"p1_{i}.png"), f"p1_{i}") for i in (1, 2, 3)] == [None, "val", "test"]
    assert splits.of_patient("p1_1", "p1") == "train"


def test_a_table_may_name_the_beginning_of_names(tmp_path: Path):
    splits = table(tmp_path, "name,split\np1,train\np1_2,val\n")
    assert [splits.of_patient(f"x/{name}", "?") for name in ("p1-7", "p1_2_7", "p1")] == [
        "train",
        "val",
        "train",
    ]
    with pytest.raises(InputError, match="p10_2 has no line"):
        splits.of_patient("p10_2", "p10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,fold\na,1\n", "file, fold: expected 'name,split' as its first"),
        ("", "columns \\(none\\)"),
        ("name,split\na,valid\n", "'a' the split 'valid': expected train, val or test"),
        ("name,split\na,val\na,test\n", "'a' two splits"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=message):
        table(tmp_path, text)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path):
    (tmp_path / "split.csv").write_bytes("name,split\nknöchel,train\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"split\.csv cannot be read .*: expected a table in UTF-8"):
        SplitTable(tmp_path / "split.csv")


def test_an_image_that_is_not_in_the_table_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"q_1 has no line in .*split\.csv: add .* its patient 'q'"):
        table(tmp_path, "name,split\np,train\n").of_patient("q_1", "q")


def test_a_table_with_an_endless_field_is_refused(tmp_path: Path):
    for lines in (f"name,split\na,{'x' * 140_000}\n", "x" * 140_000):
        (tmp_path / "split.csv").write_text(lines)
        with pytest.raises(InputError, match=r"split\.csv cannot be read .* check its quotation marks"):
            SplitTable(tmp_path / "split.csv")

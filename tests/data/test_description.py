"""Tests of `dataset.json`: its schema, its patterns, and the cases that they find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ahm_gym.data.description import Description, match_files, read_description, splits_of
from ahm_gym.errors import InputError


def described(**keys):
    return Description.model_validate({"ahm_gym": 1, "images": "{case}.png", **keys})


def files(*places):
    return {place: Path("/data") / place for place in places}


def found(description, *places):
    return {
        name: (
            {key: path.name for key, path in case.images.items()},
            [path.name for path in case.labels],
            case.patient,
        )
        for name, case in match_files(description, files(*places), "dataset.json").items()
    }


@pytest.mark.parametrize(
    ("keys", "places", "expected"),
    [
        (
            {"images": "images/{case}.png", "labels": "masks/{case}_mask*.png"},
            ["images/a.png", "masks/a_mask.png", "masks/a_mask_1.png", "masks/b.txt", "notes/a.png"],
            {"a": ({"": "a.png"}, ["a_mask.png", "a_mask_1.png"], None)},
        ),
        (
            {"images": "imagesTr/{case}_{modality}.nii.gz", "modalities": {"0000": "T1", "0001": "T2"}},
            ["imagesTr/a_1_0000.nii.gz", "imagesTr/a_1_0001.nii.gz"],
            {"a_1": ({"0000": "a_1_0000.nii.gz", "0001": "a_1_0001.nii.gz"}, [], None)},
        ),
        (
            {"images": "**/{patient}/{patient}_{case}.png", "labels": "**/{patient}/{patient}_{case}_gt.png"},
            ["p1/p1_ed.png", "p1/p1_ed_gt.png", "x/p2/p2_ed.png", "p2/p1_ed.png"],
            {"p1/ed": ({"": "p1_ed.png"}, ["p1_ed_gt.png"], "p1"), "p2/ed": ({"": "p2_ed.png"}, [], "p2")},
        ),
        (
            {"images": "{patient}/frame{case}.png", "labels": "{patient}/gt{case}.png"},
            ["p1/frame1.png", "p1/gt1.png", "p2/frame1.png", "p2/gt1.png"],
            {
                "p1/1": ({"": "frame1.png"}, ["gt1.png"], "p1"),
                "p2/1": ({"": "frame1.png"}, ["gt1.png"], "p2"),
            },
        ),
        (
            {"images": ["{case}.png", "{case}.tif"]},
            ["a.png", "b.tif"],
            {"a": ({"": "a.png"}, [], None), "b": ({"": "b.tif"}, [], None)},
        ),
    ],
)
def test_patterns_find_the_files_of_each_case(keys, places, expected):
    assert found(described(**keys), *places) == expected


@pytest.mark.parametrize(
    ("keys", "places", "message"),
    [
        ({}, ["a.tif"], "no file matches `images`"),
        ({"images": "*/{case}.png"}, ["x/a.png", "y/a.png"], "are the same image of case a"),
        (
            {"images": "{case}_{modality}.png", "modalities": {"t1": "T1", "t2": "T2"}},
            ["a_t1.png"],
            "case a has no image of the modality 't2'",
        ),
        ({"labels": "gt/{case}.png"}, ["a.png", "gt/b.png"], "its case b has no image"),
    ],
)
def test_files_that_do_not_fit_are_refused(keys, places, message):
    with pytest.raises(InputError, match=message):
        found(described(**keys), *places)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": "a.png"}, "has no {case}"),
        ({"cases": {"a": {"images": ["a.png"]}}}, "needs either `images` or `cases`"),
        ({"images": [], "cases": {"a": {"images": []}}}, "cases.a.*at least 1 item"),
        (
            {"images": "{case}_{channel}.png"},
            "has {channel}: expected {case}, {modality}, {patient} or {class}",
        ),
        ({"images": "{case}_{modality}.png"}, "list them in `modalities`"),
        ({"images": 3}, "`images` in .*input should be a valid"),
        (
            {"imags": "{case}.png"},
            r"`imags` in .*dataset.json is '{case}.png' \(extra inputs are not permitted\): correct it",
        ),
        ({"patients": "("}, "is no regular expression"),
        ({"classes": {"liver": "1"}}, "`classes.liver.*string should match"),
        ({"label_values": {"red": 1}}, "`label_values.red.*string should match"),
        ({"scaling": {"T1": "channel"}}, "scaling names 'T1', which is no name in modalities"),
        ({"scaling": "zscore"}, "scaling"),
        ({"scaling": {"low": 5, "high": 5}}, "expected low below high"),
        ({"instances": True, "label_values": {"1": 1}}, "instances makes every value above 0 class 1"),
        ({"splits": {"training": ["a"]}}, "`splits.named.training.*input should be"),
        ({"splits": [{"train": ["a"]}, {"training": ["a"]}]}, "`splits.folds.1.training.*input should be"),
        ({"ahm_gym": 2}, "has the version 2"),
    ],
)
def test_a_broken_description_is_refused_by_its_key(tmp_path, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"ahm_gym": 1, "images": "{case}.png"} | content))
    with pytest.raises(InputError, match=message):
        read_description(path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, b"\xff\xfe\x00"])
def test_a_description_that_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="correct it"):
        read_description(path)


def test_descriptions_of_other_programs_are_left_to_them(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0}}))
    assert read_description(path) is None


def test_splits_name_patients_cases_or_patterns():
    description = described(splits={"train": ["p1", "c9"], "test": ["site_b/*"]})
    where = {"c1": ("p1", ["a/c1.png"]), "c9": ("p3", ["a/c9.png"]), "c2": ("p2", ["site_b/c2.png"])}
    splits = {
        case: splits_of(description, case, *evidence, "dataset.json") for case, evidence in where.items()
    }
    assert splits == {"c1": ("train",), "c9": ("train",), "c2": ("test",)}
    assert splits_of(described(), "c1", "p1", ["c1.png"], "dataset.json") == ()
    for case, patient, message in (("c5", "p5", "has none for case c5"), ("c5", "p1", "train and test")):
        with pytest.raises(InputError, match=message):
            splits_of(
                description, case, patient, ["site_b/x.png" if patient == "p1" else "a/x.png"], "dataset.json"
            )


def test_cases_may_be_listed():
    description = Description.model_validate(
        {
            "ahm_gym": 1,
            "cases": {"x": {"images": ["b/1.png"], "labels": ["c/2.png"], "patient": "p", "split": "val"}},
        }
    )
    case = match_files(description, files("b/1.png", "c/2.png"), "dataset.json")["x"]
    assert ({key: path.name for key, path in case.images.items()}, case.labels[0].name) == (
        {"": "1.png"},
        "2.png",
    )
    assert (case.patient, case.split) == ("p", "val")
    with pytest.raises(InputError, match="names c/2.png, which is not there"):
        match_files(description, files("b/1.png"), "dataset.json")
    two = description.model_copy(update={"modalities": {"a": "A", "b": "B"}})
    with pytest.raises(InputError, match="has 1 image: expected 2"):
        match_files(two, files("b/1.png", "c/2.png"), "dataset.json")

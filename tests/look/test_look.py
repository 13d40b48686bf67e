"""Tests of `ahm-gym look`: what it counts, its page, and the description that it proposes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from medical_files import volumes_in
from published_layouts import write_published

from ahm_gym.data import open_data
from ahm_gym.data.described import open_folder
from ahm_gym.data.search import find_layout
from ahm_gym.look.config import LookConfig
from ahm_gym.look.counts import count_classes, count_images, histograms
from ahm_gym.look.program import run_look
from ahm_gym.look.proposal import propose


def test_counts_of_the_discs(discs):
    dataset = open_data(str(discs), image_size=(16, 16))
    table = count_images(dataset)
    assert table.columns == ["split", "images", "cases", "patients", "with a label"]
    assert [row[:2] for row in table.rows] == [
        [split, str(len(dataset.indices(split)))] for split in ("train", "val", "test")
    ]
    pixels = np.concatenate([dataset.label(index).flatten() for index in dataset.indices("train")])
    row = count_classes(dataset, ["background", "disc"]).rows[1]
    assert row[0] == "disc" and row[2] == f"{(pixels == 1).mean():.2%}"


def test_histograms_hold_all_pixels_of_every_channel(discs):
    dataset = open_data(str(discs), image_size=(16, 16))
    for counts in histograms(dataset).values():
        assert counts.shape == (dataset.channels, 50)
        assert counts.sum(axis=1) == pytest.approx(1.0)


def test_the_page_of_a_file_has_no_description(discs, tmp_path: Path, capsys):
    page = run_look(LookConfig(str(discs), image_size=16, out=tmp_path / "out"))
    text = page.read_text(encoding="utf-8")
    assert "every image counts as a patient of its own" in text
    assert text.count("data:image/png;base64,") == 4  # three splits and the histograms
    assert "http" not in text.replace("http-equiv", "")
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert "Images of each split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "key", "images"),
    [
        ("busi", "images", None),
        ("brats2020", "images", ["**/{case}_{modality}.nii.gz"]),
        ("brats2023", "images", ["*/{case}-{modality}.nii.gz"]),
        ("kits", "images", ["{case}/imaging.nii.gz"]),
        ("decathlon", "images", ["imagesTr/{case}.nii.gz"]),
        ("chase", "images", ["*/{case}.jpg"]),
        ("bids", "cases", None),
        ("btcv", "cases", None),
        ("dsb2018", "cases", None),
        ("drive", "cases", None),
    ],
)
def test_the_proposed_description_finds_the_same_files(tmp_path: Path, name, key, images):
    layout = find_layout(write_published(name, tmp_path / "data"))
    (tmp_path / "out").mkdir()
    proposed = propose(layout, tmp_path / "out")
    assert key in proposed and images in (None, proposed.get("images"))
    path = tmp_path / "out" / "dataset.json"
    path.write_text(json.dumps(proposed))
    found = open_folder(path).layout
    assert len(found.scans) == len(layout.scans)
    assert found.modalities == layout.modalities or [*proposed["modalities"].values()] == [*layout.modalities]
    files = [
        {(scan.images, frozenset(scan.labels), scan.split) for scan in one.scans} for one in (found, layout)
    ]
    assert {tuple(path.name for path in images) for images, _, _ in files[0]} == {
        tuple(path.name for path in images) for images, _, _ in files[1]
    }
    assert sorted(sorted(path.name for path in labels) for _, labels, _ in files[0]) == sorted(
        sorted(path.name for path in labels) for _, labels, _ in files[1]
    )
    assert sorted(str(split) for _, _, split in files[0]) == sorted(str(split) for _, _, split in files[1])


def test_volumes_are_shown_in_three_planes_and_described_as_such(tmp_path: Path, capsys):
    scans = volumes_in(tmp_path / "scans", [(9, 10, 11)] * 5, [(1.0, 1.0, 2.0)] * 5)
    run_look(LookConfig(str(scans), image_size=8, out=tmp_path / "slices"))
    assert "`volumes` reads them whole" in capsys.readouterr().err
    page = run_look(LookConfig(str(scans), volumes=True, image_size=8, out=tmp_path / "out"))
    text = page.read_text(encoding="utf-8")
    assert "9 x 10 x 11" in text and "1 x 1 x 2 mm" in text and "Volumes of each split" in text
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["volumes"] is True
    again = open_data(str(tmp_path / "out" / "dataset.json"), image_size=(8, 8, 8))
    assert again.axes == 3 and len(again) == 5

"""Labels that no name tells from images: what their pixels tell, and what they do not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK
from image_folders import RNG, SIZE, mask, write

from ahm_gym.data import open_data
from ahm_gym.data.few_values import count_label_values, count_values
from ahm_gym.data.search import find_layout

CASES = ("anna7", "bert12", "carl20")
WORDS = ("anna", "bert", "carl")
VOLUME = (9, 8, 3)


def save(path: Path, array: np.ndarray) -> Path:
    if path.suffix in (".nrrd", ".mha"):
        path.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(path))
        return path
    return write(path, array)


def image_like(suffix: str) -> np.ndarray:
    shape = (12, 10) if suffix in (".png", ".jpg", ".bmp", ".tif") else VOLUME
    return RNG.integers(0, 250, shape, dtype=np.uint8)


def drawn(suffix: str, value: int = 1) -> np.ndarray:
    return value * mask((12, 10) if suffix in (".png", ".jpg", ".bmp", ".tif") else VOLUME)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{0}/lgemri.nrrd", "{0}/laendo.nrrd"),
        ("x/{0}.png", "y/{0}.png"),
        ("data/{0}.nii.gz", "target/{0}.nii.gz"),
        ("train/x/{0}.png", "train/y/{0}.bmp"),
        ("{0}.png", "outline/{0}.png"),
        ("{0}.png", "{0}_bw.png"),
        ("{0}.png", "bw-{0}.png"),
        ("{0}/a.mha", "{0}/b/a.mha"),
        ("pics/pic{1}.png", "cells/cell{1}.png"),
        ("images/{0}.png", "contours/{0}.png"),
        ("raw/{1}.jpg", "tumour/{1}_t.png"),
        ("{2}/ct.png", "{2}/drawn/liver.png"),
        ("{2}/scan.nii.gz", "{2}/roi.nii.gz"),
    ],
)
def test_a_file_of_few_values_beside_an_image_of_its_case_is_its_label(
    tmp_path: Path, image: str, label: str
):
    expected = {}
    for number, case in enumerate(CASES, 1):
        one, other = (tmp_path / form.format(case, number, WORDS[number - 1]) for form in (image, label))
        save(one, image_like(one.suffix))
        save(other, drawn(other.suffix, 255 if number > 1 else 128))
        expected[(one,)] = (other,)
    layout = find_layout(tmp_path)
    assert {scan.images: scan.labels for scan in layout.scans} == expected
    assert not layout.faults
    (doubt,) = (doubt for doubt in layout.doubts if "as labels do" in doubt)
    assert "3 files such as " in doubt and "hold at most 2 values" in doubt
    assert "are used as the labels of these (likely); list images and labels in a dataset.json" in doubt


@pytest.mark.parametrize(
    ("image", "label"),
    [("img{1}.png", "gt_img{1}.png"), ("{0}.png", "mask-{0}.png"), ("{0}.mha", "{0}.OT.mha")],
)
def test_a_name_that_begins_with_a_word_for_label_is_enough(tmp_path: Path, image: str, label: str):
    for number, case in enumerate(CASES, 1):
        (tmp_path / image.format(case, number)).touch()
        (tmp_path / label.format(case, number)).touch()
    layout = find_layout(tmp_path)
    assert len(layout.labels) == 3 and not layout.doubts[:-1] and not layout.faults


@pytest.mark.parametrize("form", ["gt_{0}.png", "seg_{0}.png"])
def test_names_that_begin_so_are_images_if_there_are_no_others(tmp_path: Path, form: str):
    for number in (1, 2, 3):
        write(tmp_path / form.format(number))
    assert len(find_layout(tmp_path).scans) == 3


def test_the_pixels_of_one_case_are_enough(tmp_path: Path):
    save(tmp_path / "lgemri.nrrd", image_like(".nrrd"))
    save(tmp_path / "laendo.nrrd", drawn(".nrrd"))
    (scan,) = find_layout(tmp_path).scans
    assert scan.id == "lgemri" and scan.labels == (tmp_path / "laendo.nrrd",)


def test_images_with_modalities_have_the_label_that_their_pixels_tell(tmp_path: Path):
    for case in CASES:
        for kind in ("t1", "t2"):
            save(tmp_path / case / f"{case}_{kind}.nii.gz", image_like(".nii.gz"))
        save(tmp_path / case / f"{case}_drawing.nii.gz", drawn(".nii.gz"))
    layout = find_layout(tmp_path)
    assert layout.modalities == ("t1", "t2") and [len(scan.labels) for scan in layout.scans] == [1, 1, 1]


@pytest.mark.parametrize("soft", [False, True])
def test_jpeg_and_colours_may_be_labels(tmp_path: Path, soft: bool):
    for case in CASES:
        label = np.zeros((40, 36, 3), np.uint8)
        label[9:22, 11:30] = (255, 255, 255) if soft else (0, 0, 255)
        write(tmp_path / "x" / f"{case}.png", RNG.integers(0, 250, (40, 36), dtype=np.uint8))
        write(tmp_path / "y" / f"{case}{'.jpg' if soft else '.png'}", label)
    layout = find_layout(tmp_path)
    assert len(layout.scans) == len(layout.labels) == 3


def untouched(folder: Path) -> list[str]:
    """The doubts of a folder of which every file stays an image."""
    layout = find_layout(folder)
    assert not layout.labels and len(layout.scans) == sum(path.is_file() for path in folder.rglob("*"))
    return [doubt for doubt in layout.doubts if "values" in doubt]


def test_images_of_few_values_without_a_partner_stay_images_and_are_doubted_if_all_are_so(tmp_path: Path):
    for case in CASES:
        write(tmp_path / f"{case}.png", drawn(".png"))
    (doubt,) = untouched(tmp_path)
    assert "the images hold at most 2 values" in doubt and "give the folder of their images" in doubt
    write(tmp_path / f"{CASES[1]}.png")
    assert not untouched(tmp_path)


def test_maps_of_many_objects_are_doubted(tmp_path: Path):
    for case in CASES:
        write(tmp_path / "tiles" / f"{case}.png", RNG.integers(0, 250, (64, 64), dtype=np.uint8))
        objects = np.arange(1, 65, dtype=np.uint8).reshape(8, 8).repeat(8, axis=0).repeat(8, axis=1)
        write(tmp_path / "objects" / f"{case}.png", objects)
    (doubt,) = untouched(tmp_path)
    assert "3 files such as objects/anna7.png may be labels that number objects" in doubt


def test_folders_that_are_all_named_as_labels_are_told_apart_by_their_pixels(tmp_path: Path):
    for case in CASES:
        write(tmp_path / "CT-Seg_20cases" / f"{case}.nii.gz", image_like(".nii.gz"))
        for name in ("Lung_Mask", "Infection_Mask", "Lung_and_Infection_Mask"):
            write(tmp_path / name / f"{case}.nii.gz", drawn(".nii.gz"))
    layout = find_layout(tmp_path)
    assert {scan.images[0].parent.name for scan in layout.scans} == {"CT-Seg_20cases"} and len(
        layout.labels
    ) == 3


def test_numbered_slices_keep_their_own_labels(tmp_path: Path):
    for case in CASES:
        for number in range(3):
            write(tmp_path / case / f"slice_{number}.png")
            write(tmp_path / case / f"slice_{number}_l.png", mask())
    layout = find_layout(tmp_path)
    assert len(layout.scans) == 9
    assert all(scan.labels[0].stem == f"{scan.images[0].stem}_l" for scan in layout.scans)


def test_the_first_of_several_readers_is_used(tmp_path: Path):
    for case in CASES:
        write(tmp_path / "img" / f"{case}.png")
        for reader in ("reader1", "reader2"):
            write(tmp_path / reader / f"{case}.png", mask())
    layout = find_layout(tmp_path)
    assert {path.parent.name for paths in layout.labels.values() for path in paths} == {"reader1"}
    assert set(layout.left_out.values()) == {"the label of another observer is used"}


def test_images_of_many_values_stay_images_beside_each_other(tmp_path: Path):
    for case in CASES:
        for folder in ("x", "y"):
            write(tmp_path / folder / f"{case}.png")
    assert not untouched(tmp_path)


def test_where_it_is_unsure_a_doubt_names_the_files_and_they_stay_images(tmp_path: Path):
    for case in CASES:
        write(tmp_path / "x" / f"{case}.png")
        write(tmp_path / "y" / f"{case}.png", mask((12, 9)))
    (doubt,) = untouched(tmp_path)
    assert "3 files such as y/anna7.png hold at most 2 values" in doubt
    assert "but their images have another size, so that they are used as images; list images" in doubt
    for number, case in enumerate(CASES):
        write(tmp_path / "y" / f"{case}.png", mask() if number < 2 else image_like(".png"))
    assert "but some of them hold more" in untouched(tmp_path)[0]
    for case in CASES:
        write(tmp_path / "y" / f"{case}.png", mask())
    for number in range(9):
        write(tmp_path / "y" / f"other{number}.png", mask())
    assert "but many have no image beside them" in untouched(tmp_path)[0]


def test_black_first_frames_make_no_labels_of_images(tmp_path: Path):
    for folder in ("x", "y"):
        for number, case in enumerate(CASES):
            write(
                tmp_path / folder / f"{case}.png",
                image_like(".png") if number else np.zeros((12, 10), np.uint8),
            )
    assert not untouched(tmp_path)


def test_a_label_by_name_goes_before_one_by_pixels(tmp_path: Path):
    for case in CASES:
        write(tmp_path / "images" / f"{case}.png")
        write(tmp_path / "images" / f"{case}_edges.png", mask())
        write(tmp_path / "masks" / f"{case}.png", mask())
    layout = find_layout(tmp_path)
    assert set(layout.labels.values()) == {(tmp_path / "masks" / f"{case}.png",) for case in CASES}
    assert set(layout.left_out.values()) == {
        "it seems to be a label by its pixels, and its image has one by its name"
    }


def test_two_unnamed_labels_of_an_image_are_classes(tmp_path: Path):
    for case in CASES:
        save(tmp_path / case / "lgemri.nrrd", image_like(".nrrd"))
        save(tmp_path / case / "laendo.nrrd", drawn(".nrrd"))
        wall = np.zeros(VOLUME, np.uint8)
        wall[6:8] = 255
        save(tmp_path / case / "lawall.nrrd", wall)
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True, need_labels=True)
    assert dataset.class_names == {1: "laendo", 2: "lawall"} and dataset.num_classes == 3


def test_values_are_counted_as_those_of_labels(tmp_path: Path):
    colours = np.zeros((12, 10, 3), np.uint8)
    colours[:4], colours[4:8, :, 1] = (9, 200, 7), 80
    assert count_label_values(write(tmp_path / "a.png", colours)) == 3
    floats = mask(VOLUME) * np.float32(2.0004)
    assert count_label_values(write(tmp_path / "a.nii.gz", floats)) == 2
    assert count_label_values(write(tmp_path / "b.nii.gz", floats / 3)) is None
    assert count_label_values(write(tmp_path / "c.nii.gz", -mask(VOLUME).astype(np.int16))) is None
    assert (
        count_label_values(write(tmp_path / "b.png", np.arange(120, dtype=np.uint8).reshape(12, 10))) is None
    )
    assert count_values(write(tmp_path / "c.png", np.arange(120, dtype=np.uint8).reshape(12, 10))) == 120
    (tmp_path / "d.png").touch()
    assert count_values(tmp_path / "d.png") == 0 and count_label_values(tmp_path / "d.png") is None


def test_large_volumes_of_many_values_are_looked_at_coarsely(tmp_path: Path):
    volume = cv2.resize(RNG.integers(0, 250, (20, 20), dtype=np.uint8), (200, 200))[:, :, None].repeat(
        130, axis=2
    )
    assert count_values(write(tmp_path / "a.npy", volume)) > 32
    volume[:] = 0
    volume[5, 5, 5] = 7  # between the voxels that are looked at first
    assert count_label_values(write(tmp_path / "b.npy", volume)) == 2

"""Labels in folders of images: where they are found, and which are refused."""

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from image_folders import RNG, SIZE, label_of, mask, names, write

from ahm_gym.data import open_data
from ahm_gym.data.folder import FolderSource
from ahm_gym.data.sample import SPLITS
from ahm_gym.data.search import find_layout
from ahm_gym.errors import InputError


@pytest.mark.parametrize("labels", ["labels", "masks", "label", "mask", "labelsTr"])
@pytest.mark.parametrize("images", ["images", "imagesTr"])
def test_labels_may_be_in_a_folder_next_to_the_images_under_the_same_names(
    tmp_path: Path, images: str, labels: str
):
    for index, name in enumerate("abc"):
        label = np.zeros((12, 10), np.uint8)
        label[index] = 1
        write(tmp_path / images / f"{name}.jpg")
        write(tmp_path / labels / f"{name}.png", label)
    for folder in (tmp_path, tmp_path / images):
        dataset = open_data(str(folder), image_size=SIZE, native_resolution=True)
        rows = {dataset.sample(i).id: label_of(dataset, i)[:, 0].argmax().item() for i in range(3)}
        assert rows == {"a": 0, "b": 1, "c": 2}


def test_labels_may_be_in_a_folder_inside_the_folder_of_the_images(tmp_path: Path):
    write(tmp_path / "a.png")
    write(tmp_path / "labels" / "a.png", mask())
    assert open_data(str(tmp_path), image_size=SIZE, need_labels=True).num_classes == 2


@pytest.mark.parametrize(
    "ending",
    [
        "_mask",
        "_segmentation",
        "_label",
        "_seg",
        "_gt",
        "-masks",
        " labels",
        "_GroundTruth",
        "_Annotation",
        "_anno",
    ],
)
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_the_name_of_a_label_may_end_in_a_word_for_label(tmp_path: Path, folder: str, ending: str):
    for name in ("p1_1", "p2_1", "p3_1"):
        write(tmp_path / "images" / f"{name}.png")
        write(tmp_path / folder / f"{name}{ending}.png", mask())
    write(tmp_path / "images" / "p4_1.png")
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    samples = {dataset.sample(index).id: dataset.sample(index).label is None for index in range(len(dataset))}
    assert samples == {"p1_1": False, "p2_1": False, "p3_1": False, "p4_1": True}


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_numbered_labels_belong_to_the_images_with_their_numbers(tmp_path: Path, folder: str):
    for number in (0, 1, 2):
        label = np.zeros((12, 10), np.uint8)
        label[number] = 1
        write(tmp_path / "images" / f"img_{number:04d}.png")
        write(tmp_path / folder / f"img_mask_{number:04d}.png", label)
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True)
    rows = {dataset.sample(i).id: label_of(dataset, i)[:, 0].argmax().item() for i in range(len(dataset))}
    assert rows == {"img_0000": 0, "img_0001": 1, "img_0002": 2}


def test_numbered_names_without_another_image_are_images(tmp_path: Path, capsys):
    for number in (1, 2):
        write(tmp_path / f"liver_seg_{number:03d}.png")
    assert len(open_data(str(tmp_path), image_size=SIZE)) == 2
    assert "all files are named like labels, and are used as images" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["images", "masks"])
@pytest.mark.parametrize(
    ("images", "labels", "alone"),
    [
        ("img_0000 img_0001", "img_mask_0000 img_mask_0001 img_mask_0002", "img_mask_0002"),
        ("img_0000 img_0001 img_0003", "img_mask_0001 img_mask_0002", "img_mask_0002"),
        ("img_1 img_2", "img_mask_01 img_mask_02", "img_mask_01"),
        ("a a_1", "a_mask_1 a_mask_2", "a_mask_2"),
        ("p1", "p1_seg p1_seg_gt", "p1_seg_gt"),
        ("img_0001", "mask_0002", "mask_0002"),
        ("x-a x-b", "x-seg", "x-seg"),
    ],
)
def test_a_label_that_names_no_image_is_refused(tmp_path: Path, folder, images, labels, alone):
    for name in images.split():
        write(tmp_path / "images" / f"{name}.png")
    for name in labels.split():
        write(tmp_path / folder / f"{name}.png", mask())
    with pytest.raises(
        InputError, match=rf"/{alone}\.png is (a label without an|named like a label but has no) image"
    ):
        open_data(str(tmp_path), image_size=SIZE)


@pytest.mark.parametrize("images", ["p7 p7_2018 p7_2019", "p7_0000 p7_2019 p7"])
@pytest.mark.parametrize(("folder", "label"), [("images", "p7_mask"), ("masks", "p7")])
def test_a_year_is_not_a_channel(tmp_path: Path, images: str, folder: str, label: str):
    for name in images.split():
        write(tmp_path / "images" / f"{name}.png")
    write(tmp_path / folder / f"{label}.png", mask())
    layout = find_layout(tmp_path)
    assert set(layout.labels) == {"p7"} and not layout.channels_named


def test_a_folder_of_labels_given_instead_of_images_is_refused(tmp_path: Path, monkeypatch):
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "Masks" / "a.png", mask())
    monkeypatch.chdir(tmp_path / "Masks")
    for folder in (tmp_path / "Masks", Path()):
        with pytest.raises(
            InputError, match=r"holds labels, according to its name: expected images; give .*"
        ):
            FolderSource(folder)


def test_a_note_says_where_the_labels_come_from(tmp_path: Path, capsys):
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "images" / "b.png")
    write(tmp_path / "masks" / "a.png", mask())
    open_data(str(tmp_path), image_size=SIZE)
    assert f"1 of 2 files have a label, from {tmp_path / 'masks'}." in capsys.readouterr().err


def test_labels_may_be_among_the_channels_of_nnunet(tmp_path: Path):
    for case in ("a", "b", "c"):
        write(tmp_path / f"{case}_0000.png")
        write(tmp_path / f"{case}_seg.png", mask())
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert {dataset.sample(index).id for index in range(len(dataset))} == {"a_0000", "b_0000", "c_0000"}


@pytest.mark.parametrize("first", ["images/a_mask", "labels/a"])
def test_labels_in_two_places_are_refused(tmp_path: Path, first: str):
    for name in ("images/a", "images/b", first, "masks/b"):
        write(tmp_path / f"{name}.png", mask())
    with pytest.raises(
        InputError,
        match=rf"{first}\.png is a label by .*, and so is .*masks/b\.png: expected all labels in one",
    ):
        open_data(str(tmp_path), image_size=SIZE)


def test_a_parent_that_may_not_be_listed_has_no_labels(tmp_path: Path, monkeypatch):
    write(tmp_path / "scans" / "a.png")
    listed = Path.iterdir

    def forbid(path: Path):
        if path == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", forbid)
    assert len(open_data(str(tmp_path / "scans"), image_size=SIZE)) == 1


def test_the_name_of_a_label_may_be_written_in_upper_case(tmp_path: Path):
    write(tmp_path / "Images" / "a.png")
    write(tmp_path / "Images" / "b.png")
    write(tmp_path / "Masks" / "a_MASK.png", mask())
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert [dataset.sample(index).label is None for index in range(2)] == [False, True]


def test_a_label_among_images_is_refused_if_its_image_is_missing(tmp_path: Path):
    write(tmp_path / "b.png")
    write(tmp_path / "a_Seg.png", mask())
    with pytest.raises(
        InputError,
        match=r"a_Seg\.png is named like a label but has no image: expected an image named a in the same",
    ):
        open_data(str(tmp_path), image_size=SIZE)


def test_a_label_that_is_mirrored_in_place_is_refused(tmp_path: Path):
    write(tmp_path / "images" / "a.nii", RNG.integers(0, 200, (12, 10, 3), dtype=np.uint8))
    path = tmp_path / "labels" / "a.nii"
    path.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(mask((12, 10, 3)), np.diag([-2.0, 3.0, 4.0, 1.0])), path)
    with pytest.raises(InputError, match=r"labels/a\.nii lies up to 22 mm away from its image .*a\.nii: "):
        open_data(str(tmp_path), image_size=SIZE)


@pytest.mark.parametrize("folder", [".", "masks"])
def test_numbered_parts_of_a_label_are_merged(tmp_path: Path, folder: str):
    write(tmp_path / "a (1).png")
    for row, name in enumerate(("a (1)_mask", "a (1)_mask_1")):
        label = np.zeros((12, 10), np.uint8)
        label[row] = 255
        write(tmp_path / folder / f"{name}.png", label)
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True)
    assert label_of(dataset, 0)[:3, 0].tolist() == [1, 1, 0]


def test_two_kinds_of_labels_of_one_image_are_refused(tmp_path: Path):
    for name in ("a", "a_mask", "a_seg"):
        write(tmp_path / f"{name}.png", mask())
    with pytest.raises(InputError, match=r"a_mask.png and a_seg.png are labels of one image: expected one"):
        open_data(str(tmp_path), image_size=SIZE)


def test_labels_of_another_folder_of_images_are_ignored(tmp_path: Path):
    write(tmp_path / "imagesTr" / "a.png")
    write(tmp_path / "labelsTr" / "a.png", mask())
    write(tmp_path / "imagesTs" / "b.png")
    assert open_data(str(tmp_path / "imagesTs"), image_size=SIZE).num_classes == 0


def test_the_channel_suffix_of_nnunet_is_not_part_of_the_name_of_the_label(tmp_path: Path):
    for case in ("heart_00", "heart_01", "heart_02"):
        volume = RNG.integers(1, 90, (9, 8, 3), dtype=np.int16)
        write(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", volume)
        write(tmp_path / "labelsTr" / f"{case}.nii.gz", mask((9, 8, 3)))
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    assert len(dataset) == 9
    assert dataset.sample(0).case == "heart_00" and dataset.sample(0).id == "heart_00_0000_s000"
    assert all(len(dataset.indices(split)) == 3 for split in SPLITS)


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 1, 2, 4), "no label contains the class 3:"), ((0, 1, 2, 3), None), ((0, 0, 0, 0), None)],
)
def test_a_note_names_a_gap_in_the_classes(
    tmp_path: Path, capsys, values: tuple[int, ...], message: str | None
):
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", np.resize(np.array(values, np.uint8), mask().shape))
    assert open_data(str(tmp_path), image_size=SIZE).num_classes == max(*values, 1) + 1
    said = capsys.readouterr().err
    assert re.search(message, said) if message else "no label contains" not in said


def test_labels_that_are_not_class_indices_are_refused(tmp_path: Path):
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", 50 * mask())
    with pytest.raises(
        InputError, match=r"go up to 50 \(.*a\.png\) but never contain 1, 2, 3, 4, 5, \.\.\.: expected"
    ):
        open_data(str(tmp_path), image_size=SIZE)


def test_images_without_a_label_are_for_pretraining_only(tmp_path: Path):
    for name in ("a_1", "b_1", "c_1", "d_1", "e_1"):
        write(tmp_path / "images" / f"{name}.png")
    with pytest.raises(InputError, match="has no training labels"):
        open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    unlabelled = open_data(str(tmp_path), image_size=SIZE)
    first = names(unlabelled, "train")[0]
    write(tmp_path / "masks" / f"{first}.png", mask())
    dataset = open_data(str(tmp_path), image_size=SIZE, need_labels=True)
    labelled = dataset.indices("train", labelled=True)
    assert len(dataset.indices("train")) == 3 and [dataset.sample(i).id for i in labelled] == [first]


def test_a_label_without_image_is_refused_with_its_file(tmp_path: Path):
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", mask())
    write(tmp_path / "labels" / "b.png", mask())
    with pytest.raises(
        InputError, match=r"labels/b\.png is a label without an image: expected an image named b in"
    ):
        open_data(str(tmp_path), image_size=SIZE)


@pytest.mark.parametrize("suffix", [".png", ".npy", ".nii.gz"])
def test_labels_of_another_size_than_their_image_are_refused(tmp_path: Path, suffix: str):
    shape = (12, 10, 6) if suffix == ".nii.gz" else (12, 10)
    write(tmp_path / "images" / f"a{suffix}", RNG.integers(0, 99, shape).astype(np.uint8))
    write(tmp_path / "labels" / f"a{suffix}", mask((12, 9, *shape[2:])))
    with pytest.raises(InputError, match=r"labels/a\..* expected the same size"):
        open_data(str(tmp_path), image_size=SIZE)


def test_classes_out_of_range_are_refused_with_their_slice(tmp_path: Path):
    label = mask((12, 10, 6))
    label[0, 0, 4] = 70
    write(tmp_path / "images" / "a.nii.gz", RNG.integers(0, 99, (12, 10, 6)).astype(np.uint8))
    write(tmp_path / "labels" / "a.nii.gz", label)
    with pytest.raises(
        InputError, match=r"class index out of range: .*a\.nii\.gz \(slice 4\) contains the value 70"
    ):
        open_data(str(tmp_path), image_size=SIZE)

"""Folders of images: their layout, their volumes and their splits."""

import itertools
import os
import re
from pathlib import Path

import numpy as np
import pytest
from image_folders import RNG, SIZE, label_of, mask, names, write

from ahm_gym.data import open_data
from ahm_gym.data.folder import FolderSource
from ahm_gym.data.sample import SPLITS
from ahm_gym.errors import InputError


def test_images_may_be_in_the_folder_itself_or_in_a_folder_images(tmp_path: Path):
    for name in ("a", "b", "c"):
        write(tmp_path / "plain" / f"{name}.png")
        write(tmp_path / "nested" / "images" / f"{name}.png")
    for folder in ("plain", "nested", "nested/images"):
        assert len(open_data(str(tmp_path / folder), image_size=SIZE)) == 3


def test_the_name_of_the_folder_counts_even_if_its_path_is_relative(tmp_path: Path, monkeypatch):
    for frame in (1, 2):
        write(tmp_path / "imagesTs" / f"c1_{frame}_0000.png")
    monkeypatch.chdir(tmp_path / "imagesTs")
    assert [record.place for record in FolderSource(Path()).records()] == ["c1_1", "c1_2"]


def test_images_in_two_places_are_refused(tmp_path: Path):
    write(tmp_path / "overview.png")
    write(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"holds images, and so does .*images: expected them in one place"):
        open_data(str(tmp_path), image_size=SIZE)


def test_the_channel_suffix_of_nnunet_is_not_part_of_the_patient(tmp_path: Path):
    for patient, frame in itertools.product(range(6), (1, 12)):
        write(tmp_path / "imagesTr" / f"patient{patient:03d}_frame{frame:02d}_0000.png")
    write(tmp_path / "labelsTr" / "patient000_frame01.png", mask())
    dataset = open_data(str(tmp_path), image_size=SIZE)
    splits = {split: {name.split("_")[0] for name in names(dataset, split)} for split in SPLITS}
    assert sum(map(len, splits.values())) == 6


def test_a_broken_link_is_refused(tmp_path: Path):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        InputError, match=r"b\.png cannot be read \(No such file .*restore the target of the link"
    ):
        open_data(str(tmp_path), image_size=SIZE)


@pytest.mark.parametrize("name", ["b.png", "split.csv", "dataset.json", "labels"])
def test_a_link_to_itself_is_refused_whatever_its_name(tmp_path: Path, name: str):
    for image in ("a.png", "c.png", "d.png"):
        write(tmp_path / image)
    (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} cannot be read \(.*restore the target of the link"):
        open_data(str(tmp_path), image_size=SIZE)


@pytest.mark.parametrize(("shape", "first"), [((3, 32, 40), "channels"), ((20, 32, 32), "slices")])
def test_an_array_with_its_axes_in_another_order_is_refused(
    tmp_path: Path, shape: tuple[int, ...], first: str
):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(
        InputError, match=rf"a\.npy has the shape {re.escape(str(shape))}, apparently {first} first"
    ):
        open_data(str(tmp_path), image_size=SIZE)


def test_an_empty_folder_is_refused_with_the_accepted_suffixes(tmp_path: Path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(
        InputError, match=r"holds no images.*\.png, .*\.tiff, \.dcm, \.nii, \.nii\.gz, \.npy, \.mha"
    ):
        open_data(str(tmp_path), image_size=SIZE)
    write(tmp_path / "patient1" / "a.png")
    assert len(open_data(str(tmp_path), image_size=SIZE)) == 1


def test_hidden_files_are_ignored_and_a_note_counts_files_of_other_kinds(tmp_path: Path, capsys):
    write(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / "split.csv").write_text("name,split\na,train\n")
    assert len(open_data(str(tmp_path), image_size=SIZE)) == 1
    assert "left out" not in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "b.raw").write_bytes(b"0")
    (tmp_path / "c.raw").write_bytes(b"0")
    (tmp_path / "split.csv").write_text("name,split\na.png,train\n")
    assert len(open_data(str(tmp_path), image_size=SIZE)) == 1
    assert "files of other kinds are left out: 2 .raw, 1 .txt." in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    write(tmp_path / "a.png")
    write(tmp_path / "a.jpg")
    with pytest.raises(
        InputError, match="have the same name, and it cannot be told which is the image: .* move files of"
    ):
        open_data(str(tmp_path), image_size=SIZE)


def test_images_of_mixed_sizes_are_fine(tmp_path: Path):
    for index, shape in enumerate([(5, 9), (40, 30), (8, 8)]):
        write(tmp_path / f"{index}.png", RNG.integers(0, 255, shape, dtype=np.uint8))
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert [dataset.sample(i).image.shape[1:] for i in range(3)] == [(5, 9), (21, 16), (8, 8)]


@pytest.mark.parametrize("grey", ["a", "b"])
def test_grey_images_among_colour_ones_are_repeated_in_three_channels(tmp_path: Path, capsys, grey: str):
    picture = RNG.integers(0, 255, (12, 10), dtype=np.uint8)
    for name in "abc":
        colour = RNG.integers(0, 255, (12, 10, 3), dtype=np.uint8)
        write(tmp_path / f"{name}.png", picture if name == grey else colour)
    dataset = open_data(str(tmp_path), image_size=SIZE)
    image = dataset.image("abc".index(grey))
    assert image.shape == (3, 12, 10) and (image == image[:1]).all()
    assert "1 of 3 files: grey, while others have colour" in capsys.readouterr().err


def test_nan_is_refused_with_its_slice(tmp_path: Path):
    volume = RNG.random((12, 10, 6)).astype(np.float32)
    volume[1, 1, 3] = np.nan
    write(tmp_path / "a.npy", volume)
    with pytest.raises(InputError, match=r"a\.npy \(slice 3\) contains NaN"):
        open_data(str(tmp_path), image_size=SIZE)


def test_images_are_split_by_the_patient_in_their_names(tmp_path: Path):
    for patient in range(10):
        for image in range(3):
            write(tmp_path / f"p_{patient}_{image}.png")
    dataset = open_data(str(tmp_path), image_size=SIZE)
    cases = [{dataset.sample(i).case for i in dataset.indices(split)} for split in SPLITS]
    assert [len(case) for case in cases] == [7, 1, 2]
    assert set.union(*cases) == {f"p_{patient}" for patient in range(10)}


def test_numbered_images_without_patients_are_split_in_blocks(tmp_path: Path, capsys):
    for image in range(1, 21):
        write(tmp_path / f"img_{image}.png")
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert names(dataset, "train") == [f"img_{i}" for i in range(1, 15)]
    assert names(dataset, "test") == [f"img_{i}" for i in range(17, 21)]
    assert dataset.sample(0).case == "img_1"
    assert "14/2/4 patients in train/val/test, in blocks of neighbours" in capsys.readouterr().err


def test_volumes_of_unknown_patients_are_split_by_volume(tmp_path: Path):
    for volume in range(5):
        write(tmp_path / f"la_{volume}.npy", RNG.integers(0, 99, (9, 8, 6)))
    dataset = open_data(str(tmp_path), image_size=SIZE)
    cases = [{dataset.sample(i).case for i in dataset.indices(split)} for split in SPLITS]
    assert [len(case) for case in cases] == [3, 1, 1] and set.union(*cases) == {f"la_{i}" for i in range(5)}


@pytest.mark.parametrize("where", ["images/split.csv", "split.csv"])
def test_a_table_decides_the_splits(tmp_path: Path, where: str):
    for name in ("p_1", "p_2", "q_1", "r_1"):
        write(tmp_path / "images" / f"{name}.png")
    (tmp_path / where).write_text("name,split\np,test\nq_1,train\nr_1.png,val\n")
    dataset = open_data(str(tmp_path), image_size=SIZE)
    splits = [names(dataset, split) for split in SPLITS]
    assert splits == [["q_1"], ["r_1"], ["p_1", "p_2"]]


def test_a_table_without_training_images_is_refused(tmp_path: Path):
    write(tmp_path / "a.png")
    (tmp_path / "split.csv").write_text("name,split\na,test\n")
    with pytest.raises(InputError, match=r"the train split of .* is empty"):
        open_data(str(tmp_path), image_size=SIZE)


def test_a_changed_file_is_prepared_again(tmp_path: Path):
    path = write(tmp_path / "a.png", RNG.integers(0, 200, (12, 10), dtype=np.uint8))
    assert open_data(str(tmp_path), image_size=SIZE).sample(0).image.shape == (1, 12, 10)
    write(path, RNG.integers(0, 200, (6, 7), dtype=np.uint8))
    assert open_data(str(tmp_path), image_size=SIZE).sample(0).image.shape == (1, 6, 7)


def test_volumes_become_slices_with_names_cases_and_spacing(tmp_path: Path):
    volume = RNG.integers(1, 999, (9, 11, 4), dtype=np.int16)
    volume[:, :, 1] = 5
    write(tmp_path / "images" / "brain.nii.gz", volume)
    write(tmp_path / "labels" / "brain.nii.gz", mask((9, 11, 4)))
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True)
    samples = [dataset.sample(i) for i in range(len(dataset))]
    assert [sample.id for sample in samples] == ["brain_s000", "brain_s002", "brain_s003"]
    assert {sample.case for sample in samples} == {"brain"}
    assert samples[0].spacing == (3.0, 2.0) and samples[0].image.shape == (1, 11, 9)
    assert label_of(dataset, 0).tolist() == np.rot90(mask((9, 11))).tolist()


def test_a_volume_of_constant_slices_alone_is_refused(tmp_path: Path):
    write(tmp_path / "a.npy", np.zeros((9, 9, 9)))
    with pytest.raises(InputError, match="has only constant slices"):
        open_data(str(tmp_path), image_size=SIZE)


def test_a_note_shows_the_escapes_in_a_name_instead_of_sending_them_to_the_terminal(tmp_path: Path, capsys):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.png")
    constant = write(tmp_path / "d.png", np.zeros((12, 10), np.uint8))
    constant.rename(tmp_path / "d\x1b[2J\nerror: no.png")
    open_data(str(tmp_path), image_size=SIZE)
    err = capsys.readouterr().err
    assert r"d\x1b[2J\nerror: no.png; remove it" in err and "\x1b" not in err
    assert all(line.startswith("note: ") for line in err.splitlines())


def test_a_pipe_among_the_images_is_left_out_with_a_note(tmp_path: Path, capsys):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.png")
    for name in ("d.png", "dataset.json", "split.csv", "e"):
        os.mkfifo(tmp_path / name)
    assert len(open_data(str(tmp_path), image_size=SIZE)) == 3
    assert "d.png and 3 more are left out: it is a device or a pipe" in capsys.readouterr().err

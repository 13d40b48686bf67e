"""The sizes that headers state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from image_folders import write
from medical_files import dicom, encode
from PIL import Image

from ahm_gym.data.formats.headers import shape_of
from ahm_gym.data.search import find_layout

SUFFIXES = (".nii.gz", ".npy", ".mha", ".mhd", ".nrrd")


def volume(path: Path, shape: tuple[int, ...]) -> Path:
    array = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    if path.suffix in (".mha", ".mhd", ".nrrd"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(path))
        return path
    return write(path, array)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_size_of_a_volume_is_read_from_its_header(tmp_path: Path, suffix: str):
    assert shape_of(volume(tmp_path / f"a{suffix}", (9, 8, 5))) == (9, 8, 5)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".dcm", ".npy"])
def test_pictures_have_rows_and_columns(tmp_path: Path, suffix: str):
    assert shape_of(encode(tmp_path / f"a{suffix}", np.zeros((12, 10), np.uint8))) == (12, 10)


def test_pages_frames_and_turned_photographs_count(tmp_path: Path):
    dicom(tmp_path / "a.dcm", np.zeros((4, 12, 10), np.uint8))
    assert shape_of(tmp_path / "a.dcm") == (12, 10, 4)
    pages = [Image.new("L", (10, 12)) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert shape_of(tmp_path / "a.tif") == (12, 10, 3)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("L", (10, 12)).save(tmp_path / "a.jpg", exif=tags)
    assert shape_of(tmp_path / "a.jpg") == (10, 12)
    write(tmp_path / "a.nii.gz", np.zeros((9, 8, 5, 1), np.uint8))
    assert shape_of(tmp_path / "a.nii.gz") == (9, 8, 5)


def test_a_file_without_a_header_has_no_size(tmp_path: Path):
    for suffix in (".png", ".nii.gz", ".nrrd", ".npy", ".dcm"):
        (tmp_path / f"a{suffix}").write_bytes(b"nothing")
        assert shape_of(tmp_path / f"a{suffix}") is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_modalities_of_different_sizes_are_not_stacked_in_any_format(tmp_path: Path, suffix: str):
    for case in "abc":
        volume(tmp_path / f"{case}_t1{suffix}", (9, 8, 5))
        volume(tmp_path / f"{case}_t2{suffix}", (6, 5, 5))
    layout = find_layout(tmp_path)
    assert not layout.modalities and "differ in size" in layout.doubts[0]


def test_modalities_of_one_size_are_stacked_without_the_others(tmp_path: Path):
    for case in "abc":
        for kind, shape in (("dwi", (9, 8, 5)), ("adc", (9, 8, 5)), ("flair", (12, 12, 5))):
            volume(tmp_path / f"{case}_{kind}.nii.gz", shape)
    layout = find_layout(tmp_path)
    assert layout.modalities == ("dwi", "adc") and len(layout.scans) == 3
    assert set(layout.left_out.values()) == {"it has another size than the other modalities"}
    assert "dwi, adc are stacked, without flair, which has another size" in layout.doubts[0]

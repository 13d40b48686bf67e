"""Reads one file of every kind and depth."""

import itertools
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from medical_files import dicom, encode
from PIL import Image

from ahm_gym.data import open_data
from ahm_gym.data.formats import READERS, read_pixels, stem_of, suffix_of
from ahm_gym.errors import InputError

RNG = np.random.default_rng(0)


def numbers(dtype: type, *shape: int) -> np.ndarray:
    """Random numbers over the whole range of an integer type, or around zero for floats."""
    if np.issubdtype(dtype, np.floating):
        return RNG.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def test_suffixes_are_read_in_any_case_and_nifti_may_be_compressed():
    assert suffix_of(Path("a/b.NII.GZ")) == ".nii.gz" and stem_of(Path("a/b.c.NII.GZ")) == "b.c"
    assert suffix_of(Path("b.PNG")) == ".png" and stem_of(Path("b_1.PNG")) == "b_1"


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", np.uint8), (".png", np.uint16), (".bmp", np.uint8), (".tif", np.uint8), (".tiff", np.uint16),
     (".tif", np.int16), (".tif", np.float32), (".tif", np.float64)],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_keep_their_depth_and_the_order_of_their_colours(tmp_path, suffix, dtype, channels):
    array = numbers(dtype, 7, 9, channels).squeeze()
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), array if channels == 1 else array[:, :, ::-1])
    pixels = read_pixels(path)
    assert pixels.array.dtype == dtype and not pixels.is_volume
    assert (pixels.array == array).all()


def test_jpeg_is_read_in_colour(tmp_path: Path):
    array = np.zeros((16, 16, 3), np.uint8)
    array[:, :, 0] = 200
    Image.fromarray(array).save(tmp_path / "a.jpeg")
    assert read_pixels(tmp_path / "a.jpeg").array.mean(axis=(0, 1)).round(-1).tolist() == [200, 0, 0]


def test_a_photograph_is_turned_upright(tmp_path: Path):
    array = np.zeros((16, 24), np.uint8)
    array[:8] = 200
    tags = Image.Exif()
    tags[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=tags)
    upright = read_pixels(tmp_path / "a.jpg").array
    assert upright.shape == (24, 16) and upright[:, 8:].mean() > 190 and upright[:, :8].mean() < 10


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_a_black_and_white_label_may_be_a_jpeg(tmp_path: Path, suffix: str):
    label = np.zeros((40, 40, 3), np.uint8)
    label[7:23, 11:30] = 255
    path = tmp_path / f"a{suffix}"
    Image.fromarray(label).save(path, format="jpeg", quality=75)
    assert len(np.unique(read_pixels(path).array)) > 2
    assert (read_pixels(path, is_label=True).array == label).all()


def test_transparency_is_dropped(tmp_path: Path):
    array = numbers(np.uint8, 7, 9, 4)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (read_pixels(tmp_path / "a.png").array == array[:, :, :3]).all()


def test_a_palette_gives_colours_to_an_image_and_indices_to_a_label(tmp_path: Path):
    indices = RNG.integers(0, 3, (6, 5), dtype=np.uint8)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 7]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a.png")
    assert (read_pixels(tmp_path / "a.png").array == colours[indices]).all()
    assert (read_pixels(tmp_path / "a.png", is_label=True).array == indices).all()


def test_a_palette_may_have_white_first(tmp_path: Path):
    label = np.zeros((6, 5), np.uint8)
    label[2:4] = 255
    picture = Image.fromarray((label == 0).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "a.png")
    assert (read_pixels(tmp_path / "a.png", is_label=True).array == label).all()


@pytest.mark.parametrize("colour", [(), (3,)])
def test_the_pages_of_a_tiff_are_slices(tmp_path: Path, colour: tuple[int, ...]):
    pages = numbers(np.uint16, 4, 7, 9, *colour)
    encoded = [page if not colour else np.ascontiguousarray(page[:, :, ::-1]) for page in pages]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), encoded)
    pixels = read_pixels(tmp_path / "a.tif")
    assert pixels.is_volume and (pixels.array == np.moveaxis(pages, 0, 2)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_keeps_its_depth_and_is_turned_upright(tmp_path: Path, suffix: str, dtype: type):
    array = numbers(dtype, 5, 6, 3)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 2.5, 4.0, 1.0])), tmp_path / f"a{suffix}")
    pixels = read_pixels(tmp_path / f"a{suffix}")
    assert pixels.is_volume and pixels.array.dtype == dtype and pixels.spacing == (2.5, 1.5, 4.0)
    assert (pixels.array == np.rot90(array)).all()


@pytest.mark.parametrize(
    ("shape", "turned"), [((5, 6), (6, 5)), ((5, 6, 3, 1), (6, 5, 3)), ((5, 6, 3, 4), (6, 5, 3, 4))]
)
def test_nifti_may_be_flat_or_have_channels(tmp_path: Path, shape: tuple[int, ...], turned: tuple[int, ...]):
    nibabel.save(nibabel.Nifti1Image(numbers(np.int16, *shape), np.eye(4)), tmp_path / "a.nii")
    pixels = read_pixels(tmp_path / "a.nii")
    assert pixels.array.shape == turned and pixels.is_volume == (len(shape) > 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_dicom_keeps_its_depth_spacing_and_patient(tmp_path: Path, dtype: type):
    array = numbers(dtype, 7, 9)
    pixels = read_pixels(dicom(tmp_path / "a.dcm", array, PixelSpacing=[0.5, 0.25], PatientID="X7"))
    assert (pixels.array == array).all() and pixels.array.dtype == dtype
    assert (pixels.spacing, pixels.patient, pixels.is_volume) == ((0.5, 0.25), "X7", False)
    bare = read_pixels(dicom(tmp_path / "b.dcm", array))
    assert (bare.spacing, bare.patient) == (None, None)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_the_intensities_of_inverted_dicom_are_inverted_back(tmp_path: Path, dtype: type):
    limits = np.iinfo(dtype)
    # All values differ, so that their order is unique.
    array = RNG.permutation(np.linspace(limits.min, limits.max, 63).astype(dtype)).reshape(7, 9)
    pixels = read_pixels(dicom(tmp_path / "a.dcm", array, PhotometricInterpretation="MONOCHROME1"))
    assert (np.argsort(pixels.array.ravel()) == np.argsort(array.ravel())[::-1]).all()


def test_dicom_may_have_colour_or_frames(tmp_path: Path):
    colour, frames = numbers(np.uint8, 8, 6, 3), numbers(np.uint8, 4, 8, 6)
    assert (read_pixels(dicom(tmp_path / "a.dcm", colour)).array == colour).all()
    pixels = read_pixels(dicom(tmp_path / "b.dcm", frames))
    assert pixels.is_volume and (pixels.array == np.moveaxis(frames, 0, 2)).all()


def test_a_dicom_series_is_split_by_the_patients_in_its_files(tmp_path: Path):
    for index in range(12):
        dicom(tmp_path / f"slice{index}.dcm", numbers(np.int16, 9, 9), PatientID=f"P{index // 3}")
    dataset = open_data(str(tmp_path), image_size=(8, 8))
    assert dataset.sample(11).case == "P3" and dataset.sample(11).id == "slice11"
    cases = [{dataset.sample(i).case for i in dataset.indices(split)} for split in ("train", "val", "test")]
    assert [len(case) for case in cases] == [2, 1, 1]


@pytest.mark.parametrize(
    ("shape", "is_volume"),
    [
        ((7, 9), False),
        ((7, 9, 2), False),
        ((7, 9, 4), False),
        ((7, 9, 5), True),
        ((7, 9, 5, 6), True),
        ((7, 9, 2, 2), True),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_arrays_are_images_channels_or_volumes_by_their_shape(tmp_path: Path, shape, is_volume, dtype):
    array = numbers(dtype, *shape)
    np.save(tmp_path / "a.npy", array)
    pixels = read_pixels(tmp_path / "a.npy")
    assert (pixels.array == array).all() and pixels.array.dtype == dtype and pixels.is_volume == is_volume


@pytest.mark.parametrize(
    ("suffix", "depth"),
    [
        *itertools.product((".png", ".tif", ".nii.gz", ".npy", ".dcm"), (np.uint8, np.uint16)),
        *itertools.product((".tif", ".nii.gz", ".npy", ".dcm"), (np.int16,)),
        *itertools.product((".tif", ".nii.gz", ".npy"), (np.float32, np.float64)),
    ],
)
def test_every_kind_and_depth_becomes_a_dataset(tmp_path: Path, suffix: str, depth: type):
    array = numbers(depth, 9, 11)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".dcm":
        dicom(path, array)
    elif suffix == ".nii.gz":
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    else:
        cv2.imwrite(str(path), array)
    image = open_data(str(tmp_path), image_size=(8, 8)).sample(0).image[0].numpy()
    upright = np.rot90(array) if suffix == ".nii.gz" else array
    exact = upright.astype(np.float64)
    low, high = np.percentile(exact, (0.5, 99.5))
    np.testing.assert_allclose(image, ((exact - low) / (high - low)).clip(0, 1), atol=1e-3)


@pytest.mark.parametrize("suffix", READERS)
def test_an_empty_file_is_refused_with_its_name(tmp_path: Path, suffix: str):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    with pytest.raises(InputError, match=rf"a\{suffix} is empty \(0 bytes\)"):
        open_data(str(tmp_path), image_size=(8, 8))


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_with_other_content_is_refused_with_its_name(tmp_path: Path, suffix: str):
    (tmp_path / f"a{suffix}").write_text("this is not an image, whatever its name says" * 20)
    with pytest.raises(
        InputError, match=rf"a\{suffix} cannot be read .*: expected a complete \{suffix} file"
    ):
        open_data(str(tmp_path), image_size=(8, 8))


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_truncated_file_is_refused_with_its_name(tmp_path: Path, suffix: str, share: float):
    path = encode(tmp_path / f"a{suffix}", numbers(np.uint8, 60, 50))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"a\{suffix} cannot be read"):
        open_data(str(tmp_path), image_size=(8, 8))


def test_arrays_that_are_not_images_are_refused(tmp_path: Path):
    for name, array in {
        "flat": np.zeros(5),
        "five": np.zeros((1, 2, 3, 4, 5)),
        "text": np.array([["a"]]),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match=rf"{name}\.npy has the shape"):
            read_pixels(tmp_path / f"{name}.npy")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"object\.npy cannot be read"):
        read_pixels(tmp_path / "object.npy")


def test_odd_headers_cause_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd):
    path = dicom(tmp_path / "a.dcm", numbers(np.uint8, 8, 8))
    file = pydicom.dcmread(path)
    file.PixelData += b"\0\0\0\0"  # pydicom warns about padding
    file.save_as(path)
    assert read_pixels(path).array.shape == (8, 8)
    assert not recwarn.list and capfd.readouterr() == ("", "")

"""DICOM: values as a viewer shows them, patients, compressions, and series as volumes."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from image_folders import SIZE
from medical_files import dicom, slices_of
from PIL import Image
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ahm_gym.data import open_data
from ahm_gym.data.formats import NotAnImage, encode_mask, read_pixels, read_series, series_key
from ahm_gym.errors import InputError

RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:24, :20]
DISC = np.clip(1000 - 60 * np.hypot(ROWS - 12, COLUMNS - 10), 0, 1000).astype(np.int16)


def test_a_colour_table_is_applied(tmp_path: Path):
    places = RNG.integers(0, 256, (24, 20), dtype=np.uint8)
    tables = {colour: RNG.integers(0, 65536, 256, dtype=np.uint16) for colour in ("Red", "Green", "Blue")}
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in tables.items():
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = table.tobytes()
    found = read_pixels(dicom(tmp_path / "a.dcm", places, **tags)).array
    assert (found == np.stack([table[places] for table in tables.values()], axis=-1)).all()


@pytest.mark.parametrize(("slope", "intercept"), [(-1, 1000), (2, -1024), (0.5, 0.25), (0, 7)])
def test_slope_and_intercept_are_applied(tmp_path: Path, slope: float, intercept: float):
    path = dicom(tmp_path / "a.dcm", DISC, RescaleSlope=slope, RescaleIntercept=intercept)
    found = read_pixels(path).array
    np.testing.assert_allclose(found, DISC * (slope or 1.0) + intercept)
    assert found.dtype == (np.int32 if slope == int(slope) else np.float32)


def test_slopes_of_frames_are_applied_to_their_frames(tmp_path: Path):
    frames = RNG.integers(0, 900, (3, 8, 6)).astype(np.uint16)
    groups = []
    for slope in (1, 2, 3):
        group, item = pydicom.Dataset(), pydicom.Dataset()
        item.RescaleSlope, item.RescaleIntercept = slope, 0
        group.PixelValueTransformationSequence = [item]
        groups.append(group)
    path = dicom(tmp_path / "a.dcm", frames, PerFrameFunctionalGroupsSequence=groups)
    assert (read_pixels(path).array == np.moveaxis(frames, 0, 2) * [1, 2, 3]).all()


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -5},
    ],
)
def test_inverted_images_are_turned_round_after_the_rescaling(tmp_path: Path, tags: dict):
    path = dicom(tmp_path / "a.dcm", (1000 - DISC).astype(np.uint16), BitsStored=12, HighBit=11, **tags)
    found = read_pixels(path).array.astype(float)
    expected = DISC * float(tags.get("RescaleSlope", 1))
    np.testing.assert_allclose(found - found.min(), expected - expected.min())


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("limit", [None, -29000])
def test_padding_is_background(tmp_path: Path, inverted: bool, limit: int | None):
    outside = np.hypot(ROWS - 12, COLUMNS - 10) > 9
    array = np.where(outside, -30000 if limit is None else -29500, DISC).astype(np.int16)
    tags = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    tags |= {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    pixels = read_pixels(dicom(tmp_path / "a.dcm", array, PixelPaddingValue=-30000, **tags))
    inside = pixels.array[~outside].astype(int)
    assert (pixels.array[outside] == inside.min()).all() and np.ptp(inside) == np.ptp(DISC[~outside])
    assert "padding" in pixels.notes[0]


def test_overlays_in_the_upper_bits_are_removed(tmp_path: Path):
    array = DISC.astype(np.uint16)
    array[2:5] |= 1 << 15
    path = dicom(tmp_path / "a.dcm", array, BitsStored=12, HighBit=11)
    assert (read_pixels(path).array == DISC).all()
    signed = (DISC - 500).astype(np.int16)
    path = dicom(tmp_path / "b.dcm", (signed & 0xFFF).astype(np.int16), BitsStored=12, HighBit=11)
    assert (read_pixels(path).array == signed).all()


def test_windows_are_not_applied(tmp_path: Path):
    path = dicom(tmp_path / "a.dcm", DISC, WindowCenter=100, WindowWidth=10)
    assert (read_pixels(path).array == DISC).all()


@pytest.mark.parametrize("name", ["IM0001", "MR1.IMA", "a1.DCM", "1.2.840.113.17"])
def test_dicom_is_known_by_its_content(tmp_path: Path, name: str):
    for number in range(2):
        dicom(tmp_path / name.replace("1", f"{number}1"), DISC + number)
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert len(dataset) == 2 and dataset.sample(0).id != dataset.sample(1).id


def test_a_file_without_a_preamble_is_read(tmp_path: Path):
    path = dicom(tmp_path / "a.dcm", DISC)
    path.write_bytes(path.read_bytes()[132:])
    assert (read_pixels(path).array == DISC).all()


@pytest.mark.parametrize(("value", "patient"), [("", None), (" X7 ", "X7"), ("ANON", "ANON")])
def test_the_patient_is_what_the_file_states(tmp_path: Path, value: str, patient: str | None):
    assert read_pixels(dicom(tmp_path / "a.dcm", DISC, PatientID=value)).patient == patient


def test_names_tell_the_patients_where_the_ids_are_placeholders(tmp_path: Path):
    for patient in range(4):
        for number in range(2):
            dicom(tmp_path / f"pat{patient}_{number}.dcm", DISC + patient, PatientID="ANON")
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert {dataset.sample(index).case for index in range(8)} == {f"pat{patient}" for patient in range(4)}


@pytest.mark.parametrize("kind", ["j2k", "ljpeg", "jpegls", "rle", "jpeg"])
def test_compressed_images_are_decoded(tmp_path: Path, kind: str):
    array = DISC.astype(np.uint16)
    codes = {
        "j2k": (
            JPEG2000Lossless,
            lambda: imagecodecs.jpeg2k_encode(array, codecformat="j2k", reversible=True),
        ),
        "ljpeg": (JPEGLosslessSV1, lambda: imagecodecs.ljpeg_encode(array)),
        "jpegls": (JPEGLSLossless, lambda: imagecodecs.jpegls_encode(array)),
    }
    path = tmp_path / "a.dcm"
    if kind in codes:
        syntax, code = codes[kind]
        dicom(path, array, code=code(), syntax=syntax)
    elif kind == "rle":
        file = pydicom.dcmread(dicom(path, array))
        file.compress(RLELossless)
        file.save_as(path)
    else:
        array = (array // 4).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(array).save(content, "JPEG", quality=100)
        dicom(path, array, code=content.getvalue(), syntax=JPEGBaseline8Bit)
    assert np.abs(read_pixels(path).array.astype(int) - array).max() <= (3 if kind == "jpeg" else 0)


@pytest.mark.parametrize("syntax", [HTJ2K, MPEG2MPML])
def test_a_missing_decoder_is_named_with_its_package(tmp_path: Path, syntax):
    path = dicom(tmp_path / "a.dcm", DISC, code=b"1234", syntax=syntax)
    with pytest.raises(InputError, match=r"a\.dcm is compressed as .*: install one with .*pylibjpeg"):
        read_pixels(path)


def test_ybr_is_read_as_rgb(tmp_path: Path):
    rgb = np.stack([COLUMNS * 12, ROWS * 10, 255 - COLUMNS * 12], -1).astype(np.uint8)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    found = read_pixels(dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")).array
    assert np.abs(found.astype(int) - rgb).max() <= 3


def test_objects_without_an_image_are_left_out_of_a_folder_and_said(tmp_path: Path, capsys):
    dicom(tmp_path / "a.dcm", DISC)
    file = pydicom.dcmread(dicom(tmp_path / "RS.dcm", DISC))
    del file.PixelData
    file.Modality = "RTSTRUCT"
    file.save_as(tmp_path / "RS.dcm")
    with pytest.raises(NotAnImage, match=r"RS\.dcm is a RTSTRUCT object without an image"):
        read_pixels(tmp_path / "RS.dcm")
    assert len(open_data(str(tmp_path), image_size=SIZE)) == 1
    assert "RS.dcm is left out: it is DICOM of the kind RTSTRUCT" in capsys.readouterr().err
    segmentation = dicom(tmp_path / "SEG.dcm", DISC, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    with pytest.raises(NotAnImage):
        read_pixels(segmentation)


def height(path: Path) -> float:
    return float(pydicom.dcmread(path).ImagePositionPatient[2])


AXIAL = [1.0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("down", [1, -1])
def test_a_series_is_a_volume_in_the_order_of_its_places(tmp_path: Path, down: int):
    array = RNG.integers(0, 900, (6, 8, 9)).astype(np.int16)
    paths = slices_of(array, tmp_path, AXIAL, np.array([0, 0, 3.0 * down]), PatientID="P1", RescaleSlope=1)
    assert len({series_key(path) for path in paths}) == 1 and series_key(paths[0]) is not None
    pixels = read_series(paths)
    # DICOM's rows run to the left of the patient; the common orientation to the right, and slices to the head.
    assert (pixels.array == np.moveaxis(array[::down], 0, 2)[:, ::-1]).all()
    assert pixels.spacing == pytest.approx((0.5, 0.25, 3.0)) and (pixels.patient, pixels.is_volume) == (
        "P1",
        True,
    )
    mask = (pixels.array > 800).astype(np.uint8)
    suffix, content = encode_mask(mask, paths[0], pixels)
    (tmp_path / f"mask{suffix}").write_bytes(content)
    assert suffix == ".nii.gz" and (read_pixels(tmp_path / f"mask{suffix}").array == mask).all()
    assert read_pixels(tmp_path / f"mask{suffix}").grid.distance(pixels.grid) < 1e-3


def test_a_sagittal_series_stays_sagittal(tmp_path: Path):
    array = RNG.integers(0, 900, (5, 8, 9)).astype(np.int16)
    pixels = read_series(slices_of(array, tmp_path, [0, 1.0, 0, 0, 0, -1], np.array([4.0, 0, 0])))
    assert pixels.grid.plane == "sagittal"
    # Columns run to the back in the files and to the front here; slices to the left and to the right.
    assert (pixels.array == np.moveaxis(array[::-1], 0, 2)[:, ::-1]).all()


def test_what_is_no_series_is_refused_and_a_gap_is_told(tmp_path: Path):
    array = RNG.integers(0, 900, (6, 8, 9)).astype(np.int16)
    paths = slices_of(array, tmp_path / "a", AXIAL, np.array([0, 0, 3.0]))
    assert (
        "may be missing"
        in read_series(sorted(paths, key=height)[:2] + sorted(paths, key=height)[3:]).notes[-1]
    )
    again = slices_of(array, tmp_path / "b", AXIAL, np.array([0, 0, 3.0]))
    with pytest.raises(InputError, match="are slices of one series at the same place"):
        read_series([*paths, again[0]])
    other = slices_of(array, tmp_path / "c", [0, 1.0, 0, 0, 0, -1], np.array([3.0, 0, 0]))
    with pytest.raises(InputError, match="are not parallel"):
        read_series([*paths, other[0]])
    with pytest.raises(InputError, match="does not say where it lies"):
        read_series([dicom(tmp_path / "d.dcm", DISC)])
    assert series_key(tmp_path / "d.dcm") is None and series_key(paths[0]) != series_key(other[0])
    (tmp_path / "notes.txt").write_text("hello")
    assert series_key(tmp_path / "notes.txt") is None

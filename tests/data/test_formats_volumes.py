"""NIfTI, MetaImage and NRRD: one orientation, spacing in mm, labels on the same grid, and masks that go back."""

import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from image_folders import SIZE, label_of
from medical_files import encode, volume

from ahm_gym.data import open_data
from ahm_gym.data.formats import Grid, encode_mask, read_pixels, with_frames
from ahm_gym.data.scans import read_label
from ahm_gym.errors import InputError
from ahm_gym.segmentation.prediction import _size_of_pixel

RNG = np.random.default_rng(0)
CODES = [
    "".join(sides)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for sides in itertools.product(*axes)
]


def scan(shape: tuple[int, ...] = (8, 9, 5), spacing: tuple[float, ...] = (1, 1, 3)) -> nibabel.Nifti1Image:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-10, 20, 5)
    image = nibabel.Nifti1Image(RNG.integers(1, 900, shape).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    return image


def turned(image: nibabel.Nifti1Image, code: str) -> nibabel.Nifti1Image:
    ornt = nibabel.orientations
    now = ornt.io_orientation(image.affine)
    return image.as_reoriented(ornt.ornt_transform(now, ornt.axcodes2ornt(code)))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_all_48_orientations_are_read_as_one_and_their_masks_go_back(tmp_path: Path, suffix: str):
    original = scan()
    expected = np.rot90(np.asarray(original.dataobj))
    assert len(set(CODES)) == 48
    for code in CODES:
        path = save(turned(original, code), tmp_path / f"{code}{suffix}")
        pixels = read_pixels(path)
        assert (pixels.array == expected).all(), code
        assert pixels.spacing == pytest.approx((1, 1, 3)) and pixels.grid.plane == "axial"
        mask = np.zeros(pixels.array.shape, np.uint8)
        mask[2, 3, 4] = 1
        ending, content = encode_mask(mask, path, pixels)
        written = tmp_path / f"mask{ending}"
        written.write_bytes(content)
        assert ending == suffix
        check_geometry(written, path)
        assert (read_label(written, path, pixels).array == mask).all()


def save(image: nibabel.Nifti1Image, path: Path) -> Path:
    """Writes a volume in the format of the suffix; ITK's axes point left, posterior and superior."""
    if path.name.endswith(".nii.gz"):
        nibabel.save(image, path)
        return path
    affine = np.diag([-1, -1, 1, 1]) @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    other = SimpleITK.GetImageFromArray(np.asarray(image.dataobj).transpose())
    other.SetSpacing(spacing.tolist())
    other.SetOrigin(affine[:3, 3].tolist())
    other.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(other, str(path))
    return path


def check_geometry(mask: Path, path: Path) -> None:
    """Shape and affine are the same, and the marked voxel lies at the same place as in the scan."""
    if path.suffix == ".gz":
        first, second = nibabel.load(mask), nibabel.load(path)
        assert first.shape == second.shape and np.array_equal(first.affine, second.affine)
        assert first.get_data_dtype() == np.uint8
        at = np.argwhere(np.asarray(first.dataobj) == 1)[0]
        place = nibabel.affines.apply_affine(first.affine, at)
    else:
        first, second = SimpleITK.ReadImage(str(mask)), SimpleITK.ReadImage(str(path))
        assert first.GetSize() == second.GetSize()
        for name in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(first, name)() == pytest.approx(getattr(second, name)())
        at = np.argwhere(SimpleITK.GetArrayFromImage(first) == 1)[0][::-1]
        place = np.array(first.TransformIndexToPhysicalPoint(at.tolist())) * (-1, -1, 1)
    # Row 2 from the front of 9, column 3 from the left, slice 4, in the affine of `scan`.
    np.testing.assert_allclose(place, (-10 + 3, 20 + (8 - 2), 5 + 3 * 4), atol=1e-4)


@pytest.mark.parametrize(
    ("spacing", "shape", "plane", "rows_and_columns"),
    [
        ((0.5, 0.5, 4.0), (8, 9, 5), "axial", (9, 8)),
        ((4.4, 0.5, 0.5), (5, 8, 9), "sagittal", (9, 8)),
        ((0.5, 4.0, 0.6), (8, 5, 9), "coronal", (9, 8)),
        ((1.0, 1.09, 1.0), (8, 9, 5), "axial", (9, 8)),
        ((1.0, 1.2, 1.0), (8, 5, 9), "coronal", (9, 8)),
        ((1.0, 1.0, 1.0), (8, 1, 9), "coronal", (9, 8)),
    ],
)
def test_volumes_are_sliced_in_the_plane_of_their_finest_spacing(
    tmp_path, spacing, shape, plane, rows_and_columns
):
    nibabel.save(scan(shape, spacing), tmp_path / "a.nii")
    pixels = read_pixels(tmp_path / "a.nii")
    assert pixels.grid.plane == plane and pixels.array.shape[:2] == rows_and_columns
    assert any(f"in the {plane} plane" in note for note in pixels.notes)


def test_the_plane_is_told_once_for_a_folder(tmp_path: Path, capsys):
    for name in "abc":
        volume(
            tmp_path / f"{name}.nii",
            RNG.integers(0, 9, (7, 12, 12)).astype(np.int16),
            np.diag([4.4, 0.5, 0.5, 1]),
        )
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert len(dataset) == 21 and dataset.sample(0).spacing == (0.5, 0.5)
    assert capsys.readouterr().err.count("3 of 3 files: sliced in the sagittal plane") == 1


@pytest.mark.parametrize(("code", "scale"), [(1, 1000), (2, 1), (3, 0.001), (0, 1)])
def test_spacing_is_in_millimetres_whatever_the_unit(tmp_path: Path, code: int, scale: float):
    affine = np.diag([2, 2, 8, 1])
    image = volume(tmp_path / "images" / "a.nii", np.ones((5, 6, 4), np.uint8), affine, xyzt_units=code)
    pixels = read_pixels(image)
    assert pixels.spacing == pytest.approx((2 * scale, 2 * scale, 8 * scale))
    assert _size_of_pixel(pixels) == ("ml", pytest.approx(32 * scale**3 / 1000))
    label = volume(tmp_path / "labels" / "a.nii", np.ones((5, 6, 4), np.uint8), affine)  # without a unit
    assert read_label(label, image, pixels).array.shape == (6, 5, 4)


def test_a_label_in_another_orientation_is_brought_to_that_of_its_image(tmp_path: Path):
    image, label = scan(), scan()
    nibabel.save(turned(image, "LPS"), tmp_path / "a.nii")
    nibabel.save(turned(label, "SPL"), tmp_path / "b.nii")
    pixels = read_pixels(tmp_path / "a.nii")
    found = read_label(tmp_path / "b.nii", tmp_path / "a.nii", pixels)
    assert (found.array == np.rot90(np.asarray(label.dataobj))).all()


@pytest.mark.parametrize(("shift", "refused"), [(0.02, False), (0.2, True), (30.0, True)])
def test_a_label_elsewhere_is_refused_with_the_distance(tmp_path: Path, shift: float, refused: bool):
    affine = np.eye(4)
    image = volume(tmp_path / "a.nii", np.ones((5, 6, 4), np.uint8), affine)
    affine = affine.copy()
    affine[0, 3] = shift
    label = volume(tmp_path / "b.nii", np.ones((5, 6, 4), np.uint8), affine)
    if not refused:
        read_label(label, image, read_pixels(image))
        return
    with pytest.raises(
        InputError, match=rf"b\.nii lies up to {shift:g} mm away .*a\.nii: .*resample_from_to"
    ):
        read_label(label, image, read_pixels(image))


def test_a_label_of_another_spacing_or_shape_is_refused(tmp_path: Path):
    image = volume(tmp_path / "a.nii", np.ones((5, 6, 4), np.uint8), np.diag([1, 1, 3, 1]))
    label = volume(tmp_path / "b.nii", np.ones((5, 6, 4), np.uint8), np.diag([2, 2, 1, 1]))
    with pytest.raises(InputError, match=r"\(voxels of 2x2x1 mm and of 1x1x3 mm\)"):
        read_label(label, image, read_pixels(image))
    label = volume(tmp_path / "c.nii", np.ones((5, 7, 4), np.uint8), np.diag([1, 1, 3, 1]))
    with pytest.raises(InputError, match=r"c\.nii has the shape \(7, 5, 4\) and its image .*\(6, 5, 4\)"):
        read_label(label, image, read_pixels(image))


def test_without_a_stated_orientation_the_axes_of_label_and_image_are_the_same(tmp_path: Path):
    array = RNG.integers(0, 9, (5, 6, 4)).astype(np.uint8)
    image = nibabel.Nifti1Image(array, None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    label = volume(tmp_path / "b.nii", array, np.diag([-3.0, 1, 1, 1]))
    pixels = read_pixels(tmp_path / "a.nii")
    assert not pixels.grid.stated and any("without a stated orientation" in note for note in pixels.notes)
    assert (pixels.array == np.rot90(array)).all()
    assert (read_label(label, tmp_path / "a.nii", pixels).array == pixels.array).all()


def test_nan_outside_the_body_becomes_the_minimum_and_nan_inside_stays(tmp_path: Path, capsys):
    array = RNG.normal(size=(12, 10, 6)).astype(np.float32)
    array[:3] = np.nan
    volume(tmp_path / "out" / "a.nii", array)
    filled = read_pixels(tmp_path / "out" / "a.nii").array
    assert (filled[:, :3] == np.nanmin(array)).all() and (filled[:, 3:] == np.rot90(array[3:])).all()
    open_data(str(tmp_path / "out"), image_size=SIZE)
    assert "with NaN at the border of the volume" in capsys.readouterr().err
    array[6, 5, 3] = np.nan
    volume(tmp_path / "in" / "a.nii", array)
    with pytest.raises(InputError, match="contains NaN"):
        open_data(str(tmp_path / "in"), image_size=SIZE)


@pytest.mark.parametrize(
    ("shape", "changes", "fourth", "sure"),
    [
        ((5, 6, 4, 20), {}, "time", False),
        ((5, 6, 4, 2), {}, "channels", False),
        ((5, 6, 4, 3), {"xyzt_units": 10, "pixdim": [1, 1, 1, 1, 0.04, 1, 1, 1]}, "time", True),
        ((5, 6, 4, 4), {"xyzt_units": 10}, "channels", False),
        ((5, 6, 4, 1, 12), {"intent_code": 1007}, "channels", True),
        ((5, 6, 4, 1, 3), {}, "channels", True),
    ],
)
def test_a_fourth_axis_is_named(tmp_path: Path, shape, changes, fourth, sure):
    pixels = read_pixels(volume(tmp_path / "a.nii", np.ones(shape, np.int16), **changes))
    assert (pixels.fourth, pixels.fourth_is_sure) == (fourth, sure)
    assert pixels.array.shape == (6, 5, 4, shape[-1])
    assert any("fourth axis" in note for note in pixels.notes) == (not (sure and fourth == "channels"))


def test_frames_in_time_become_images_of_one_case(tmp_path: Path, capsys):
    for name, frames in (("a", 10), ("b", 12), ("c", 9)):
        volume(tmp_path / f"{name}_4d.nii", RNG.integers(0, 900, (8, 8, 3, frames)).astype(np.int16))
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert len(dataset) == 3 * 31 and dataset.channels == 1
    assert dataset.sample(0).id == "a_4d_t000_s000" and dataset.sample(29).case == dataset.sample(0).case
    assert "read as time, by its length" in capsys.readouterr().err


def read_pair(image: Path, label: Path):
    pixels = read_pixels(image)
    found = read_label(label, image, pixels)
    return with_frames(pixels, image, found), found


def test_a_label_tells_time_from_channels(tmp_path: Path):
    image = volume(tmp_path / "a.nii", RNG.integers(0, 900, (8, 8, 3, 4)).astype(np.int16))
    one = volume(tmp_path / "b.nii", np.ones((8, 8, 3), np.uint8))
    each = volume(tmp_path / "c.nii", RNG.integers(0, 3, (8, 8, 3, 4)).astype(np.uint8))
    assert read_pair(image, one)[0].fourth == "channels"
    pixels, label = read_pair(image, each)
    assert (pixels.fourth, label.array.shape) == ("time", (8, 8, 3, 4))
    many = volume(tmp_path / "d.nii", RNG.integers(0, 900, (8, 8, 3, 20)).astype(np.int16))
    with pytest.raises(
        InputError, match=r"d\.nii has 20 frames in time and its label has the shape \(8, 8, 3\)"
    ):
        read_pair(many, one)


def test_a_label_with_a_channel_for_each_class_becomes_indices(tmp_path: Path):
    classes = RNG.integers(0, 3, (8, 7, 4))
    image = volume(tmp_path / "a.nii", RNG.integers(0, 900, (8, 7, 4)).astype(np.int16))
    label = volume(tmp_path / "b.nii", np.eye(3, dtype=np.uint8)[classes])
    found = read_label(label, image, read_pixels(image))
    assert (found.array == np.rot90(classes)).all() and "first is read as background" in found.notes[-1]


def test_a_slope_of_0_leaves_the_values_and_a_label_with_a_slope_is_rounded(tmp_path: Path):
    array = RNG.integers(-500, 900, (8, 7, 4)).astype(np.int16)
    path = volume(tmp_path / "images" / "a.nii", array)
    content = bytearray(path.read_bytes())
    content[112:120] = bytes(8)
    path.write_bytes(content)
    assert (read_pixels(path).array == np.rot90(array)).all()
    label = np.zeros((8, 7, 4), np.uint8)
    label[2:5] = 255
    path = volume(tmp_path / "labels" / "a.nii", label)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.00392157, 0], "<f4").tobytes()
    path.write_bytes(content)
    dataset = open_data(str(tmp_path), image_size=SIZE)
    assert (dataset.num_classes, label_of(dataset, 0).unique().tolist()) == (2, [0, 1])


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_compression_other_than_the_name_says_is_read(tmp_path: Path, name: str, times: int):
    array = RNG.integers(0, 900, (8, 7, 4)).astype(np.int16)
    content = volume(tmp_path / "plain.nii", array).read_bytes()
    for _ in range(times):
        content = gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    pixels = read_pixels(tmp_path / name)
    assert (pixels.array == np.rot90(array)).all()
    ending, mask = encode_mask(np.ones(pixels.array.shape, np.uint8), tmp_path / name, pixels)
    assert ending == ".nii.gz" and nibabel.Nifti1Image.from_bytes(gzip.decompress(mask)).shape == (8, 7, 4)


def test_rgb_voxels_are_channels(tmp_path: Path):
    array = np.zeros((5, 6, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    array["G"] = RNG.integers(0, 255, array.shape)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    pixels = read_pixels(tmp_path / "a.nii")
    assert pixels.array.shape == (6, 5, 4, 3) and (pixels.array[..., 1] == np.rot90(array["G"])).all()


def test_masks_of_flat_images_and_series_go_back(tmp_path: Path):
    for name, shape in (("flat", (8, 9)), ("series", (8, 9, 4, 12))):
        path = volume(tmp_path / f"{name}.nii", RNG.integers(0, 9, shape).astype(np.int16))
        pixels = read_pixels(path)
        mask = (pixels.array > 4).astype(np.uint8)
        _, content = encode_mask(mask, path, pixels)
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
        assert image.shape == shape
        assert (np.asarray(image.dataobj) == (np.asarray(nibabel.load(path).dataobj) > 4)).all()
    flat = encode(tmp_path / "a.mha", RNG.integers(0, 200, (8, 9)).astype(np.uint8))
    pixels = read_pixels(flat)
    suffix, content = encode_mask((pixels.array > 99).astype(np.uint8), flat, pixels)
    (tmp_path / f"m{suffix}").write_bytes(content)
    assert (read_pixels(tmp_path / f"m{suffix}").array == (pixels.array > 99)).all()


def test_headers_with_their_values_elsewhere_are_read_and_their_change_is_noticed(tmp_path: Path):
    for suffix, data in ((".mhd", "a.raw"), (".nhdr", "a.raw.gz")):
        path = encode(tmp_path / f"a{suffix}", RNG.integers(0, 200, (6, 8, 9)).astype(np.uint8))
        pixels = read_pixels(path)
        assert pixels.is_volume and pixels.array.shape == (8, 9, 6)
        assert (
            encode_mask(np.zeros((8, 9, 6), np.uint8), path, pixels)[0]
            == {".mhd": ".mha", ".nhdr": ".nrrd"}[suffix]
        )
        before = open_data(str(tmp_path), image_size=SIZE).folder if suffix == ".mhd" else None
        if before is not None:
            (tmp_path / data).write_bytes(bytes(6 * 8 * 9 - 5) + b"12345")
            assert open_data(str(tmp_path), image_size=SIZE).folder != before
            path.unlink()


def test_a_label_of_slicer_belongs_to_its_image(tmp_path: Path):
    array = RNG.integers(0, 999, (5, 12, 10)).astype(np.int16)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / "images" / "a.nii.gz"))
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray((array > 500).astype(np.uint8)), str(tmp_path / "labels" / "a.seg.nrrd")
    )
    dataset = open_data(str(tmp_path), image_size=SIZE, native_resolution=True)
    image, label = dataset.sample(2).image[0].numpy(), label_of(dataset, 2).numpy()
    assert image[label == 1].min() > image[label == 0].max()


def test_an_oblique_grid_is_that_of_the_nearest_axes():
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[2, 2] = 3.0
    grid = Grid.of(affine, (4, 5, 6))
    array = RNG.normal(size=(4, 5, 6))
    assert grid.sides == ("P", "R", "S") and grid.spacing == pytest.approx((1, 1, 3))
    assert grid.distance(grid) == 0 and (grid.restore(grid.arrange(array)) == array).all()

"""Volumes that stay whole: axes towards right, anterior and superior, spacing, crops of the mapped file, and faults."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from medical_files import encode, slices_of, volume, volumes_in
from nibabel import orientations

from ahm_gym.data import BatchStream, ImageDataset, open_data
from ahm_gym.data.formats import as_volume, encode_mask, read_pixels, read_series
from ahm_gym.data.ignored import IGNORED
from ahm_gym.errors import InputError

RNG = np.random.default_rng(0)
CODES = ["".join(s) for axes in itertools.permutations(("RL", "AP", "SI")) for s in itertools.product(*axes)]
SPACING = (2.0, 0.8, 1.2)


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    return open_data(
        str(volumes_in(tmp_path, [(9, 10, 11)] * 10, [(1.0, 1.0, 1.0)] * 10)), image_size=(8, 8, 8)
    )


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_all_48_orientations_become_one_and_go_back(tmp_path: Path, suffix: str):
    from test_formats_volumes import save

    array = RNG.integers(1, 900, (6, 7, 5)).astype(np.int16)
    original = nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0]))
    original.header.set_xyzt_units("mm")
    now = orientations.io_orientation(original.affine)
    for code in CODES:
        turned = original.as_reoriented(orientations.ornt_transform(now, orientations.axcodes2ornt(code)))
        path = save(turned, tmp_path / f"{code}{suffix}")
        pixels = as_volume(read_pixels(path), str(path))
        assert (pixels.array == array).all() and pixels.spacing == pytest.approx(SPACING), code
        mask = np.zeros(array.shape, np.uint8)
        mask[1, 2, 3] = 1
        ending, content = encode_mask(mask, path, pixels)
        written = tmp_path / f"mask{ending}"
        written.write_bytes(content)
        again = as_volume(read_pixels(written), str(written))
        assert (again.array == mask).all() and again.grid.distance(pixels.grid) < 1e-4, code


def test_volumes_are_one_sample_each_with_their_label(dataset: ImageDataset):
    assert (dataset.axes, len(dataset), dataset.num_classes) == (3, 10, 2)
    sample = dataset.sample(0)
    assert sample.image.shape == (1, 9, 10, 11) and sample.label.shape == (9, 10, 11)
    assert sample.spacing == sample.voxel == (1.0, 1.0, 1.0) and sample.position is None
    bright, dark = (sample.image[0][sample.label == value].mean() for value in (1, 0))
    assert bright > dark + 0.3
    train = torch.cat([dataset.normalise(dataset.image(i)).flatten() for i in dataset.indices("train")])
    assert train.mean().abs() < 0.01 and (train.std() - 1).abs() < 0.01


def test_volumes_get_the_median_spacing_of_train_and_labels_keep_their_own(tmp_path: Path, capsys):
    spacings = [(1.0, 1.0, 2.0)] * 8 + [(1.0, 0.5, 4.0)] * 2
    path = volumes_in(tmp_path, [(8, 8, 8)] * 10, spacings)
    dataset = open_data(str(path), image_size=(8, 8, 8))
    assert dataset.processing["spacing"] == [1.0, 1.0, 2.0]
    assert "volumes are resampled to 1x1x2 mm, the median of" in capsys.readouterr().err
    sizes = {dataset.size_of(index) for index in range(10)}
    assert sizes == {(8, 8, 8), (8, 4, 16)}
    assert {tuple(dataset.label(index).shape) for index in range(10)} == {(8, 8, 8)}
    other = open_data(str(path), image_size=(8, 8, 8), spacing=2.0)
    assert {other.size_of(index) for index in range(10)} == {(4, 4, 8), (4, 2, 16)}


def test_resampling_shrinks_without_aliases_along_every_axis(tmp_path: Path):
    array = np.zeros((16, 16, 16), np.int16)
    array[:, :, ::2] = 100  # a grid that only an average over two slices makes flat
    array[0] = 0
    for number in range(3):
        volume(tmp_path / f"p{number}.nii.gz", array + np.int16(number), np.eye(4))
    dataset = open_data(str(tmp_path), image_size=(8, 8, 8), spacing=(1.0, 1.0, 4.0), need_labels=False)
    inner = dataset.image(0)[0, 2:-2, 2:-2, 1:-1]
    assert inner.shape[2] == 2 and inner.std() < 0.05 and 0.4 < inner.mean() < 0.6


@pytest.mark.parametrize("starts", [(0, 0, 0), (2, 3, 4), (-2, 5, -3)])
def test_crops_are_parts_of_the_volume_and_padded_beyond_it(dataset: ImageDataset, starts: tuple[int, ...]):
    size = (8, 7, 9)
    image, label = dataset.crop(3, starts, size), dataset.label_crop(3, starts, size)
    whole, true = dataset.image(3), dataset.label(3)
    for place in itertools.product(*(range(length) for length in size)):
        at = tuple(start + step for start, step in zip(starts, place, strict=True))
        inside = all(0 <= one < end for one, end in zip(at, whole.shape[1:], strict=True))
        assert image[0][place] == (whole[0][at] if inside else 0)
        assert label[place] == (true[at] if inside else IGNORED)


def test_labels_of_crops_are_those_of_the_nearest_voxel(tmp_path: Path):
    path = volumes_in(tmp_path, [(6, 6, 6)] * 3, [(1.0, 1.0, 1.0)] * 3)
    dataset = open_data(str(path), image_size=(4, 4, 4), spacing=0.5)
    whole = dataset.label_crop(0, (0, 0, 0), (12, 12, 12))
    own = dataset.label(0)
    for axis in range(3):
        own = own.repeat_interleave(2, axis)
    assert (whole == own).all()
    assert (dataset.label_crop(0, (3, 5, 4), (5, 4, 6)) == whole[3:8, 5:9, 4:10]).all()


def test_batches_are_crops_flipped_along_every_axis_and_depend_on_seed_and_number(dataset: ImageDataset):
    def batches(start: int) -> BatchStream:
        return BatchStream(dataset, batch_size=40, image_size=(8, 12, 8), seed=3, start=start)

    first, second = next(batches(0)), batches(0)
    assert first.shape == (40, 1, 8, 12, 8) and torch.equal(next(second), first)
    assert torch.equal(next(second), next(batches(1)))
    outside = dataset.normalise(torch.zeros(1, 1, 1, 1)).item()
    assert (first[:, :, :, 0] == outside).all() and not (first[:, :, :, 1] == outside).all()
    found = set()
    for image in dataset.denormalise(first):
        part = image[0, :, 1:11]
        for axes in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
            back = part.flip(axes)
            for index in dataset.indices("train"):
                whole = dataset.image(index)[0].unfold(0, 8, 1).unfold(2, 8, 1)
                near = (whole - back.permute(1, 0, 2)[None, :, None]).abs().amax(dim=(1, 3, 4))
                found |= {axes} if (near < 1e-3).any() else set()
    assert len(found) == 8


@pytest.mark.parametrize("crop", ["centre", "contrast", "oracle"])
def test_rules_of_crops_choose_among_those_of_volumes(tmp_path: Path, crop: str):
    for number in range(3):
        array = np.zeros((24, 24, 24), np.int16)
        array[10:14, 10:14, 10:14] = RNG.integers(500, 900, (4, 4, 4))
        volume(tmp_path / "images" / f"p{number}.nii.gz", array + np.int16(number), np.eye(4))
        volume(tmp_path / "labels" / f"p{number}.nii.gz", (array > 0).astype(np.uint8), np.eye(4))
    dataset = open_data(str(tmp_path), image_size=(8, 8, 8))
    shares = {
        rule: (next(BatchStream(dataset, batch_size=64, image_size=(8, 8, 8), seed=0, crop=rule)) > 0)
        .float()
        .mean()
        for rule in ("uniform", crop)
    }
    assert shares[crop] > shares["uniform"] * 1.2


def test_an_oblique_series_of_dicom_slices_is_one_volume(tmp_path: Path):
    array = RNG.integers(1, 900, (5, 6, 7)).astype(np.int16)
    turn = np.radians(20)
    directions = [np.cos(turn), np.sin(turn), 0.0, -np.sin(turn), np.cos(turn), 0.0]
    paths = slices_of(array, tmp_path, directions, np.array([0.0, 0.0, 2.0]))
    pixels = as_volume(read_series(paths), "series")
    assert pixels.array.shape == (7, 6, 5) and pixels.spacing == pytest.approx((0.25, 0.5, 2.0))
    assert (pixels.array == array[:, ::-1, ::-1].transpose(2, 1, 0)).all()  # from left and posterior


@pytest.mark.parametrize(
    ("step", "missing", "message"),
    [
        (
            (0.0, 0.6, 2.0),
            None,
            r"shifted by 16\.7 degrees \(gantry tilt\).*train on slices, without `volumes`",
        ),
        (
            (0.0, 0.0, 2.0),
            2,
            r"slices that are 2 to 4 mm apart: some may be missing.*train on slices, without `volumes`",
        ),
    ],
)
def test_slices_that_make_no_even_volume_are_refused(
    tmp_path: Path, step: tuple[float, ...], missing: int | None, message: str
):
    array = RNG.integers(1, 900, (5, 6, 7)).astype(np.int16)
    places = [at for at in range(5) if at != missing]
    heights = np.array([at * np.array(step) for at in places])
    paths = []
    for at, height in zip(places, heights, strict=True):
        (path,) = slices_of(array[at : at + 1], tmp_path / str(at), [1.0, 0, 0, 0, 1, 0], np.zeros(3))
        import pydicom

        file = pydicom.dcmread(path)
        file.ImagePositionPatient = height.tolist()
        file.SeriesInstanceUID = "1.2.3"
        file.save_as(path)
        paths.append(path)
    with pytest.raises(InputError, match=message):
        as_volume(read_series(paths), "series")


def test_a_sheared_volume_is_refused(tmp_path: Path):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    path = volume(tmp_path / "a.nii.gz", RNG.integers(1, 9, (4, 4, 4)).astype(np.int16), affine)
    with pytest.raises(InputError, match=r"axes that meet at 78\.7 degrees"):
        as_volume(read_pixels(path), str(path))


def test_arrays_without_orientation_keep_their_axes_and_say_so(tmp_path: Path, capsys):
    for number in range(3):
        encode(tmp_path / f"p{number}.npy", RNG.integers(1, 900, (9, 10, 11)).astype(np.int16))
    dataset = open_data(str(tmp_path), image_size=(8, 8, 8), need_labels=False)
    assert dataset.size_of(0) == (9, 10, 11) and dataset.spacing_of(0) is None
    assert "read whole, with the axes of the file" in capsys.readouterr().err
    with pytest.raises(InputError, match="does not state the size of its pixels"):
        open_data(str(tmp_path), image_size=(8, 8, 8), need_labels=False, spacing=1.0)


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ((1e-6, 1.0, 1.0), "would have 1x8x8 voxels after resampling: check the spacing that it states"),
        ((2000.0, 2000.0, 2000.0), "would have 16000x16000x16000 voxels after resampling: expected at most"),
    ],
)
def test_a_spacing_that_cannot_be_is_refused(tmp_path: Path, spacing: tuple[float, ...], message: str):
    path = volumes_in(tmp_path, [(8, 8, 8)] * 5, [(1.0, 1.0, 1.0)] * 4 + [spacing])
    with pytest.raises(InputError, match=message):
        open_data(str(path), image_size=(8, 8, 8))


@pytest.mark.parametrize(("size", "said"), [((8, 8, 8), False), ((16, 16, 8), True)])
def test_a_note_tells_if_crops_lie_mostly_outside_the_volumes(tmp_path: Path, capsys, size, said: bool):
    path = volumes_in(tmp_path, [(8, 9, 10)] * 3, [(1.0, 1.0, 1.0)] * 3)
    open_data(str(path), image_size=size)
    told = capsys.readouterr().err
    note = "72% of the voxels of crops of 16x16x8 lie outside the training volumes"
    assert (note in told) == said and ("have 8x9x10 voxels in the median" in told) == said


def test_what_is_no_volume_is_refused(tmp_path: Path):
    encode(tmp_path / "flat" / "a.png", RNG.integers(1, 255, (9, 9)).astype(np.uint8))
    with pytest.raises(InputError, match=r"a\.png is a flat image: expected a volume, because"):
        open_data(str(tmp_path / "flat"), image_size=(8, 8, 8))
    np.savez(tmp_path / "a.npz", train_images=RNG.integers(1, 255, (9, 9, 9)).astype(np.uint8))
    with pytest.raises(
        InputError, match="`volumes` needs a folder .* or leave `volumes` or an encoder of volumes out"
    ):
        open_data(str(tmp_path / "a.npz"), image_size=(8, 8, 8))
    volumes_in(tmp_path / "described", [(9, 9, 9)] * 3, [(1.0, 1.0, 1.0)] * 3)
    (tmp_path / "described" / "dataset.json").write_text(
        '{"ahm_gym": 1, "images": "images/{case}.nii.gz", "labels": "labels/{case}.nii.gz", "volumes": true}'
    )
    with pytest.raises(InputError, match="described as `volumes`"):
        open_data(str(tmp_path / "described"), image_size=(8, 8))
    assert open_data(str(tmp_path / "described"), image_size=(8, 8, 8)).axes == 3
    with pytest.raises(InputError, match="`spacing` has 2 numbers: expected 1 or 3"):
        open_data(str(tmp_path / "described"), image_size=(8, 8, 8), spacing=(1.0, 1.0))


def test_multichannel_volumes_have_a_spacing_and_channels(tmp_path: Path):
    for number in range(3):
        volume(
            tmp_path / f"p{number}.nii.gz", RNG.integers(1, 900, (8, 9, 10, 2)).astype(np.int16), np.eye(4)
        )
    dataset = open_data(str(tmp_path), image_size=(8, 8, 8), need_labels=False)
    assert dataset.channels == 2 and dataset.image(0).shape == (2, 8, 9, 10)
    assert next(BatchStream(dataset, batch_size=2, image_size=(8, 8, 8), seed=0)).shape == (2, 2, 8, 8, 8)

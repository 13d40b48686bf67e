"""Tests of the plane of the slices and the size of the pixels that a description asks for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from image_folders import write
from medical_files import volume
from torchvision.transforms.v2 import functional

from ahm_gym.data import open_data
from ahm_gym.data.formats import Pixels, encode_mask, in_plane, read_pixels
from ahm_gym.data.label_files import read_label
from ahm_gym.data.scaling import scale_intensities
from ahm_gym.errors import InputError
from ahm_gym.look.config import LookConfig
from ahm_gym.look.program import run_look

ornt = nibabel.orientations
CODES = [
    "".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)
]
SHAPE = (5, 6, 7)
"""Voxels towards right, anterior and superior, of 1, 2 and 4 mm."""


def scan(code: str = "RAS") -> nibabel.Nifti1Image:
    array = np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.int16)
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return image.as_reoriented(ornt.ornt_transform(ornt.io_orientation(affine), ornt.axcodes2ornt(code)))


@pytest.mark.parametrize(
    ("plane", "sides", "spacing"),
    [("axial", "PRS", (2, 1, 4)), ("coronal", "IRA", (4, 1, 2)), ("sagittal", "IAR", (4, 2, 1))],
)
def test_slices_lie_in_the_plane_whatever_the_order_of_the_axes_and_masks_go_back(
    tmp_path: Path, plane, sides, spacing
):
    expected = np.asarray(scan(sides).dataobj)
    for code in CODES:
        path = tmp_path / f"{code}.nii.gz"
        nibabel.save(scan(code), path)
        pixels = in_plane(read_pixels(path), plane, str(path))
        assert (pixels.array == expected).all(), code
        assert pixels.spacing == pytest.approx(spacing) and pixels.grid.plane == plane
        mask = (pixels.array > 450).astype(np.uint8)
        ending, content = encode_mask(mask, path, pixels)
        written = tmp_path / f"mask{ending}"
        written.write_bytes(content)
        found, own = nibabel.load(written), nibabel.load(path)
        assert np.allclose(found.affine, own.affine)
        assert (np.asarray(found.dataobj) == (np.asarray(own.dataobj) > 450)).all(), code
        assert (read_label(written, path, pixels).array == mask).all()
    assert (
        pixels.notes[0] == f"sliced in the {plane} plane, as the description says" and len(pixels.notes) == 1
    )


def test_an_image_has_no_plane_and_a_volume_without_orientation_is_refused():
    picture = Pixels(np.zeros((4, 5)))
    assert in_plane(picture, "axial", "a.png") is picture
    stack = Pixels(np.zeros((4, 5, 6)), is_volume=True)
    assert in_plane(stack, None, "a.tif") is stack
    with pytest.raises(InputError, match="a.tif is a volume that does not say how it lies in the body"):
        in_plane(stack, "axial", "a.tif")


def described(path: Path, **keys) -> str:
    """Six volumes in different orders of their axes, each with the same label in the same place."""
    for number, code in enumerate(("RAS", "LPI", "SAR", "PIL", "ASL", "IRP")):
        nibabel.save(scan(code), path / f"p{number}.nii.gz")
        own = np.asarray(nibabel.load(path / f"p{number}.nii.gz").dataobj)
        volume(
            path / f"p{number}_mask.nii.gz",
            (own > 450).astype(np.uint8),
            nibabel.load(path / f"p{number}.nii.gz").affine,
        )
    content = {"ahm_gym": 1, "images": "{case}.nii.gz", "labels": "{case}_mask.nii.gz", **keys}
    (path / "dataset.json").write_text(json.dumps(content))
    return str(path)


def test_a_data_set_is_sliced_in_the_plane_of_its_description(tmp_path: Path, capsys):
    dataset = open_data(described(tmp_path, plane="coronal"), image_size=(8, 8), need_labels=True)
    expected = np.asarray(scan("IRA").dataobj)
    assert len(dataset) == 6 * 6
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        assert sample.position is not None and sample.voxel == pytest.approx((4, 1, 2))
        assert (sample.label.numpy() == (expected[:, :, sample.position[0]] > 450)).all()
    assert "6 of 6 files: sliced in the coronal plane, as the description says" in capsys.readouterr().err


@pytest.mark.parametrize(("spacing", "size"), [(1, (28, 5)), ((2, 0.5), (14, 10))])
def test_slices_are_resampled_and_labels_and_distances_keep_the_pixels_of_the_file(
    tmp_path: Path, spacing, size
):
    spec = described(tmp_path, plane="coronal", spacing=spacing)
    dataset = open_data(spec, image_size=(64, 64), need_labels=True)
    sample = dataset.sample(0)
    picture = scale_intensities(np.asarray(scan("IRA").dataobj)[:, :, 0][:, :, None])
    expected = functional.resize(picture, list(size), antialias=True)
    assert tuple(sample.image.shape) == (1, *size)
    torch.testing.assert_close(sample.image, expected, atol=1e-3, rtol=0)
    assert sample.label.shape == (7, 5) and sample.voxel == pytest.approx((4, 1, 2))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"spacing": 0}, r"`spacing.* in .*dataset.json is 0 .*greater than 0"),
        (
            {"spacing": [1, 1, 1]},
            "dataset.json cannot be used, because spacing has 3 numbers: expected 1 or 2",
        ),
        (
            {"plane": "oblique"},
            "`plane` in .*dataset.json is 'oblique' .*'axial', 'coronal' or 'sagittal'",
        ),
        (
            {"spacing": 0.0001},
            "p0.nii.gz .* would have 120000x50000 pixels after resampling: expected at most 16384",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, keys, message):
    with pytest.raises(InputError, match=message):
        open_data(described(tmp_path, **keys), image_size=(8, 8))


def test_a_picture_without_a_spacing_cannot_be_resampled(tmp_path: Path):
    for name in "abc":
        write(tmp_path / f"{name}.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"ahm_gym": 1, "images": "{case}.png", "spacing": 0.5}))
    with pytest.raises(
        InputError, match=r"a.png does not state the size of its pixels, and would be resampled to 0.5 mm"
    ):
        open_data(str(tmp_path), image_size=(8, 8))


def test_look_proposes_the_plane_and_the_spacing_of_a_description_again(tmp_path: Path):
    spec = described(tmp_path, plane="sagittal", spacing=[2, 3])
    run_look(LookConfig(spec, image_size=16, out=tmp_path / "out"))
    proposed = tmp_path / "out" / "dataset.json"
    content = json.loads(proposed.read_text())
    assert (content["plane"], content["spacing"]) == ("sagittal", [2, 3])
    one, other = (open_data(str(place), image_size=(16, 16)) for place in (spec, proposed))
    assert one.ids == other.ids and all(
        one.image(index).equal(other.image(index)) for index in range(len(one))
    )

"""Tests of DICOM files with several frames: where they lie, and that masks of them lie there too."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from medical_files import dicom
from pydicom.dataset import Dataset

from ahm_gym.data.formats import Pixels, encode_mask, match_label, read_pixels

SAGITTAL, AXIAL = [0.0, 1, 0, 0, 0, -1], [1.0, 0, 0, 0, 1, 0]
ARRAY = np.random.default_rng(0).integers(1, 900, (5, 8, 6)).astype(np.uint16)


def item(**tags) -> Dataset:
    found = Dataset()
    for name, value in tags.items():
        setattr(found, name, value)
    return found


def frames(
    path: Path, heights: list[float], directions: list[float] = AXIAL, *, shared: bool = True, **tags
) -> Path:
    """A file of five frames, whose first pixels lie at (10, -20, 30) plus these heights along the normal, in mm."""
    normal = np.cross(directions[:3], directions[3:])
    orientation = {"PlaneOrientationSequence": [item(ImageOrientationPatient=directions)]}
    measures = {"PixelMeasuresSequence": [item(PixelSpacing=[0.5, 0.25])]}
    each = [
        item(
            PlanePositionSequence=[
                item(ImagePositionPatient=(np.array([10.0, -20, 30]) + normal * height).tolist())
            ],
            **({} if shared else {**orientation, **measures}),
        )
        for height in heights
    ]
    groups = {"SharedFunctionalGroupsSequence": [item(**orientation, **measures)]} if shared else {}
    return dicom(path, ARRAY, PerFrameFunctionalGroupsSequence=each, **groups, **tags)


def position(directions: list[float], row: int, column: int, height: float) -> np.ndarray:
    """Where a pixel lies, towards right, anterior and superior, by the formula of the DICOM standard (C.7.6.2.1.1)."""
    along_row, down_column = np.array(directions[:3]), np.array(directions[3:])
    normal = np.cross(along_row, down_column)
    lps = np.array([10.0, -20, 30]) + normal * height + along_row * 0.25 * column + down_column * 0.5 * row
    return lps * [-1, -1, 1]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("directions", [AXIAL, SAGITTAL])
@pytest.mark.parametrize("heights", [[0, 3, 6, 9, 12], [12, 9, 6, 3, 0], [6, 0, 12, 3, 9]])
def test_frames_have_the_grid_of_their_functional_groups_and_masks_lie_there(
    tmp_path, heights, directions, shared
):
    path = frames(tmp_path / "a.dcm", heights, directions, shared=shared)
    pixels = read_pixels(path)
    assert pixels.grid is not None and pixels.grid.stated
    assert sorted(pixels.spacing) == pytest.approx([0.25, 0.5, 3])
    assert pixels.grid.plane == ("axial" if directions is AXIAL else "sagittal")
    for frame, row, column in ((0, 0, 0), (1, 7, 5), (4, 2, 3)):
        ending, content = encode_mask(
            (pixels.array == ARRAY[frame, row, column]).astype(np.uint8), path, pixels
        )
        (tmp_path / f"mask{ending}").write_bytes(content)
        mask = nibabel.load(tmp_path / f"mask{ending}")
        places = np.argwhere(np.asarray(mask.dataobj))
        found = nibabel.affines.apply_affine(mask.affine, places)
        expected = position(directions, row, column, heights[frame])
        assert np.abs(found - expected).max(axis=1).min() < 1e-4  # the value may occur elsewhere too


@pytest.mark.parametrize("heights", [[0, 3, 6, 9, 12], [12, 9, 6, 3, 0]])
def test_a_label_without_a_place_has_the_frames_of_its_image(tmp_path: Path, heights):
    path = frames(tmp_path / "a.dcm", heights)
    pixels = read_pixels(path)
    label = Pixels(np.moveaxis(ARRAY > 450, 0, 2).astype(np.uint8), is_volume=True)
    found = match_label(label, tmp_path / "a.tif", pixels, path)
    assert (found.array == (pixels.array > 450)).all()


def test_frames_at_one_place_or_without_one_stay_as_they_are(tmp_path: Path):
    expected = np.moveaxis(ARRAY, 0, 2)
    for path in (
        frames(tmp_path / "cine.dcm", [0, 0, 3, 3, 6]),
        dicom(tmp_path / "plain.dcm", ARRAY, PixelSpacing=[0.5, 0.25]),
    ):
        pixels = read_pixels(path)
        assert pixels.is_volume and pixels.grid is None and pixels.spacing == (0.5, 0.25)
        assert (pixels.array == expected).all()


def test_a_gap_between_frames_is_said(tmp_path: Path):
    notes = read_pixels(frames(tmp_path / "a.dcm", [0, 3, 6, 12, 15])).notes
    assert "with frames that are 3 to 6 mm apart: some may be missing" in notes

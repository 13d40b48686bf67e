"""Folders of raw scans beside preprocessed ones, and of several observers' labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_folders import RNG, mask, write

from ahm_gym.data.search import find_layout

GRID = (9, 8, 3)


def volume(shape: tuple[int, ...] = GRID) -> np.ndarray:
    return RNG.integers(0, 250, shape, dtype=np.uint8)


def white_matter(root: Path, raw: str = "orig", processed: str = "pre") -> None:
    """Writes cases as WMH publishes them: raw scans, the same on one grid, and a label of that grid."""
    for case in ("0", "21"):
        for name in ("T1", "FLAIR"):
            write(root / case / processed / f"{name}.nii.gz", volume())
            write(root / case / raw / f"{name}.nii.gz", volume(GRID if name == "FLAIR" else (7, 7, 5)))
        write(root / case / raw / "3DT1.nii.gz", volume((7, 7, 5)))
        write(root / case / raw / "3DT1_mask.nii.gz", mask((7, 7, 5)))
        write(root / case / "wmh.nii.gz", mask(GRID))


@pytest.mark.parametrize(("raw", "processed"), [("orig", "pre"), ("raw", "preprocessed")])
def test_raw_scans_are_left_out_beside_the_same_preprocessed(tmp_path: Path, raw: str, processed: str):
    white_matter(tmp_path, raw, processed)
    layout = find_layout(tmp_path)
    assert layout.modalities == ("t1", "flair")
    assert [[path.name for path in scan.labels] for scan in layout.scans] == [["wmh.nii.gz"]] * 2
    assert all(path.parent.name == processed for scan in layout.scans for path in scan.images)
    assert sum("raw files" in doubt for doubt in layout.doubts) == 1


def test_raw_scans_whose_labels_are_raw_stay(tmp_path: Path):
    for case in ("a", "b", "c"):
        write(tmp_path / case / "raw" / "scan.nii.gz", volume())
        write(tmp_path / case / "raw" / "scan_mask.nii.gz", mask(GRID))
        write(tmp_path / case / "pre" / "scan.nii.gz", volume((5, 5, 5)))
    layout = find_layout(tmp_path)
    assert len(layout.labels) == 3 and len(layout.scans) == 6


def test_folders_of_other_scans_stay_whatever_their_names(tmp_path: Path):
    for folder in ("raw", "processed"):
        for case in range(4):
            write(tmp_path / folder / f"{folder}{case}.png")
    assert len(find_layout(tmp_path).scans) == 8


def drawings(root: Path, shift: int) -> None:
    """Writes slices with three labels each, in numbered folders; `shift` pixels lie between two of them."""
    for case in ("p1", "p2", "p3"):
        write(root / case / "images" / "slice.png")
        for number in range(3):
            label = np.zeros((12, 10), np.uint8)
            label[shift * number : shift * number + 3, 2:7] = 255
            write(root / case / f"mask-{number}" / "slice.png", label)


def test_of_numbered_folders_that_show_the_same_the_first_is_used(tmp_path: Path):
    drawings(tmp_path, 0)
    layout = find_layout(tmp_path)
    assert [scan.labels[0].parent.name for scan in layout.scans] == ["mask-0"] * 3
    assert not layout.faults and any("several observers" in doubt for doubt in layout.doubts)


def test_numbered_folders_that_show_other_things_are_refused(tmp_path: Path):
    drawings(tmp_path, 4)
    layout = find_layout(tmp_path)
    assert "are labels of one image" in layout.faults[0] and not layout.doubts

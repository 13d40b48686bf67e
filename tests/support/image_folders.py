"""Folders of small images, and what a dataset of them holds."""

from __future__ import annotations

from pathlib import Path

import cv2
import nibabel
import numpy as np
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.data.sample import Split

SIZE = (8, 8)
RNG = np.random.default_rng(0)


def write(path: Path, array: np.ndarray | None = None) -> Path:
    """Writes random numbers, or the given array, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 200, (12, 10), dtype=np.uint8) if array is None else array
    if path.suffix == ".npy":
        np.save(path, array)
    elif ".nii" in path.name:
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0])), path)
    else:
        assert cv2.imwrite(str(path), array)
    return path


def mask(shape: tuple[int, ...] = (12, 10)) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[2:5, 3:6] = 1
    return label


def label_of(dataset: ImageDataset, index: int) -> Tensor:
    label = dataset.sample(index).label
    assert label is not None
    return label


def names(dataset: ImageDataset, split: Split) -> list[str]:
    return [dataset.sample(index).id for index in dataset.indices(split)]

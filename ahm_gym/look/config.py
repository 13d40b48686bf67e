"""The settings of `ahm-gym look`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class LookConfig:
    """Show what is understood of a data set, before anything trains.

    Writes a page with its files, patients, splits, classes, sizes and intensities, and a dataset.json that describes it
    and can be edited and given as data.
    """

    data: tyro.conf.Positional[str]
    """A folder, an .npz file, a dataset.json, medsegbench:NAME or medmnist:NAME."""
    data_root: Path | None = None
    """Folder in which relative names of data are looked up, before AHM_DATA and the current folder."""
    patient_regex: str | None = None
    """Regular expression that finds the patient in the path of each image: its first group, or all that it matches."""
    volumes: bool = False
    """Show volumes whole, as pretraining reads them with the same setting. Otherwise each slice is an image."""
    spacing: float | tuple[float, ...] | None = None
    """Millimetres to which images are resampled, as for pretraining."""
    image_size: int | tuple[int, ...] = 64
    """Side of the training images in pixels, or height and width; of volumes one number or three."""
    out: Path = Path("look")
    """Folder of the page and the description. What is there is replaced."""

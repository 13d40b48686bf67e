"""The size of an image by its header alone."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
from PIL import Image

from ahm_gym.data.formats.names import kind_of

TURNED = (5, 6, 7, 8)
"""Values of the EXIF tag of the orientation that exchange rows and columns."""
ORIENTATION = 0x0112
ITK: tuple[str, ...] = (".mha", ".mhd", ".nrrd", ".nhdr")


def shape_of(path: Path) -> tuple[int, ...] | None:
    """The size that the header of a file states; None if it cannot be told from the header alone.

    Volumes (X, Y, Z) and arrays have the order of the axes in the file; pictures and DICOM have rows and columns, and
    after them their pages or frames if there are several.
    """
    # Whatever is wrong with a file is said when it is read.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = kind_of(path)
        if kind in (".nii", ".nii.gz"):
            volume: Any = nibabel.load(path)
            return _spatial(volume.shape)
        if kind in ITK:
            reader = SimpleITK.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            return _spatial(reader.GetSize())
        if kind == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).shape
        if kind in (".dcm", ".ima"):
            header: Any = pydicom.dcmread(path, stop_before_pixels=True)
            frames = int(header.get("NumberOfFrames") or 1)
            return (int(header.Rows), int(header.Columns), *((frames,) if frames > 1 else ()))
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ORIENTATION) in TURNED
            frames = getattr(picture, "n_frames", 1)
            return (*((width, height) if turned else (height, width)), *((frames,) if frames > 1 else ()))
    return None


def _spatial(shape: Sequence[int]) -> tuple[int, ...]:
    """A size without axes of length 1 behind the three of a volume."""
    kept = tuple(shape)
    while len(kept) > 3 and kept[-1] == 1:
        kept = kept[:-1]
    return kept

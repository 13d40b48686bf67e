"""MetaImage and NRRD, read by SimpleITK."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import SimpleITK
from jaxtyping import Shaped

from ahm_gym.data.formats.grids import is_usable
from ahm_gym.data.formats.pixels import Pixels, guess_fourth, on_grid

ONE_FILE: dict[str, str] = {".mha": ".mha", ".mhd": ".mha", ".nrrd": ".nrrd", ".nhdr": ".nrrd"}
"""The suffixes that are read, and those of the same format in one file."""
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""ITK's axes point left, posterior and superior."""


def read_itk(path: Path) -> Pixels:
    """Reads an image, or a volume turned to the common orientation.

    Components of a voxel are channels; a fourth axis is time or channels by its length.
    """
    image = open_itk(path)
    dimensions, channels = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    values = SimpleITK.GetArrayFromImage(image)
    if dimensions == 2:
        rows, columns = image.GetSpacing()[::-1]
        return Pixels(values, spacing=(rows, columns))
    array = values.transpose(*reversed(range(dimensions)), *([dimensions] if channels > 1 else []))
    fourth, sure = "channels", True
    if dimensions == 4:
        if array.shape[3] == 1:
            array = array[:, :, :, 0]
        else:
            fourth, sure = guess_fourth(array.shape[3]), False
    affine = np.eye(4)
    affine[:3, :3] = (
        np.reshape(image.GetDirection(), (dimensions, dimensions))[:3, :3] * image.GetSpacing()[:3]
    )
    affine[:3, 3] = image.GetOrigin()[:3]
    usable = is_usable(affine)
    if not usable:
        affine = np.diag([*image.GetSpacing()[:3], 1.0])
    stated = usable and ("NRRD_space" in image.GetMetaDataKeys() or path.suffix.lower() in (".mha", ".mhd"))
    return on_grid(array, TO_RAS @ affine, stated=stated, fourth=fourth, fourth_is_sure=sure)


def open_itk(path: Path) -> SimpleITK.Image:
    """Opens a file.

    Raises:
        ValueError: with the last line of SimpleITK's report, if it cannot be read.
    """
    try:
        return SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip() and "No such file" not in line]
        raise ValueError(lines[-1].rpartition("): ")[2].strip() or "SimpleITK cannot decode it") from error


def encode_itk(mask: Shaped[np.ndarray, "..."], path: Path) -> tuple[str, bytes]:
    """A mask in the file's axes (X, Y, Z), or rows and columns of one image, in the format and geometry of a file."""
    scan = open_itk(path)
    image = SimpleITK.GetImageFromArray(mask if mask.ndim == 2 else mask.transpose())
    if image.GetDimension() == scan.GetDimension():
        image.CopyInformation(scan)
    else:  # the scan has a fourth axis, and the mask has none
        size = scan.GetDimension()
        image.SetSpacing(scan.GetSpacing()[:3])
        image.SetOrigin(scan.GetOrigin()[:3])
        image.SetDirection(np.reshape(scan.GetDirection(), (size, size))[:3, :3].ravel().tolist())
    suffix = ONE_FILE[path.suffix.lower()]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"mask{suffix}"
        SimpleITK.WriteImage(image, str(written), useCompression=True)
        return suffix, written.read_bytes()

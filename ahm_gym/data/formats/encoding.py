"""Writes a mask onto the grid of the scan that it was made for."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from jaxtyping import Shaped, UInt8

from ahm_gym.data.formats.itk import ONE_FILE, encode_itk
from ahm_gym.data.formats.names import suffix_of
from ahm_gym.data.formats.nifti import NIFTI, open_nifti
from ahm_gym.data.formats.pixels import Pixels


def encode_mask(mask: UInt8[np.ndarray, "H W *slices"], path: Path, pixels: Pixels) -> tuple[str, bytes]:
    """A mask in the format that fits its scan; see `encode`."""
    return encode(mask, path, pixels)


def encode(mask: Shaped[np.ndarray, "H W *slices"], path: Path, pixels: Pixels) -> tuple[str, bytes]:
    """A mask or a map of values in the format that fits its scan, in the order of the scan's own axes.

    NIfTI, MetaImage and NRRD keep their format and geometry; a DICOM series becomes NIfTI. Otherwise an image becomes
    PNG, an array `.npy`, and a volume TIFF with pages.

    Args:
        mask: classes or values in the order of `Pixels.array`, with slices and frames of time if it has them.
        path: file of the scan.
        pixels: its content.

    Returns:
        The suffix and the content of the file.
    """
    suffix = suffix_of(path)
    if pixels.grid is not None:
        mask = pixels.grid.restore(mask if mask.ndim > 2 else mask[:, :, None])
        mask = mask if pixels.is_volume else mask[:, :, 0]
    if suffix in ONE_FILE:
        return encode_itk(mask, path)
    if pixels.grid is not None:
        return ".nii.gz", encode_nifti(mask, path, pixels.grid.affine)
    if suffix == ".npy":
        content = io.BytesIO()
        np.save(content, mask)
        return ".npy", content.getvalue()
    if pixels.is_volume:
        pages = np.moveaxis(mask.reshape(*mask.shape[:2], -1), 2, 0)
        return ".tif", cv2.imencodemulti(".tif", list(pages))[1].tobytes()
    return ".png", cv2.imencode(".png", mask)[1].tobytes()


def encode_nifti(mask: Shaped[np.ndarray, "..."], path: Path, affine: np.ndarray) -> bytes:
    """A mask or a map with the header of a NIfTI scan, or with an affine of its own."""
    if suffix_of(path) not in NIFTI:
        image = nibabel.Nifti1Image(mask, affine)
        image.header.set_xyzt_units("mm")
        return gzip.compress(image.to_bytes(), mtime=0)
    scan: Any = open_nifti(path)
    header = scan.header.copy()
    header.set_data_dtype(mask.dtype)
    header.set_slope_inter(1.0, 0.0)
    header["cal_max"] = header["cal_min"] = 0  # the range that a viewer would show
    kind = nibabel.Nifti2Image if isinstance(scan, nibabel.Nifti2Image) else nibabel.Nifti1Image
    return gzip.compress(kind(mask, scan.affine, header).to_bytes(), mtime=0)

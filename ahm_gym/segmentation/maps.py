"""Masks and maps of probabilities and uncertainty as files, in the geometry of their scans."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from jaxtyping import Float32, UInt8

from ahm_gym.data.files import Pixels, suffix_of

NIFTI: tuple[str, ...] = (".nii", ".nii.gz")
FULL: int = 65535
"""Value of an uncertainty of 1 in a PNG or TIFF."""


def encode_mask(mask: UInt8[np.ndarray, "H W *slices"], path: Path, pixels: Pixels) -> tuple[str, bytes]:
    """A mask in the format that fits its scan: NIfTI with the scan's affine, PNG, TIFF with pages, or .npy.

    Args:
        mask: classes in the order of `Pixels.array`.
        path: file of the scan.
        pixels: its content.

    Returns:
        The suffix and the content of the file.
    """
    return _encode(mask, path, pixels)


def encode_uncertainty(
    values: Float32[np.ndarray, "H W *slices"], path: Path, pixels: Pixels
) -> tuple[str, bytes]:
    """Uncertainties from 0 to 1: float32 in NIfTI and .npy; in PNG and TIFF 16 bits, where 65535 is 1.

    The arguments and the result are those of `encode_mask`.
    """
    if suffix_of(path) not in (*NIFTI, ".npy"):
        return _encode((values * FULL).round().astype(np.uint16), path, pixels)
    return _encode(values, path, pixels)


def encode_probabilities(values: Float32[np.ndarray, "*shape K"], path: Path) -> tuple[str, bytes]:
    """Probabilities of the classes: float32 NIfTI with a fourth axis, otherwise .npz with the array `probabilities`.

    Args:
        values: in the order of `Pixels.array`, with the classes in the last axis.
        path: file of the scan.

    Returns:
        The suffix and the content of the file.
    """
    if suffix_of(path) in NIFTI:
        return _nifti(values if values.ndim == 4 else values[:, :, None], path)
    content = io.BytesIO()
    np.savez_compressed(content, probabilities=values)
    return ".npz", content.getvalue()


def _encode(values: np.ndarray, path: Path, pixels: Pixels) -> tuple[str, bytes]:
    suffix = suffix_of(path)
    if suffix in NIFTI:
        return _nifti(values, path)
    if suffix == ".npy":
        content = io.BytesIO()
        np.save(content, values)
        return ".npy", content.getvalue()
    if pixels.is_volume:
        return ".tif", cv2.imencodemulti(".tif", list(np.moveaxis(values, 2, 0)))[1].tobytes()
    return ".png", cv2.imencode(".png", values)[1].tobytes()


def _nifti(values: np.ndarray, path: Path) -> tuple[str, bytes]:
    scan: Any = nibabel.load(path)
    header = scan.header.copy()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1.0, 0.0)
    image = nibabel.Nifti1Image(np.rot90(values, -1), scan.affine, header)  # as `read_pixels` turned it
    return ".nii.gz", gzip.compress(image.to_bytes(), mtime=0)

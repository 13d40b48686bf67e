"""Maps of probabilities and uncertainty as files, in the geometry of their scans."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ahm_gym.data.formats import Pixels, suffix_of
from ahm_gym.data.formats.encoding import encode, encode_nifti

FULL: int = 65535
"""Value of an uncertainty of 1 in a PNG or TIFF."""


def encode_uncertainty(
    values: Float32[np.ndarray, "H W *slices"], path: Path, pixels: Pixels
) -> tuple[str, bytes]:
    """Uncertainties from 0 to 1: float32 in volume formats and .npy; in PNG and TIFF 16 bits, where 65535 is 1.

    The arguments and the result are those of `encode_mask`.
    """
    if pixels.grid is None and suffix_of(path) != ".npy":
        return encode((values * FULL).round().astype(np.uint16), path, pixels)
    return encode(values, path, pixels)


def encode_probabilities(
    values: Float32[np.ndarray, "*shape K"], path: Path, pixels: Pixels
) -> tuple[str, bytes]:
    """Probabilities of the classes: float32 NIfTI with the classes in its last axis if the scan has a grid, otherwise
    .npz with the array `probabilities`.

    Args:
        values: in the order of `Pixels.array`, with the classes in the last axis.
        path: file of the scan.
        pixels: its content.

    Returns:
        The suffix and the content of the file.
    """
    if pixels.grid is not None:
        volume = values if pixels.is_volume else values[:, :, None]
        return ".nii.gz", encode_nifti(pixels.grid.restore(volume), path, pixels.grid.affine)
    content = io.BytesIO()
    np.savez_compressed(content, probabilities=values)
    return ".npz", content.getvalue()

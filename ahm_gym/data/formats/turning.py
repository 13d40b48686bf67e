"""Turns a picture upright as its header says."""

from __future__ import annotations

import numpy as np


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns in the order in which a viewer shows them.

    Args:
        array: (H, W, ...) as stored.
        orientation: 1 to 8, as EXIF and TIFF define it; other values are read as 1.
    """
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array

"""NumPy arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ahm_gym.data.formats.pixels import Pixels
from ahm_gym.data.scaling import MAX_ARRAY_CHANNELS, refuse_channels_first, refuse_slices_first


def read_array(path: Path) -> Pixels:
    """Reads an image, or a volume if the last axis is longer than that of channels.

    Raises:
        InputError: if the channels or the slices seem to come first.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    refuse_channels_first(array.shape, str(path))
    refuse_slices_first(array.shape, str(path))
    return Pixels(array, is_volume=array.ndim > 3 or (array.ndim > 2 and array.shape[2] > MAX_ARRAY_CHANNELS))

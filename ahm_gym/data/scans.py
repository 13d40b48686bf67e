"""Reads the image of one scan, with several modalities as channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ahm_gym.data.formats import Pixels, as_volume, in_plane, match_label, read_pixels, read_series
from ahm_gym.data.layout import Scan
from ahm_gym.data.processing import PLAIN, Processing
from ahm_gym.errors import InputError


def arranged(pixels: Pixels, processing: Processing, origin: str) -> Pixels:
    """What a file holds, with its axes as `Processing.volumes` and `plane` ask for; see `as_volume` and `in_plane`."""
    if processing.volumes:
        return as_volume(pixels, origin)
    return in_plane(pixels, processing.plane, origin)


def read_scan(scan: Scan, processing: Processing = PLAIN) -> Pixels:
    """Reads the image of a scan: one file, the slices of a series, or several files as channels.

    Args:
        scan: its files.
        processing: how the axes of a volume are arranged.

    Raises:
        InputError: if a file cannot be read, the channels differ in size or orientation, or a volume cannot be
            arranged as asked for.
    """
    if scan.series and scan.images[1:]:
        return arranged(read_series(scan.images), processing, str(scan.images[0]))
    first, *others = [read_pixels(path) for path in scan.images]
    first = arranged(first, processing, str(scan.images[0]))
    if not others:
        return first
    others = [
        _on_grid_of(first, scan.images[0], pixels, path)
        for path, pixels in zip(scan.images[1:], others, strict=True)
    ]
    for path, pixels in zip(scan.images[1:], others, strict=True):
        if pixels.array.shape != first.array.shape:
            raise InputError(
                f"{path} and {scan.images[0]} are modalities of one case, and have the shapes {pixels.array.shape} and "
                f"{first.array.shape}: expected the same; resample them to one grid."
            )
    if first.array.ndim > 2 + first.is_volume:
        raise InputError(
            f"{scan.images[0]} is one modality of a case and has the shape {first.array.shape}: expected one channel; "
            "convert it to grey."
        )
    return dataclasses.replace(first, array=np.stack([first.array, *(p.array for p in others)], axis=-1))


def _on_grid_of(first: Pixels, first_path: Path, pixels: Pixels, path: Path) -> Pixels:
    """A modality with its axes in the order of the first one.

    Raises:
        InputError: if it lies elsewhere in the body.
    """
    try:
        return match_label(pixels, path, first, first_path)
    except InputError as error:
        raise InputError(
            f"{path} and {first_path} are modalities of one case and do not lie on the same grid: resample one to the "
            "other, or keep each modality in a folder of its own."
        ) from error

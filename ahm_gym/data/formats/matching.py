"""Brings a label to the grid of its image, and tells time from channels by the label."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ahm_gym.data.formats.grids import TOLERANCE, Grid
from ahm_gym.data.formats.names import DICOM, kind_of
from ahm_gym.data.formats.pixels import Pixels
from ahm_gym.errors import InputError


def match_label(label: Pixels, path: Path, image: Pixels, image_path: Path) -> Pixels:
    """A label with its axes in the order of its image.

    Where both files state their orientation, the same place in the body must have the same place in both: the
    corners may differ by a twentieth of the smallest voxel edge. Where one does not, the axes of the files
    are taken as the same. A label without a unit of length has that of its image.

    Args:
        label: the content of the label.
        path: its file.
        image: the content of the image.
        image_path: its file.

    Raises:
        InputError: if the label lies elsewhere in the body, or has another size.
    """
    label = _as_frames(label, image, image_path)
    if label.grid is None or image.grid is None or not label.is_volume or not image.is_volume:
        return _without_one_hot(label, image)
    stored = label.grid.restore(label.array)
    own = label.grid
    if own.scale is None and image.grid.scale is not None:
        own = dataclasses.replace(own, affine=np.diag([*(image.grid.scale,) * 3, 1.0]) @ own.affine)
    if not (label.grid.stated and image.grid.stated):
        grid = dataclasses.replace(own, affine=image.grid.affine, sides=image.grid.sides)
    else:
        grid = dataclasses.replace(own, sides=image.grid.sides)
    if grid.array_shape != image.grid.array_shape:
        raise InputError(
            f"{path} has the shape {grid.array_shape} and its image {image_path} {image.grid.array_shape}: "
            "expected the same size; resample the label to its image with nearest neighbours."
        )
    _check_place(grid, path, image.grid, image_path)
    return _without_one_hot(dataclasses.replace(label, array=grid.arrange(stored), grid=grid), image)


def _as_frames(label: Pixels, image: Pixels, image_path: Path) -> Pixels:
    """A label that does not say where it lies: its rows, columns and frames are those of its DICOM image."""
    if label.grid is not None or image.grid is None or not (label.is_volume and image.is_volume):
        return label
    if kind_of(image_path) not in DICOM or label.array.shape[:3] != image.grid.shape:
        return label
    return dataclasses.replace(label, array=image.grid.arrange(label.array), grid=image.grid)


def _check_place(label: Grid, path: Path, image: Grid, image_path: Path) -> None:
    """Raises InputError if the corners of a label lie elsewhere than those of its image."""
    distance = label.distance(image)
    if distance <= TOLERANCE * min(image.spacing):
        return
    found, expected = ("x".join(f"{size:.4g}" for size in grid.spacing) for grid in (label, image))
    difference = "" if found == expected else f" (voxels of {found} mm and of {expected} mm)"
    raise InputError(
        f"{path} lies up to {distance:.4g} mm away from its image {image_path}{difference}: expected the same place "
        "and spacing; resample the label to its image with nearest neighbours, for example by "
        "nibabel.processing.resample_from_to(label, image, order=0), or copy the image's affine if only the "
        "header is wrong."
    )


def _without_one_hot(label: Pixels, image: Pixels) -> Pixels:
    """The classes of a label that has a channel of 0 and 1 for each; other labels unchanged."""
    array = label.array
    if not label.is_volume or array.ndim != 4 or image.array.ndim != 3:
        return label
    if not (((array == 0) | (array == 1)).all() and (array.sum(axis=-1) == 1).all()):
        return label
    classes = array.argmax(axis=-1).astype(np.uint8)
    note = f"a label with {array.shape[-1]} channels of 0 and 1, of which the first is read as background"
    return dataclasses.replace(label, array=classes, notes=(*label.notes, note))


def with_frames(image: Pixels, path: Path, label: Pixels | None) -> Pixels:
    """An image whose fourth axis is time if it may be and its label has as many frames.

    Raises:
        InputError: if an image has frames in time, and its label has none.
    """
    if not image.is_volume or image.array.ndim != 4 or label is None:
        return image
    frames = image.array.shape[3]
    labelled = label.array.ndim == 4 and label.array.shape[3] == frames
    if image.fourth == "channels":
        if not labelled or image.fourth_is_sure:
            return image
        notes = tuple(note for note in image.notes if "fourth axis" not in note)
        note = "with a fourth axis that is read as time, because the label has as many frames"
        return dataclasses.replace(image, fourth="time", fourth_is_sure=True, notes=(*notes, note))
    if not labelled:
        raise InputError(
            f"{path} has {frames} frames in time and its label has the shape {label.array.shape}: expected a label of "
            "each frame; save the frame that is labelled as a volume of its own, or move the label elsewhere to "
            "pretrain without it."
        )
    return image

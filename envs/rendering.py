"""One picture per masked image: image | masked image | reconstruction | scores; of a volume, its middle planes.

Planes are shown upright, for axes towards right, anterior and superior, as volumes are read: axial, coronal, sagittal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.model.autoencoder import Autoencoder

GAP: int = 2
"""White pixels between two panels."""


@dataclass(frozen=True)
class Shown:
    """A batch to show; before its update there are no scores and no prediction."""

    images: Float[Tensor, "B C *S"]
    """Normalised images."""
    masks: Masks
    scores: Float[Tensor, "B L"] | None = None
    prediction: Float[Tensor, "B L P"] | None = None


def render_batch(
    shown: Shown, autoencoder: Autoencoder, data: ImageDataset | Float[Tensor, "N C *S"]
) -> tuple[UInt8[np.ndarray, "h w 3"], ...]:
    """One picture per image, in the grey values of `data`."""
    images, filled = to_display(shown.images, data), None
    if shown.prediction is not None:
        mask = shown.masks.masked.to(shown.images.device)
        filled = to_display(autoencoder.reconstruct(shown.images, mask, shown.prediction), data)
    return tuple(
        render_panels(
            images[i],
            shown.masks.masked[i],
            shown.masks.guided[i],
            None if filled is None else filled[i],
            None if shown.scores is None else shown.scores[i],
            autoencoder.grid,
        )
        for i in range(len(images))
    )


def to_display(
    images: Float[Tensor, "B C *S"], data: ImageDataset | Float[Tensor, "N C *S"]
) -> Float[Tensor, "B C *S"]:
    """Normalised images mapped to [0, 1]: denormalised by the dataset, or scaled by the range of a tensor."""
    images = images.float().cpu()
    if isinstance(data, ImageDataset):
        return data.denormalise(images).clamp(0, 1)
    low, high = data.min(), data.max()
    return ((images - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def warn_without_mode() -> None:
    """Warns that `render` has nothing to return."""
    gym.logger.warn("render() without a render_mode: build the environment with render_mode='rgb_array'.")


def checked_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, "rgb_array"):
        raise InputError(f"render mode {render_mode!r} is unknown: choose None or 'rgb_array'.")
    return render_mode


def render_panels(
    image: Float[Tensor, "C *S"],
    mask: Bool[Tensor, " L"],
    guided: Bool[Tensor, " L"],
    reconstruction: Float[Tensor, "C *S"] | None,
    scores: Float[Tensor, " L"] | None,
    grid: tuple[int, ...],
) -> UInt8[np.ndarray, "h w 3"]:
    """Four panels side by side; the last two are black before the first update. A volume has a row for each axis.

    Args:
        image: the image in [0, 1].
        mask: True where masked; tinted blue in the second panel.
        guided: True where the scores chose the patch; tinted orange instead.
        reconstruction: the image with its masked patches filled in, in [0, 1].
        scores: one score per patch, on any scale; shown by rank, bright is high.
        grid: number of patches along each axis.
    """
    if len(grid) == 3:
        rows = [
            render_panels(*(_middle(part, axis, grid) for part in (image, mask, guided, reconstruction, scores)),
                          (*grid[:axis], *grid[axis + 1 :])[::-1])
            for axis in (2, 1, 0)
        ]  # fmt: skip
        return _stacked(rows)
    height, width = image.shape[1:]
    original = to_rgb(image)
    panels = [
        original,
        shade(original, mask, guided, grid),
        np.zeros_like(original) if reconstruction is None else to_rgb(reconstruction),
        np.zeros_like(original) if scores is None else heat(scores, grid, (height, width)),
    ]
    gap = np.full((height, GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _middle(part: Tensor | None, axis: int, grid: tuple[int, ...]) -> Any:
    """The middle plane across an axis, upright, of a volume with channels or of flat numbers, one per patch."""
    if part is None:
        return None
    if part.ndim == 1:
        return _upright(part.view(grid).select(axis, grid[axis] // 2)).flatten()
    side = part.shape[axis + 1] // grid[axis]
    return _upright(part.select(axis + 1, grid[axis] // 2 * side + side // 2))


def _upright(plane: Tensor) -> Tensor:
    """A plane with its second axis upwards."""
    return plane.transpose(-2, -1).flip(-2)


def _stacked(pictures: list[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures one below the other, with white gaps and on the right of narrow ones."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(picture, ((0, GAP), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
        for picture in pictures
    ]
    return np.concatenate(padded)[:-GAP]


def to_rgb(image: Float[Tensor, "C H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """8-bit colours of an image in [0, 1]: three channels as RGB, any other number averaged to grey."""
    if image.shape[0] != 3:
        image = image.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def shade(
    picture: UInt8[np.ndarray, "H W 3"],
    mask: Bool[Tensor, " L"],
    guided: Bool[Tensor, " L"],
    grid: tuple[int, int],
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with masked patches tinted: orange if the scores chose them, blue otherwise."""
    height, width = picture.shape[:2]
    masked, chosen = (_enlarge(value.numpy().reshape(grid).astype(np.uint8), height, width)[..., None] > 0
                      for value in (mask, guided))  # fmt: skip
    orange, blue = (
        (picture * 0.25 + np.array(tint)).astype(np.uint8) for tint in ([150, 75, 0], [20, 45, 90])
    )
    return np.where(chosen, orange, np.where(masked, blue, picture))


def heat(
    scores: Float[Tensor, " L"], grid: tuple[int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """Ranks of the scores as colours, one square per patch."""
    values, ranks = np.unique(scores.numpy(), return_inverse=True)  # equal scores share a colour
    ranks = ranks / max(len(values) - 1, 1)
    colours = (colormaps["viridis"](ranks.reshape(grid))[..., :3] * 255).astype(np.uint8)
    return _enlarge(colours, *size)


def _enlarge(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)

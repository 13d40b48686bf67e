"""Splits images into patches and back, averages them over a grid, and finds the patches that a mask leaves visible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ahm_gym.errors import InputError


def image_size_of(sizes: int | tuple[int, ...], axes: int = 2) -> tuple[int, ...]:
    """The length of each axis in pixels: height and width; of a volume to the right, forwards and upwards.

    Args:
        sizes: one number for all axes, or one for each.
        axes: 2 for images, 3 for volumes.

    Raises:
        InputError: if there is another number of them, or one is below 1.
    """
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if len(sizes) not in (1, axes) or min(sizes) < 1:
        each = "height and width" if axes == 2 else "lengths to the right, forwards and upwards"
        shape = "a square" if axes == 2 else "a cube"
        raise InputError(
            f"image size {' '.join(map(str, sizes))}: give one number for {shape}, or {each}, in pixels"
            + ("; three numbers go with `volumes`." if axes == 2 and len(sizes) == 3 else ".")
        )
    return sizes * axes if len(sizes) == 1 else sizes


def by(sizes: Sequence[int]) -> str:
    """Lengths as they are written: 64x48."""
    return "x".join(map(str, sizes))


def grid_of(image_size: tuple[int, ...], patch_size: int) -> tuple[int, ...]:
    """The number of patches along each axis of an image or volume of `image_size` pixels.

    Raises:
        InputError: if the patch size does not divide the image size.
    """
    if not 1 <= patch_size <= min(image_size):
        raise InputError(
            f"patch size {patch_size} does not fit the image size {by(image_size)}: choose a patch size from 1 to "
            f"{min(image_size)} pixels."
        )
    if any(length % patch_size for length in image_size):
        raise InputError(
            f"patch size {patch_size} does not divide the image size {by(image_size)}: "
            f"choose an image size that is a multiple of {patch_size}, or another patch size."
        )
    return tuple(length // patch_size for length in image_size)


def patchify(images: Float[Tensor, "B C *S"], patch_size: int) -> Float[Tensor, "B L P"]:
    """The patches in reading order; the P values of a patch are ordered by its axes, and then by channel."""
    grid = grid_of(tuple(images.shape[2:]), patch_size)
    axes = len(grid)
    patches = images.reshape(*images.shape[:2], *(size for number in grid for size in (number, patch_size)))
    places, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return patches.permute(0, *places, *inside, 1).reshape(images.shape[0], math.prod(grid), -1)


def unpatchify(
    patches: Float[Tensor, "B L P"], grid: tuple[int, ...], patch_size: int
) -> Float[Tensor, "B C *S"]:
    """The images that consist of these patches: the inverse of `patchify`."""
    axes = len(grid)
    images = patches.reshape(patches.shape[0], *grid, *(patch_size,) * axes, -1)
    paired = (axis for place in range(1, 1 + axes) for axis in (place, place + axes))
    size = (number * patch_size for number in grid)
    return images.permute(0, 1 + 2 * axes, *paired).reshape(patches.shape[0], -1, *size)


def pooled(images: Float[Tensor, "B C *S"], size: tuple[int, ...]) -> Float[Tensor, "B C *S2"]:
    """The means of the images or volumes over the cells of a grid of this size."""
    pool: Any = functional.adaptive_avg_pool2d if len(size) == 2 else functional.adaptive_avg_pool3d
    return pool(images, size)


def visible_indices(mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B V"]:
    """Indices of the visible patches of every image, ascending; waits for the GPU if the mask is on one.

    Raises:
        InputError: if the images differ in their number of masked patches, or all or none of the patches are masked.
    """
    counts = mask.sum(dim=1)
    masked = int(counts[0])
    if not bool((counts == masked).all()) or not 0 < masked < mask.shape[1]:
        raise InputError(
            f"the mask hides {int(counts.min())} to {int(counts.max())} of {mask.shape[1]} patches: mask the same "
            "number in every image, at least one, and leave at least one visible; see mask_top_k."
        )
    return (~mask).nonzero()[:, 1].unflatten(0, (len(mask), mask.shape[1] - masked))

"""Splits images into patches and back, and finds the patches that a mask leaves visible."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.errors import InputError


def image_size_of(sizes: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width in pixels, from one number (a square) or two.

    Raises:
        InputError: if there are more or fewer numbers, or one is below 1.
    """
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise InputError(
            f"image size {' '.join(map(str, sizes))}: give one number for a square, or height and width, in pixels."
        )
    return sizes[0], sizes[-1]


def grid_of(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of `image_size` (height and width in pixels).

    Raises:
        InputError: if the patch size does not divide the image size.
    """
    height, width = image_size
    if not 1 <= patch_size <= min(height, width):
        raise InputError(
            f"patch size {patch_size} does not fit the image size {height}x{width}: choose a patch size from 1 to "
            f"{min(height, width)} pixels."
        )
    if height % patch_size or width % patch_size:
        raise InputError(
            f"patch size {patch_size} does not divide the image size {height}x{width}: "
            f"choose an image size that is a multiple of {patch_size}, or another patch size."
        )
    return height // patch_size, width // patch_size


def patchify(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B L P"]:
    """The patches in reading order; the P values of a patch are ordered by row, column and channel."""
    rows, columns = grid_of((images.shape[2], images.shape[3]), patch_size)
    patches = images.unflatten(2, (rows, patch_size)).unflatten(4, (columns, patch_size))
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(images.shape[0], rows * columns, -1)


def unpatchify(
    patches: Float[Tensor, "B L P"], grid: tuple[int, int], patch_size: int
) -> Float[Tensor, "B C H W"]:
    """The images that consist of these patches: the inverse of `patchify`."""
    rows, columns = grid
    images = patches.reshape(patches.shape[0], rows, columns, patch_size, patch_size, -1)
    return images.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


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

"""Fits weights to another grid, patch size or number of channels, along any number of axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.models import adapt_input_conv
from torch import Tensor
from torch.nn import functional


def adapt_channels(weight: Float[Tensor, "D C *S"], channels: int) -> Float[Tensor, "D _ *S"]:
    """The weights of a first convolution for another number of image channels, as timm converts them."""
    if weight.shape[1] == channels:
        return weight
    flat = weight.flatten(3)  # timm knows rows and columns only
    adapted = adapt_input_conv(channels, flat, base_chans=weight.shape[1])
    return adapted.reshape(weight.shape[0], channels, *weight.shape[2:])


def resample_positions(
    embedding: Float[Tensor, "1 L D"], old: tuple[int, ...], new: tuple[int, ...]
) -> Float[Tensor, "1 _ D"]:
    """A position embedding without prefix tokens for the grid `new`, made from that of the grid `old`.

    The values are resized as images are, by a bicubic, antialiased filter along each axis.
    """
    if old == new:
        return embedding
    grid = embedding[0].T.unflatten(1, old)
    resized = _along_axes(grid, [_resizing(*sizes) for sizes in zip(old, new, strict=True)])
    return resized.flatten(1).T[None].to(embedding.dtype)


def resample_kernel(weight: Float[Tensor, "D C *S"], side: int) -> Float[Tensor, "D C *_"]:
    """The weights of a patch embedding for another patch size, with nearly the same result for resized patches.

    By the pseudoinverse of the resize, after FlexiViT (Beyer et al., CVPR 2023).

    Args:
        weight: a convolution as large as a patch.
        side: side of the new patch in pixels.
    """
    sides = weight.shape[2:]
    if set(sides) == {side}:
        return weight
    matrices = [torch.linalg.pinv(_resizing(length, side).T) for length in sides]
    return _along_axes(weight, matrices).to(weight.dtype)


def _resizing(old: int, new: int) -> Float[Tensor, "n m"]:
    """The matrix by which a bicubic, antialiased resize makes `new` values of `old` ones."""
    columns = torch.eye(old)[None, None]
    return functional.interpolate(columns, size=(new, old), mode="bicubic", antialias=True)[0, 0]


def _along_axes(values: Float[Tensor, "*S"], matrices: Sequence[Float[Tensor, "_ _"]]) -> Float[Tensor, "*T"]:
    """The values with each matrix applied along one of the last axes."""
    values = values.float()
    for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
        values = (values.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return values

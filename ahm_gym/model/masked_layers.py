"""Convolutions and norms that skip hidden pixels, for masked pretraining of convolutional networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Visibility:
    """Which pixels the layers of a network may use; while it is not set, they use all of them.

    After "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (SparK, Tian et al.,
    ICLR 2023). A pixel of a coarse map is visible if any pixel of the image below it is.
    """

    def __init__(self) -> None:
        self._pixels: Tensor | None = None
        self._levels: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def of(self, pixels: Float[Tensor, "B 1 H W"]) -> Iterator[None]:
        """A context in which only these pixels are visible: 1 where visible, 0 where hidden."""
        self._pixels, self._levels = pixels, {}
        try:
            yield
        finally:
            self._pixels, self._levels = None, {}

    def at(self, size: tuple[int, ...]) -> Float[Tensor, "B 1 h w"] | None:
        """The visible pixels of a map of this size, whose sides divide those of the image; None if not set."""
        if self._pixels is None:
            return None
        if size not in self._levels:
            self._levels[size] = functional.adaptive_max_pool2d(self._pixels, size)
        return self._levels[size]


class MaskedConv2d(nn.Conv2d):
    """A convolution whose result is 0 in hidden pixels; with zeros there in its input, it also ignores them."""

    visibility: Visibility

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        maps = super().forward(input)
        visible = self.visibility.at(_size(maps))
        return maps if visible is None else maps * visible.to(maps.dtype)


class MaskedInstanceNorm2d(nn.InstanceNorm2d):
    """An instance norm with the mean and the variance of the visible pixels; its result is 0 in hidden ones."""

    visibility: Visibility

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        visible = self.visibility.at(_size(input))
        if visible is None:
            return super().forward(input)
        maps = input.float()
        count = visible.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
        mean = (maps * visible).sum(dim=(2, 3), keepdim=True) / count
        centred = (maps - mean) * visible
        variance = centred.square().sum(dim=(2, 3), keepdim=True) / count
        maps = centred * (variance + self.eps).rsqrt()
        if self.affine:
            maps = torch.addcmul(self.bias[:, None, None], maps, self.weight[:, None, None]) * visible
        return maps.to(input.dtype)


MASKED: dict[type[nn.Module], type[MaskedConv2d] | type[MaskedInstanceNorm2d]] = {
    nn.Conv2d: MaskedConv2d,
    nn.InstanceNorm2d: MaskedInstanceNorm2d,
}


def make_maskable(*modules: nn.Module) -> Visibility:
    """Lets the convolutions and instance norms in these modules skip hidden pixels, and returns what hides them.

    Their weights, the names of those, and their results without hidden pixels stay the same.
    """
    visibility = Visibility()
    for layer in (layer for module in modules for layer in module.modules()):
        if type(layer) in MASKED:
            layer.__class__ = MASKED[type(layer)]
            cast("MaskedConv2d | MaskedInstanceNorm2d", layer).visibility = visibility
    return visibility


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[2], maps.shape[3]

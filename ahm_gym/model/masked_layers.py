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
    def of(self, pixels: Float[Tensor, "B 1 *S"]) -> Iterator[None]:
        """A context in which only these pixels are visible: 1 where visible, 0 where hidden."""
        self._pixels, self._levels = pixels, {}
        try:
            yield
        finally:
            self._pixels, self._levels = None, {}

    def at(self, size: tuple[int, ...]) -> Float[Tensor, "B 1 *s"] | None:
        """The visible pixels of a map of this size, whose sides divide those of the image; None if not set."""
        if self._pixels is None:
            return None
        if size not in self._levels:
            pool = {2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}[len(size)]
            self._levels[size] = pool(self._pixels, size)
        return self._levels[size]


class MaskedConv(nn.Module):
    """What a masked convolution adds to one of any number of axes."""

    visibility: Visibility

    def forward(self, input: Float[Tensor, "B C *S"]) -> Float[Tensor, "B D *s"]:
        maps = super().forward(input)
        visible = self.visibility.at(tuple(maps.shape[2:]))
        return maps if visible is None else maps * visible.to(maps.dtype)


class MaskedConv2d(MaskedConv, nn.Conv2d):
    """A convolution whose result is 0 in hidden pixels; with zeros there in its input, it also ignores them."""


class MaskedConv3d(MaskedConv, nn.Conv3d):
    """The same for volumes."""


class MaskedInstanceNorm(nn.Module):
    """What a masked instance norm adds to one of any number of axes."""

    visibility: Visibility
    eps: float
    affine: bool
    weight: Tensor
    bias: Tensor

    def forward(self, input: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
        visible = self.visibility.at(tuple(input.shape[2:]))
        if visible is None:
            return super().forward(input)
        maps = input.float()
        axes = tuple(range(2, input.dim()))
        count = visible.sum(dim=axes, keepdim=True).clamp(min=1.0)
        mean = (maps * visible).sum(dim=axes, keepdim=True) / count
        centred = (maps - mean) * visible
        variance = centred.square().sum(dim=axes, keepdim=True) / count
        maps = centred * (variance + self.eps).rsqrt()
        if self.affine:
            bias, weight = (value.view(-1, *[1] * len(axes)) for value in (self.bias, self.weight))
            maps = torch.addcmul(bias, maps, weight) * visible
        return maps.to(input.dtype)


class MaskedInstanceNorm2d(MaskedInstanceNorm, nn.InstanceNorm2d):
    """An instance norm with the mean and the variance of the visible pixels; its result is 0 in hidden ones."""


class MaskedInstanceNorm3d(MaskedInstanceNorm, nn.InstanceNorm3d):
    """The same for volumes."""


MASKED: dict[type[nn.Module], type[MaskedConv] | type[MaskedInstanceNorm]] = {
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
    nn.InstanceNorm2d: MaskedInstanceNorm2d,
    nn.InstanceNorm3d: MaskedInstanceNorm3d,
}


def make_maskable(*modules: nn.Module) -> Visibility:
    """Lets the convolutions and instance norms in these modules skip hidden pixels, and returns what hides them.

    Their weights, the names of those, and their results without hidden pixels stay the same.
    """
    visibility = Visibility()
    for layer in (layer for module in modules for layer in module.modules()):
        if type(layer) in MASKED:
            layer.__class__ = MASKED[type(layer)]
            cast("MaskedConv | MaskedInstanceNorm", layer).visibility = visibility
    return visibility

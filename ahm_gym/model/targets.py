"""What an autoencoder learns to predict for each patch."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ahm_gym.errors import InputError, unknown_name
from ahm_gym.model.patches import patchify

TARGETS: tuple[str, ...] = ("pixels", "normalised", "hog", "latent")
"""pixels: the raw pixels. normalised: with zero mean and unit variance in each patch, as in He et al. (CVPR 2022).
hog: histograms of oriented gradients, as in MaskFeat. latent: the raw pixels, and beside them the features of a
teacher, which are a task of their own (`ahm_gym.model.latent`)."""


class Target:
    """What is predicted for every patch: a map is computed from the image, and each patch has its own part of it."""

    name: str
    """One of `TARGETS`."""
    shows_pixels: bool
    """Whether a prediction can be shown as an image."""
    cell: int
    """Side, in pixels of the image, of a position of the map."""
    channels: int
    """Number of channels of the map."""

    def of(self, images: Float[Tensor, "B C *S"], patches: Float[Tensor, "B L P"]) -> Float[Tensor, "B L T"]:
        """The targets of these images, whose patches are given too; ordered by row, column and channel."""
        raise NotImplementedError

    def to_pixels(
        self, prediction: Float[Tensor, "B L T"], patches: Float[Tensor, "B L P"]
    ) -> Float[Tensor, "B L P"]:
        """Predictions in the scale of the pixels; for targets without pixels, what an unknown patch looks like."""
        raise NotImplementedError


class PixelTarget(Target):
    """The pixels of a patch, raw or standardised by its own mean and variance.

    The standardised pixels are the normalised target of He et al. ("Masked Autoencoders Are Scalable Vision
    Learners", CVPR 2022).

    Args:
        channels: number of image channels.
        normalise: whether to standardise each patch to zero mean and unit (unbiased) variance.
        name: one of `TARGETS`; None: normalised or pixels.
    """

    def __init__(self, channels: int, *, normalise: bool = False, name: str | None = None) -> None:
        self.name: str = name or ("normalised" if normalise else "pixels")
        self.shows_pixels: bool = True
        self.cell: int = 1
        self.channels: int = channels
        self.normalise: bool = normalise

    def of(self, images: Float[Tensor, "B C *S"], patches: Float[Tensor, "B L P"]) -> Float[Tensor, "B L P"]:
        """The targets of these patches."""
        if not self.normalise:
            return patches
        mean, deviation = _statistics(patches)
        return (patches - mean) / deviation

    def to_pixels(
        self, prediction: Float[Tensor, "B L P"], patches: Float[Tensor, "B L P"]
    ) -> Float[Tensor, "B L P"]:
        """Predictions of these patches in the scale of their pixels: the inverse of `of`."""
        if not self.normalise:
            return prediction
        mean, deviation = _statistics(patches)
        return prediction * deviation + mean


BINS: int = 9
"""Number of orientations of a histogram, over half a turn."""


class HogTarget(Target):
    """Histograms of oriented gradients in cells of each patch: edges and their directions, without brightness.

    After "Masked Feature Prediction for Self-Supervised Visual Pre-Training" (MaskFeat, Wei et al., CVPR 2022). Each
    channel has its own histograms, with every gradient counted by its size, and unit length.

    Args:
        channels: number of image channels.
        patch_size: side of a patch in pixels; a patch has 2 by 2 cells, or one if the side is odd.
    """

    def __init__(self, channels: int, patch_size: int) -> None:
        self.name: str = "hog"
        self.shows_pixels: bool = False
        self.cell: int = patch_size if patch_size % 2 else patch_size // 2
        self.channels: int = BINS * channels
        self.patch_size: int = patch_size

    def of(self, images: Float[Tensor, "B C *S"], patches: Float[Tensor, "B L P"]) -> Float[Tensor, "B L T"]:
        """The histograms of these images; gradients use the pixels around a patch too."""
        padded = functional.pad(images.float(), (1, 1, 1, 1), mode="replicate")
        across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        size = (across.square() + down.square()).sqrt()
        bins = (torch.atan2(down, across) / math.pi * BINS).floor().long() % BINS  # B C H W
        counted = torch.zeros(*bins.shape, BINS, device=size.device).scatter_(
            -1, bins[..., None], size[..., None]
        )
        cells = functional.avg_pool2d(counted.permute(0, 1, 4, 2, 3).flatten(0, 1), self.cell)  # B*C BINS h w
        histograms = functional.normalize(cells, dim=1).unflatten(0, bins.shape[:2]).flatten(1, 2)
        return patchify(histograms, self.patch_size // self.cell)

    def to_pixels(
        self, prediction: Float[Tensor, "B L T"], patches: Float[Tensor, "B L P"]
    ) -> Float[Tensor, "B L P"]:
        """Zeros, the mean of normalised images: a histogram cannot be shown as pixels."""
        return torch.zeros_like(patches)


def make_target(name: str, channels: int, patch_size: int, axes: int = 2) -> Target:
    """The target with this name for images with `channels` channels, or volumes, which have three axes.

    Raises:
        InputError: if the name is unknown, a patch of one pixel has no gradients to count, or the target has no form
            for volumes.
    """
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    if name != "hog":
        return PixelTarget(channels, normalise=name == "normalised", name=name)
    if axes != 2:
        raise InputError("`target=hog` knows images and no volumes: choose pixels, normalised or latent.")
    if patch_size < 2:
        raise InputError("`target=hog` needs patches of at least 2 pixels: choose a larger `patch_size`.")
    return HogTarget(channels, patch_size)


def _statistics(patches: Float[Tensor, "B L P"]) -> tuple[Float[Tensor, "B L 1"], Float[Tensor, "B L 1"]]:
    """Mean and standard deviation of each patch; the deviation is never 0."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()

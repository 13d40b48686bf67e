"""What an autoencoder learns to predict for each patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PixelTarget:
    """The pixels of a patch, raw or standardised by its own mean and variance.

    The standardised pixels are the normalised target of He et al. ("Masked Autoencoders Are Scalable Vision
    Learners", CVPR 2022).
    """

    normalise: bool = False
    """Whether to standardise each patch to zero mean and unit (unbiased) variance."""

    def of(self, patches: Float[Tensor, "B L P"]) -> Float[Tensor, "B L P"]:
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


def _statistics(patches: Float[Tensor, "B L P"]) -> tuple[Float[Tensor, "B L 1"], Float[Tensor, "B L 1"]]:
    """Mean and standard deviation of each patch; the deviation is never 0."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()

"""The task of `target=latent`: features of hidden patches, as a slow average of the encoder sees them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.moving_average import MovingAverage

PIXEL_WEIGHT: float = 0.5
"""Weight of the error of the pixels, beside that of the features."""


class LatentTask(nn.Module):
    """Predicts the features that a teacher, a moving average of the encoder, gives each patch of the whole image.

    After "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language" (Baevski et al.,
    ICML 2022) and "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture" (I-JEPA,
    Assran et al., CVPR 2023). The features are `patch_features` of the teacher: of a vision transformer those of the
    last block, as in I-JEPA (data2vec averages several blocks); of a U-Net its feature map, averaged over each patch.
    Each vector is normalised to zero mean and unit variance, as in both papers. The teacher's momentum rises linearly
    from 0.996 to 1, and warms up (see `MovingAverage`).

    Unlike in the papers, the error is the mean square, and half the error of the pixels is added, so that the features
    cannot collapse to something that is easy to predict. The decoder predicts both, by two linear maps.

    The teacher is part of the autoencoder's state, is never trained, and is not exported. It sees the whole image, and
    only the loss sees what it returns: the predictions do not depend on hidden pixels.

    Args:
        encoder: the encoder to follow.
        head: linear map from what the decoder returns to the features of the patches.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.head: nn.Module = head
        self.average: MovingAverage[nn.Module] = MovingAverage(encoder, start=0.996, end=1.0)
        self.teacher: nn.Module = self.average.network

    @torch.no_grad()
    def target(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """The normalised features of all patches of these images."""
        features = as_encoder(self.teacher).patch_features(images).float()
        return functional.layer_norm(features, features.shape[-1:])

    def restart(self) -> None:
        """Makes the teacher equal to the encoder, whose weights were replaced."""
        self.teacher.load_state_dict(self.average.followed.state_dict())

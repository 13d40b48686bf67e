"""Masks from a prediction of which patches are hard."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ahm_gym.device import ranks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import Ramp, Share
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.encoders import as_encoder
from ahm_gym.model.moving_average import MovingAverage
from ahm_gym.policies.base import MaskPolicy
from ahm_gym.policies.scorer import PatchScorer, TrainedScorer


class HardPatchesPolicy(MaskPolicy):
    """Masks the patches with the highest predicted loss.

    HPM (Wang et al., "Hard Patches Mining for Masked Image Modeling", CVPR 2023). A predictor learns
    which of two masked patches has the larger loss, by binary cross-entropy over all pairs; only the order
    matters, so the fall of the loss during training does not. Scores come from an average of the predictor,
    whose input is the whole image as encoded by an average of the encoder. The share of guided patches rises
    linearly from 0 to 0.5.

    Unlike in the paper, the predictor learns from detached features: only `Pretrainer.step` updates an
    autoencoder, so predicting the order of losses is not a second task of the encoder. Since no gradient
    reaches the encoder, the predictor learns from the features with which it also scores, those of the whole
    image by the averaged encoder; in the paper it follows the student, on the masked image. The momentum
    warms up (see `MovingAverage`).
    """

    guided_fraction: Share = Ramp(first=0.0, last=0.5, start=0.0, end=1.0)

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__(autoencoder)
        self.encoder: MovingAverage[nn.Module] = MovingAverage(autoencoder.encoder)
        blank = torch.zeros(1, autoencoder.channels, *autoencoder.image_size, device=autoencoder.device)
        self.scorer: TrainedScorer = TrainedScorer(autoencoder, self._features(blank).shape[2])
        self.predictor: MovingAverage[PatchScorer] = MovingAverage(self.scorer.network)
        self._seen: tuple[PatchBatch, Tensor] | None = None

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        features = self._features(patches.images)
        self._seen = (patches, features)  # observe() needs the same features next
        with torch.no_grad():
            return self.predictor.network(features)

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        seen, self._seen = self._seen, None
        features = seen[1] if seen and seen[0] is patches else self._features(patches.images)
        with torch.enable_grad():
            predicted = self.scorer.network.train()(features)
            mask, patch_loss = masks.masked.to(predicted.device), patch_loss.to(predicted.device)
            loss, accuracy = rank_loss(predicted, patch_loss, mask)
            self.scorer.step(loss)
        self.predictor.follow(patches.progress)
        self.encoder.follow(patches.progress)
        return {"policy/rank_loss": loss.item(), "policy/rank_accuracy": accuracy.item()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "scorer": self.scorer.state_dict(),
            "predictor": self.predictor.state_dict(),
            "encoder": self.encoder.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scorer.load_state_dict(state["scorer"])
        self.predictor.load_state_dict(state["predictor"])
        self.encoder.load_state_dict(state["encoder"])

    @torch.no_grad()
    def _features(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        with self.autoencoder.autocast():
            features = as_encoder(self.encoder.network).patch_features
            return ranks.mapped(lambda images: features(images).float(), images)


def rank_loss(
    predicted: Float[Tensor, "B L"], patch_loss: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Binary cross-entropy of "i is harder than j", and the share of pairs in the right order.

    Means over all pairs of masked patches of an image whose losses differ.
    """
    num_masked = int(mask[0].sum())
    masked = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :num_masked]
    predicted, patch_loss = predicted.gather(1, masked), patch_loss.gather(1, masked)
    harder = patch_loss[:, :, None] > patch_loss[:, None, :]  # B M M
    lead = predicted[:, :, None] - predicted[:, None, :]
    count = harder.sum().clamp(min=1)
    # Each pair counts once, as (harder, easier): the reverse pair would give the same term.
    loss = (functional.softplus(-lead) * harder).sum() / count
    return loss, ((lead > 0) & harder).sum() / count

"""Masks from a network that first helps the autoencoder and later opposes it."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.policies.base import MaskPolicy
from ahm_gym.policies.scorer import TrainedScorer


class CurriculumPolicy(MaskPolicy):
    """Masks easy patches at first and hard ones at the end.

    CL-MAE (Madan et al., "CL-MAE: Curriculum-Learned Masked Autoencoders", WACV 2024). A mask network
    minimises the sum of three terms: the reconstruction loss times a factor that falls from 1 (a partner of
    the autoencoder) to -1 (its adversary), the divergence of its mask ratio from the target, and a term that
    keeps masks diverse.

    Unlike in the paper, masks are binary and hold an exact number of patches, so no gradient flows through
    the autoencoder: the network learns by the score-function estimator instead. Its model is that each patch
    is masked independently with probability sigmoid(logit). Sorting logits plus logistic noise masks the exact
    number; it corresponds to that model once a common shift of the logits gives the target mean (see
    `calibrated`). Since this fixes the ratio of an image, the divergence is computed patch by patch: no patch
    becomes so improbable that its loss is never seen again, so that the network can change direction.
    Diversity is measured between the images of a batch, whose probabilities should not overlap.
    """

    kl_coef: float = 0.5
    """Weight of the divergence."""
    diversity_coef: float = 1.0
    """Weight of the overlap between images."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.scorer: TrainedScorer = TrainedScorer(autoencoder, autoencoder.dim)

    @torch.no_grad()
    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        logits = self.scorer.network(patches.embeddings)
        uniform = random_scores((logits.shape[0], logits.shape[1]), generator, logits.device)
        return logits + uniform.clamp(1e-6, 1 - 1e-6).logit()

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        factor = curriculum_factor(patches.progress)
        with torch.enable_grad():
            logits = self.scorer.network.train()(patches.embeddings.detach())
            mask, patch_loss = masks.masked.to(logits.device), patch_loss.to(logits.device)
            logits = calibrated(logits, patches.mask_ratio)
            loss = reconstruction_term(logits, patch_loss, mask, factor)
            overlap = overlap_term(logits.sigmoid())
            divergence = ratio_term(logits.sigmoid(), patches.mask_ratio)
            self.scorer.step(loss + self.kl_coef * divergence + self.diversity_coef * overlap)
        return {
            "policy/factor": factor,
            "policy/ratio_divergence": divergence.item(),
            "policy/overlap": overlap.item(),
        }

    def state_dict(self) -> dict[str, Any]:
        return self.scorer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scorer.load_state_dict(state)


def curriculum_factor(progress: float) -> float:
    """Falls linearly from 1, a partner of the autoencoder, to -1, its adversary."""
    return 1.0 - 2.0 * progress


def calibrated(logits: Float[Tensor, "B L"], mask_ratio: float) -> Float[Tensor, "B L"]:
    """The logits minus a shift, one per image, with which the mean of sigmoid(logit) is the mask ratio."""
    with torch.no_grad():
        low, high = logits.amin(dim=1, keepdim=True) - 12, logits.amax(dim=1, keepdim=True) + 12
        for _ in range(40):
            shift = (low + high) / 2
            too_many = (logits - shift).sigmoid().mean(dim=1, keepdim=True) > mask_ratio
            low, high = torch.where(too_many, shift, low), torch.where(too_many, high, shift)
        probability = (logits - shift).sigmoid()
        share = probability * (1 - probability)
        share = share / share.sum(dim=1, keepdim=True)
    # The shift depends on the logits, because the mean is fixed: its gradient, by the implicit function theorem.
    moved = (share * (logits - logits.detach())).sum(dim=1, keepdim=True)
    return logits - shift - moved


def reconstruction_term(
    logits: Float[Tensor, "B L"], patch_loss: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], factor: float
) -> Float[Tensor, ""]:
    """A term whose gradient is the score-function estimate of `factor` times the expected loss.

    The mean over its image is subtracted from the loss of a masked patch, because the probabilities of an image
    have a fixed sum. The result is divided by its deviation over the batch, because losses fall during training.
    """
    mean = (patch_loss * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    advantage = (patch_loss - mean) * mask
    scale = (advantage.square().sum() / mask.sum()).sqrt().clamp(min=1e-8)
    return factor * (advantage / scale * functional.logsigmoid(logits)).sum() / mask.sum()


def ratio_term(probability: Float[Tensor, "B L"], mask_ratio: float) -> Float[Tensor, ""]:
    """Mean KL divergence of a patch's masking probability from the mask ratio."""
    probability = probability.clamp(1e-6, 1 - 1e-6)
    masked = probability * (probability.log() - math.log(mask_ratio))
    shown = (1 - probability) * ((1 - probability).log() - math.log(1 - mask_ratio))
    return (masked + shown).mean()


def overlap_term(probability: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
    """Mean covariance over patches between two images' probabilities; 0 for a single image."""
    batch = probability.shape[0]
    centred = probability - probability.mean(dim=1, keepdim=True)
    products = centred @ centred.T / probability.shape[1]
    return (products.sum() - products.diagonal().sum()) / max(batch * (batch - 1), 1)

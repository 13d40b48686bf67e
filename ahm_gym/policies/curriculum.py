"""Masks by a network that first helps the autoencoder, and then opposes it."""

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
    minimises the reconstruction loss times a factor that falls from 1 (a partner of the autoencoder) over
    0 to -1 (its adversary), together with the divergence of its mask ratio from the wanted one, and a term
    that keeps masks diverse.

    Other than in the paper, masks are hard and hold an exact number of patches, so no gradient flows through
    the autoencoder: the network learns by the score function instead. A patch is masked by an independent
    coin of probability sigmoid(logit); sorting logits plus logistic noise masks the right number, as such
    coins do once a common shift gives them the wanted mean (see `calibrated`). As the ratio of an image
    holds by that, the divergence is taken patch by patch: no patch becomes so improbable that its loss is
    never seen again, and the network can turn round. Diversity is asked of the images of a batch, whose
    probabilities should not overlap.
    """

    kl_coef, diversity_coef = 0.5, 1.0

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.scorer = TrainedScorer(autoencoder, autoencoder.dim)

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
    """From 1, a partner of the autoencoder, linearly to -1, its adversary."""
    return 1.0 - 2.0 * progress


def calibrated(logits: Float[Tensor, "B L"], mask_ratio: float) -> Float[Tensor, "B L"]:
    """The logits less the shift, one an image, that gives their coins the mask ratio as mean probability."""
    with torch.no_grad():
        low, high = logits.amin(dim=1, keepdim=True) - 12, logits.amax(dim=1, keepdim=True) + 12
        for _ in range(40):
            shift = (low + high) / 2
            too_many = (logits - shift).sigmoid().mean(dim=1, keepdim=True) > mask_ratio
            low, high = torch.where(too_many, shift, low), torch.where(too_many, high, shift)
        probability = (logits - shift).sigmoid()
        share = probability * (1 - probability)
        share = share / share.sum(dim=1, keepdim=True)
    # The shift moves with the logits so that the mean stays: by the implicit function theorem.
    moved = (share * (logits - logits.detach())).sum(dim=1, keepdim=True)
    return logits - shift - moved


def reconstruction_term(
    logits: Float[Tensor, "B L"], patch_loss: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"], factor: float
) -> Float[Tensor, ""]:
    """What has the gradient of `factor` times the expected loss, as the score function estimates it.

    The loss of a masked patch counts against the mean over its image, as the probabilities of an image
    have a fixed sum, and in units of its deviation over the batch, as losses fall while training goes on.
    """
    mean = (patch_loss * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    advantage = (patch_loss - mean) * mask
    scale = (advantage.square().sum() / mask.sum()).sqrt().clamp(min=1e-8)
    return factor * (advantage / scale * functional.logsigmoid(logits)).sum() / mask.sum()


def ratio_term(probability: Float[Tensor, "B L"], mask_ratio: float) -> Float[Tensor, ""]:
    """Mean divergence of the coin of a patch from one of the wanted ratio."""
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

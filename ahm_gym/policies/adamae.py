"""Masks from a network that samples the visible patches."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.policies.base import MaskPolicy
from ahm_gym.policies.scorer import TrainedScorer


class AdaMAEPolicy(MaskPolicy):
    """Shows hard patches and masks the rest: a network samples the visible ones.

    AdaMAE (Bandara et al., "AdaMAE: Adaptive Masking for Efficient Spatiotemporal Learning with Masked
    Autoencoders", CVPR 2023). From the patch embeddings, the network predicts a categorical distribution over
    patches, from which the visible patches are drawn without replacement. It learns by policy gradient: a
    masked patch with a high loss becomes more probable, and so is shown more often. This is the opposite of
    masking hard patches.

    Sorting log-probabilities plus Gumbel noise draws without replacement, so the number of masked patches is
    exact. Unlike in the paper, patches come from an image, not from a video, and the embeddings are detached.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.scorer: TrainedScorer = TrainedScorer(autoencoder, autoencoder.dim)

    @torch.no_grad()
    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        log_prob = self.scorer.network(patches.embeddings).log_softmax(dim=1)
        return -(log_prob + gumbel_noise(log_prob, generator))

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        with torch.enable_grad():
            logits = self.scorer.network.train()(patches.embeddings.detach())
            loss = sampling_loss(logits, patch_loss.to(logits.device), masks.masked.to(logits.device))
            self.scorer.step(loss)
        return {"policy/entropy": relative_entropy(logits.detach())}

    def state_dict(self) -> dict[str, Any]:
        return self.scorer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scorer.load_state_dict(state)


def gumbel_noise(like: Float[Tensor, "B L"], generator: torch.Generator) -> Float[Tensor, "B L"]:
    """Finite Gumbel noise with the same shape and device."""
    uniform = random_scores((like.shape[0], like.shape[1]), generator, like.device)
    tiny = torch.finfo(uniform.dtype).tiny
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()


def sampling_loss(
    logits: Float[Tensor, "B L"], patch_loss: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]
) -> Float[Tensor, ""]:
    """Negative log-probability of the masked patches, weighted by their loss; mean over these patches."""
    return -(logits.log_softmax(dim=1) * patch_loss * mask).sum() / mask.sum()


def relative_entropy(logits: Float[Tensor, "B L"]) -> float:
    """Entropy of the distribution relative to the largest possible, 0 to 1; mean over images."""
    log_prob = logits.log_softmax(dim=1)
    entropy = -(log_prob.exp() * log_prob).sum(dim=1)
    return float(entropy.mean() / torch.tensor(float(logits.shape[1])).log())

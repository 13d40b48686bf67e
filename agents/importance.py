"""Importance weights: learning from what an earlier policy has drawn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.ordering import order_statistics


class Importance(NamedTuple):
    """How likely draws of an earlier policy are under the present one."""

    weight: Float[Tensor, " B"]
    """Weight of each image in the loss."""
    approx_kl: Float[Tensor, ""]
    """Kullback-Leibler divergence KL(earlier, present) per draw, estimated from the draws, in nats."""
    clipped: Float[Tensor, ""]
    """Share of the images with draws whose weight is clipped."""


def importance(
    logits: Float[Tensor, "T B L"],
    earlier: Float[Tensor, "T B L"],
    order: Int[Tensor, "T B L"],
    available: Bool[Tensor, "T B L"],
    chosen: Bool[Tensor, "T B L"],
    clip: float,
) -> Importance:
    """Importance weights of a rollout that an earlier policy drew: min(clip, p(draws) / p_earlier(draws)) per image.

    The ratio is the product over all draws of all steps of the rollout. Any loss of the rollout that is multiplied by
    it has, if nothing is clipped, exactly the expectation that it would have if the present policy had drawn: for each
    credit, if patches influence each other, and for any number of steps from the start of an episode. A product over
    the draws so far would vary less, but draws that come later change the reward of a patch, too. In episodes of one
    step this is V-trace (Espeholt et al., 2018): its policy gradient has this factor, and moving its value target to
    V + weight * (r - V) is a critic's error times the weight. V-trace leaves out the ratios of earlier steps.

    Args:
        logits: logits of the present policy.
        earlier: logits with which the orders were drawn.
        order: patch indices in the order in which they were drawn.
        available: True for patches that could be drawn.
        chosen: True for entries of the order that the environment masked by following it; those before are draws too.
        clip: largest weight; infinity does not clip. A smaller one varies less, and is more biased.
    """
    left = available.gather(2, order)
    drawn = (chosen.flip(2).cumsum(dim=2).flip(2) > 0) & left

    def log_prob(of: Float[Tensor, "T B L"]) -> Float[Tensor, "T B L"]:
        rows = of.detach().gather(2, order).flatten(0, 1)
        return order_statistics(rows, torch.zeros_like(rows), left.flatten(0, 1)).log_prob.reshape(of.shape)

    change = (log_prob(logits) - log_prob(earlier)).double() * drawn
    ratio = change.sum(dim=(0, 2)).exp()
    images = drawn.any(dim=2).any(dim=0)
    return Importance(
        ratio.clamp(max=clip).to(logits.dtype),
        ((change.expm1() - change).sum() / drawn.sum().clamp(min=1)).to(logits.dtype),
        ((ratio > clip) & images).sum() / images.sum().clamp(min=1),
    )

"""Ordered draws of patches without replacement (Plackett-Luce): the exact policy of a top-k choice."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.masking.selection import random_scores


def draw_order(
    logits: Float[Tensor, "B L"], available: Bool[Tensor, "B L"], uniform: Float[Tensor, "B L"]
) -> Int[Tensor, "B L"]:
    """Patch indices in the order in which they are drawn; unavailable patches come last.

    Sorting logits plus Gumbel noise is equivalent to drawing from the softmax over the remaining patches, one after
    another (Kool et al., "Stochastic Beams and Where to Find Them", 2019).

    Args:
        logits: logits of the patches.
        available: False for patches that cannot be drawn.
        uniform: random numbers from 0 to 1, which determine the draws.
    """
    uniform = uniform.clamp(1e-20, 1.0 - 1e-7)
    noisy = logits.detach() - (-uniform.log()).log()
    return noisy.masked_fill(~available, -torch.inf).argsort(dim=1, descending=True)


def draw_scores(
    logits: Float[Tensor, "B L"], available: Bool[Tensor, "B L"], generator: torch.Generator
) -> Float[Tensor, "B L"]:
    """The scores of an order drawn with this generator; see `draw_order` and `scores_of_order`."""
    uniform = random_scores((logits.shape[0], logits.shape[1]), generator, logits.device)
    return scores_of_order(draw_order(logits, available, uniform))


def scores_of_order(order: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Scores from 1 for the first patch of the order to -1 for the last."""
    ranks = torch.linspace(1.0, -1.0, order.shape[1], device=order.device).expand(order.shape)
    return torch.empty_like(ranks).scatter(1, order, ranks)


def order_statistics(
    logits: Float[Tensor, "B L"], values: Float[Tensor, "B L"], left: Bool[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Log-probability, entropy and expected value of each draw.

    All tensors are in the order of the draws: draw j is from the softmax over entries j, j+1, ...

    Args:
        logits: logits of the patches.
        values: values of the patches.
        left: False for patches that could not be drawn, which come last.
    """
    weights = _weights(logits, left)
    total = _suffix_sum(weights).clamp(min=1e-30)
    log_total = total.log() + _peak(logits)
    log_prob = logits - log_total
    entropy = log_total - _suffix_sum(weights * logits) / total
    expected = _suffix_sum(weights * values) / total
    return log_prob, entropy, expected


def _weights(logits: Float[Tensor, "B L"], left: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    return (logits - _peak(logits)).exp() * left


def _peak(logits: Float[Tensor, "B L"]) -> Float[Tensor, "B 1"]:
    return logits.detach().amax(dim=1, keepdim=True)


def _suffix_sum(values: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    return values.flip(1).cumsum(dim=1).flip(1)

"""Ordered draws of patches without replacement (Plackett-Luce): the exact policy of a top-k choice."""

from __future__ import annotations

from typing import NamedTuple

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


def complete_order(order: Int[Tensor, "B K"], available: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The K draws, then the available patches that were not drawn, then the unavailable ones, by their index."""
    ranks = order.shape[1] + (~available).to(order.dtype)
    drawn = torch.arange(order.shape[1], device=order.device).expand(order.shape)
    return ranks.scatter(1, order, drawn).argsort(dim=1, stable=True)


class OrderStatistics(NamedTuple):
    """What is known of each draw, in the order of the draws: draw j is from the softmax over entries j, j+1, ..."""

    log_prob: Float[Tensor, "B L"]
    """Log-probability of the draw."""
    entropy: Float[Tensor, "B L"]
    """Entropy of the draw, in nats."""
    expected: Float[Tensor, "B L"]
    """Expected value of the draw."""
    squares: Float[Tensor, "B L"]
    """Sum of the squared probabilities of the patches that could be drawn."""
    squares_value: Float[Tensor, "B L"]
    """The same sum, with each term times the value of the patch."""


def order_statistics(
    logits: Float[Tensor, "B L"], values: Float[Tensor, "B L"], left: Bool[Tensor, "B L"]
) -> OrderStatistics:
    """Statistics of each draw, computed in double precision, so that logits may differ by hundreds of nats.

    All tensors are in the order of the draws. Gradients reach the logits through `log_prob` and `entropy` alone.

    Args:
        logits: logits of the patches.
        values: values of the patches.
        left: False for patches that could not be drawn, which come last; their log-probability and entropy are 0.
    """
    exact = logits.double()
    peak = exact.detach().amax(dim=1, keepdim=True)
    weights = (exact - peak).exp() * left
    total = _suffix_sum(weights).clamp(min=1e-300)
    log_total = total.log() + peak
    entropy = log_total - _suffix_sum(weights * exact) / total
    certain = torch.zeros_like(exact)
    fixed, sums = weights.detach(), total.detach()
    statistics = (
        torch.where(left, exact - log_total, certain),
        torch.where(left, entropy, certain),
        _suffix_sum(fixed * values) / sums,
        _suffix_sum(fixed.square()) / sums / sums,
        _suffix_sum(fixed.square() * values) / sums / sums,
    )
    return OrderStatistics(*(value.to(logits.dtype) for value in statistics))


def _suffix_sum(values: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    return values.flip(1).cumsum(dim=1).flip(1)

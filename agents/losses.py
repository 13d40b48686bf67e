"""The loss of the actor-critic for one step of a batch of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.agents.ordering import OrderStatistics, order_statistics

CREDITS: tuple[str, ...] = ("local", "own", "image")
"""Whose reward a draw is credited with; see `step_loss`."""


class StepLoss(NamedTuple):
    """The parts of the loss of one step, each a scalar."""

    policy: Float[Tensor, ""]
    value: Float[Tensor, ""]
    entropy: Float[Tensor, ""]
    """Mean entropy of the draws, each given the draws before it, in nats."""
    relative_entropy: Float[Tensor, ""]
    """The same relative to the largest possible entropy, 0 to 1; only reported."""
    logit_square: Float[Tensor, ""]
    """Mean square of the logits of the patches that could be drawn."""


class Later(NamedTuple):
    """What follows a step in the same episode."""

    paid: Float[Tensor, " B"]
    """Return of the patches that are still drawn, without the part that only chance explains."""
    draws: Float[Tensor, " B"]
    """Number of these patches."""


def step_loss(
    output: ActorCriticOutput,
    order: Int[Tensor, "B L"],
    available: Bool[Tensor, "B L"],
    chosen: Bool[Tensor, "B L"],
    masked: Bool[Tensor, "B L"],
    patch_return: Float[Tensor, "B L"],
    image_return: Float[Tensor, " B"],
    credit: str,
    later: Later | None = None,
    weight: Float[Tensor, " B"] | None = None,
) -> tuple[StepLoss, Later]:
    """Policy loss, value loss, entropy and logit size of one step; policy loss and entropy are means over the draws.

    - Local credit pays draw j the returns of its own patch and of all patches drawn after it: what is drawn now cannot
      be drawn later. If patches do not influence each other's loss, the expected gradient is exactly that of the mean
      return of the guided patches; see `local_credit`.
    - Own credit pays draw j only the return of its own patch: A_j = r[i_j] - sum over l not yet drawn of p_j(l) V_l. It
      has less variance, and is wrong if many of the patches are drawn: the patch might have been drawn later anyway.
    - Image credit pays every draw the return R of the whole mask: the gradient is that of (R - V(s)) * log pi(order),
      unbiased also if patches influence each other.

    No baseline may be V of the drawn patch, which depends on the action: the gradient would vanish once the critic is
    exact.

    Args:
        output: output of the network for the state before the step.
        order: patch indices in the order in which they were drawn.
        available: True for patches that could be drawn.
        chosen: True for entries of the order that the environment masked by following it. The environment skips entries
            if their window must stay visible (`ahm_gym.masking.spread`); they are draws too, except for own credit.
            Entries after the last chosen one are not draws.
        masked: patches on which the critic is fitted, guided or random; none in images that were not paid.
        patch_return: return of each patch.
        image_return: return of the whole mask.
        credit: a name in `CREDITS`.
        later: what follows in the episode; None: nothing.
        weight: weight of each image in policy loss, value loss and entropy (`ahm_gym.agents.importance`); None: 1.

    Returns:
        The losses, and what follows the step before this one.
    """
    left = available.gather(1, order)
    values = output.values.detach().gather(1, order)
    draws = order_statistics(output.logits.gather(1, order), values, left)
    credits = credit_draws(
        draws,
        values,
        chosen,
        patch_return.gather(1, order),
        image_return - output.image_value.detach(),
        credit,
        later,
    )
    advantage, drawn, later = credits
    counted = chosen if credit == "local" else drawn
    count = counted.sum().clamp(min=1)
    weighted = drawn if weight is None else drawn * weight[:, None]
    losses = StepLoss(
        -(advantage.detach() * draws.log_prob * weighted).sum() / count,
        critic_loss(output, masked, patch_return, image_return, credit, weight),
        *sizes(output.logits, draws, left, available, drawn, weighted),
    )
    return losses, later


def critic_loss(
    output: ActorCriticOutput,
    masked: Bool[Tensor, "B L"],
    patch_return: Float[Tensor, "B L"],
    image_return: Float[Tensor, " B"],
    credit: str,
    weight: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the values of masked patches, and for image credit also of those of the whole masks.

    `weight` is that of each image; None: 1.
    """
    errors = (output.values - patch_return).square() * masked
    if weight is not None:
        errors = errors * weight[:, None]
    value = errors.sum() / masked.sum().clamp(min=1)
    if credit != "image":
        return value
    measured = masked.any(dim=1)
    error = (output.image_value - image_return).square() * measured
    if weight is not None:
        error = error * weight
    return value + error.sum() / measured.sum().clamp(min=1)


def sizes(
    logits: Float[Tensor, "B L"],
    draws: OrderStatistics,
    left: Bool[Tensor, "B L"],
    available: Bool[Tensor, "B L"],
    drawn: Bool[Tensor, "B L"],
    weighted: Tensor | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Entropy, relative entropy and logit size of `StepLoss`; draws, left and drawn are in the order of the draws.

    `weighted` (B, L) is the weight of each draw in the entropy; None: 1.
    """
    largest = left.flip(1).cumsum(dim=1).flip(1).clamp(min=2).log()
    count = drawn.sum().clamp(min=1)
    return (
        (draws.entropy * (drawn if weighted is None else weighted)).sum() / count,
        (draws.entropy.detach() / largest * drawn).sum() / count,
        (logits.square() * available).sum() / available.sum().clamp(min=1),
    )


class Credits(NamedTuple):
    """What each draw is credited with."""

    advantage: Float[Tensor, "B L"]
    drawn: Bool[Tensor, "B L"]
    """True for entries of the order that are draws."""
    later: Later
    """What follows the step before this one."""


def credit_draws(
    draws: OrderStatistics,
    values: Float[Tensor, "B L"],
    chosen: Bool[Tensor, "B L"],
    patch_return: Float[Tensor, "B L"],
    image_advantage: Float[Tensor, " B"],
    credit: str,
    later: Later | None = None,
) -> Credits:
    """The advantage of every draw; see `step_loss`. All arguments with L entries are in the order of the draws.

    Args:
        draws: statistics of the draws.
        values: value of each patch.
        chosen: True for draws that masked their patch.
        patch_return: return of each patch.
        image_advantage: return of the whole mask, less its value.
        credit: a name in `CREDITS`.
        later: what follows in the episode; None: nothing.
    """
    drawn = chosen if credit == "own" else chosen.flip(1).cumsum(dim=1).flip(1) > 0
    paid = patch_return * chosen
    later = later or Later(torch.zeros_like(image_advantage), torch.zeros_like(image_advantage))
    if credit == "local":
        advantage, later = local_credit(paid, values, chosen, drawn, draws, later)
    elif credit == "own":
        advantage = paid - draws.expected
    else:
        advantage = image_advantage[:, None].expand(chosen.shape)
    return Credits(advantage, drawn, later)


def mean_over_draws(losses: list[StepLoss], draws: Int[Tensor, " T"]) -> StepLoss:
    """The mean over the steps of an episode: of policy and entropy over the draws, of the rest over the steps."""
    policy, value, entropy, relative_entropy, logit_square = (
        torch.stack(parts) for parts in zip(*losses, strict=True)
    )
    share = draws / draws.sum().clamp(min=1)
    return StepLoss(
        (policy * share).sum(),
        value.mean(),
        (entropy * share).sum(),
        (relative_entropy * share).sum(),
        logit_square.mean(),
    )


def local_credit(
    paid: Float[Tensor, "B L"],
    values: Float[Tensor, "B L"],
    chosen: Bool[Tensor, "B L"],
    drawn: Bool[Tensor, "B L"],
    draws: OrderStatistics,
    later: Later,
) -> tuple[Float[Tensor, "B L"], Later]:
    """The advantage of each draw for the returns of its patch and of all patches drawn after it.

    The critic predicts what draw j brings with n draws after it, Q_j(i) = V_i + n (e_j + p_j(i) (e_j - V_i)), where e_j
    is the expected value of draw j: the later draws are worth about e_j each, and without patch i a little more or
    less. The baseline is the exact expectation of Q_j over the draw. Differences Q - E[Q] of later draws are zero in
    expectation whatever has been drawn, so subtracting them (control variates) changes no gradient; they take away
    what the critic can explain of the luck of later draws. With an exact critic little but the own draw is left.

    Args:
        paid: return of each chosen patch, 0 for others, in the order of the draws, as all arguments.
        values: value of each patch by the critic.
        chosen: True for draws that masked their patch.
        drawn: True for all draws.
        draws: statistics of the draws.
        later: what follows this step in the episode.

    Returns:
        The advantages, and what follows the step before this one.
    """
    counts = chosen.to(paid.dtype)
    before = counts.cumsum(dim=1) - counts
    total = counts.sum(dim=1)
    after = (total[:, None] - before - 1.0).clamp(min=0.0) + later.draws[:, None]
    expected = draws.expected
    predicted = values + after * (expected + draws.log_prob.detach().exp() * (expected - values))
    baseline = expected + after * (expected + expected * draws.squares - draws.squares_value)
    luck = (predicted - baseline) * drawn
    to_go = (paid - luck).flip(1).cumsum(dim=1).flip(1) + later.paid[:, None]
    return to_go + luck - baseline, Later(to_go[:, 0], total + later.draws)


def explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], counted: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Share of the variance of the counted returns that the values explain: 1 at best, 0 if all returns are equal."""
    count = counted.sum().clamp(min=1)

    def variance(numbers: Tensor) -> Tensor:
        mean = (numbers * counted).sum() / count
        return ((numbers - mean).square() * counted).sum() / count

    total = variance(returns)
    return torch.where(total > 0, 1.0 - variance(returns - values) / total.clamp(min=1e-30), 0.0)

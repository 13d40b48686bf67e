"""The loss of the actor-critic for one step of a batch of images."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.agents.ordering import order_statistics


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


def step_loss(
    output: ActorCriticOutput,
    order: Int[Tensor, "B L"],
    available: Bool[Tensor, "B L"],
    chosen: Bool[Tensor, "B L"],
    masked: Bool[Tensor, "B L"],
    patch_return: Float[Tensor, "B L"],
    image_return: Float[Tensor, " B"],
    credit: str,
) -> StepLoss:
    """Policy loss, value loss, entropy and logit size of one step; policy loss and entropy are means over the draws.

    Local credit pays draw j of patch i_j by the return of that patch. The advantage is
    A_j = r[i_j] - sum over l not yet drawn of p_j(l) V_l, so the baseline is the expected value of the draw. It must
    not be V of the drawn patch, which depends on the action: the gradient would vanish once the critic is exact.
    Local credit ignores that patches influence each other's loss.

    Image credit pays every draw by the return R of the whole mask: the gradient is that of (R - V(s)) * log pi(order)
    and unbiased.

    Args:
        output: output of the network for the state before the step.
        order: patch indices in the order in which they were drawn.
        available: True for patches that could be drawn.
        chosen: True for entries of the order that the environment masked by following it. The environment skips entries
            if their window must stay visible (`ahm_gym.masking.spread`); they are draws for image credit, but not for
            local credit. Entries after the last chosen one are not draws.
        masked: patches on which the critic is fitted, guided or random; none in images that were not paid.
        patch_return: return of each patch.
        image_return: return of the whole mask.
        credit: "local" or "image".
    """
    left = available.gather(1, order)
    values = output.values.detach().gather(1, order)
    log_prob, entropy, expected = order_statistics(output.logits.gather(1, order), values, left)
    if credit == "local":
        drawn = chosen
        advantage = patch_return.gather(1, order) - expected
    else:
        drawn = chosen.flip(1).cumsum(dim=1).flip(1) > 0
        advantage = (image_return - output.image_value.detach())[:, None].expand(order.shape)
    count = drawn.sum().clamp(min=1)
    value = ((output.values - patch_return).square() * masked).sum() / masked.sum().clamp(min=1)
    if credit == "image":
        paid = masked.any(dim=1)
        value = value + ((output.image_value - image_return).square() * paid).sum() / paid.sum().clamp(min=1)
    largest = left.flip(1).cumsum(dim=1).flip(1).clamp(min=2).log()
    return StepLoss(
        policy=-(advantage.detach() * log_prob * drawn).sum() / count,
        value=value,
        entropy=(entropy * drawn).sum() / count,
        relative_entropy=(entropy.detach() / largest * drawn).sum() / count,
        logit_square=(output.logits.square() * available).sum() / available.sum().clamp(min=1),
    )

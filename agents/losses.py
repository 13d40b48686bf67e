"""The loss of the actor-critic for one step of a batch of images."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.agents.ordering import order_statistics


class StepLoss(NamedTuple):
    policy: Float[Tensor, ""]
    value: Float[Tensor, ""]
    entropy: Float[Tensor, ""]
    """Mean entropy of the conditional draws, in nats."""
    relative_entropy: Float[Tensor, ""]
    """The same as a share of the largest possible, 0 to 1; for the eye."""
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
    """Policy loss, value loss, entropy and size of the logits; policy and entropy are means over the guided draws.

    With `credit="local"` draw j is paid A_j = r[i_j] - sum over l not yet drawn of p_j(l) V_l: the
    baseline is an expectation over what could be drawn. V of the drawn patch itself would depend on the
    action, and its gradient vanishes once the critic is right. Local credit ignores that patches
    influence each other's loss; `credit="image"`, (R - V(s)) * log pi(order), is unbiased.

    Args:
        output: of the network for the state before the draw.
        order: the drawn order of patches.
        available: patches that could be drawn.
        chosen: entries of the order that the environment masked because of it. It may pass some by, as with
            `spread`: with image credit these are draws too, with local credit they count for nothing. Entries behind
            the last chosen one are no draws.
        masked: patches on which the critic is fitted, guided or random; none of images that were not paid.
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

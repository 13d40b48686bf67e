"""Returns over a rollout, as a pure function of tensors whose first axis is time."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def lambda_returns(
    rewards: Float[Tensor, "T *shape"],
    values: Float[Tensor, "T *shape"],
    ended: Bool[Tensor, "T *shape"],
    bootstrap: Float[Tensor, "*shape"],
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
) -> Float[Tensor, "T *shape"]:
    """TD(lambda) returns: generalised advantage estimation (Schulman et al., 2016) plus the values.

    With `gae_lambda=1` these are the n-step returns of A3C (Mnih et al., 2016).

    Args:
        rewards: reward of each step.
        values: value of the state before each step.
        ended: True if the episode ended with the step; later rewards do not count.
        bootstrap: value of the state after the last step.
        gamma: discount per step, 0 to 1.
        gae_lambda: 0 bootstraps from the value after each step, 1 only from `bootstrap`.
    """
    returns = torch.empty_like(rewards)
    advantage = torch.zeros_like(bootstrap)
    next_value = bootstrap
    for step in reversed(range(len(rewards))):
        continues = (~ended[step]).to(rewards.dtype)
        td_error = rewards[step] + gamma * next_value * continues - values[step]
        advantage = td_error + gamma * gae_lambda * continues * advantage
        returns[step] = advantage + values[step]
        next_value = values[step]
    return returns


def scaled_returns(
    patch_reward: Float[Tensor, "T B L"],
    image_reward: Float[Tensor, "T B"],
    ended: Bool[Tensor, "T B"],
    values: Float[Tensor, "T B L"],
    image_values: Float[Tensor, "T B"],
    bootstrap: tuple[Float[Tensor, "B L"], Float[Tensor, " B"]],
    scale: Float[Tensor, ""],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "T B L"], Float[Tensor, "T B"]]:
    """The `lambda_returns` of every patch and of the whole masks, of rewards divided by `scale`."""
    options = {"gamma": gamma, "gae_lambda": gae_lambda}
    over = ended[..., None].expand(values.shape)
    return (
        lambda_returns(patch_reward / scale, values, over, bootstrap[0], **options),
        lambda_returns(image_reward / scale, image_values, ended, bootstrap[1], **options),
    )

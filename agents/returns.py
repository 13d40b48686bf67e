"""Returns over a rollout: pure functions of tensors whose first axis is time."""

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
        rewards: paid after the step.
        values: of the state before the step.
        ended: True where the episode ended with the step; nothing after it counts.
        bootstrap: value of the state after the last step.
        gamma: discount a step, 0 to 1.
        gae_lambda: 0 trusts the values after one step, 1 only the rewards.
    """
    returns = torch.empty_like(rewards)
    advantage = torch.zeros_like(bootstrap)
    following = bootstrap
    for step in reversed(range(len(rewards))):
        goes_on = (~ended[step]).to(rewards.dtype)
        surprise = rewards[step] + gamma * following * goes_on - values[step]
        advantage = surprise + gamma * gae_lambda * goes_on * advantage
        returns[step] = advantage + values[step]
        following = values[step]
    return returns

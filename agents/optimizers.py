"""The optimisers of A3C, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import ahm_gym._compat  # noqa: F401

import torch
from timm.optim import RMSpropTF
from torch import nn

DECAY: float = 0.99
"""Weight of the earlier squares in RMSProp's running mean of the squared gradients."""
EPSILON: float = 0.1
"""What RMSProp adds to this mean before the root is taken."""


def adam(parameters: Iterable[nn.Parameter], learning_rate: float, *, fused: bool) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, 2015); its fused form is for GPUs."""
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


def rmsprop(
    parameters: Iterable[nn.Parameter], learning_rate: float, *, fused: bool
) -> torch.optim.Optimizer:
    """RMSProp without momentum: g = 0.99 g + 0.01 d^2, then a step of -rate * d / sqrt(g + 0.1) for the gradient d.

    These are the equations of Mnih et al. (2016). They state no epsilon; 0.1 is usual in reproductions of their
    results. The running means g start at 0 and exist from the beginning, so that several workers can share them.

    Args:
        parameters: parameters of the network.
        learning_rate: learning rate.
        fused: has no effect.
    """
    optimizer = RMSpropTF(parameters, lr=learning_rate, alpha=DECAY, eps=EPSILON, momentum=0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "square_avg": torch.zeros_like(parameter),
            }
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": adam, "rmsprop": rmsprop}
"""Name -> function of the parameters, the learning rate, and whether they are on a GPU."""

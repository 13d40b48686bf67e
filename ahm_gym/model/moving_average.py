"""A slow average of a network that is being trained."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

import ahm_gym._compat  # noqa: F401

from timm.utils import ModelEmaV3
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class MovingAverage(Generic[Network]):
    """An exponential moving average of a network's weights (EMA): a teacher, or what is exported.

    The momentum rises linearly from `start` to `end` over pretraining, but is at most (1 + n) / (10 + n) after n
    updates. The papers train for hundreds of thousands of updates; in a short run, an average with momentum 0.999
    would still be the untrained network.

    Args:
        network: the network to follow, which never changes by this.
        start: momentum at the beginning of pretraining.
        end: momentum at the end of pretraining.
    """

    def __init__(self, network: Network, *, start: float = 0.999, end: float = 0.9999) -> None:
        self.followed: Network = network
        self._average = ModelEmaV3(network).requires_grad_(False)
        # For stochastic rounding, which is not used here; a generator cannot be sent to a worker process.
        self._average._sr_generator = None  # pyright: ignore[reportAttributeAccessIssue]
        self.start: float = start
        self.end: float = end
        self.updates: int = 0

    @property
    def network(self) -> Network:
        """The averaged network."""
        return cast(Network, self._average.module)

    def momentum(self, progress: float) -> float:
        """Share of its own weights that the average keeps in the next update."""
        planned = self.start + (self.end - self.start) * progress
        return min(planned, (1 + self.updates) / (10 + self.updates))

    def follow(self, progress: float, updates: int | None = None) -> None:
        """Moves the average towards the current network, in place.

        Args:
            progress: share of pretraining that is done, 0 to 1.
            updates: number of updates before this one, of all processes. None: as often as this was called.
        """
        if updates is not None:
            self.updates = updates
        self._average.decay = self.momentum(progress)
        self._average.update(self.followed)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]

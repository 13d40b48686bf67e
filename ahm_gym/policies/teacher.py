"""A teacher: a slow average of a network that is being trained."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

from jaxtyping import Float
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.policies.base import MaskPolicy

Network = TypeVar("Network", bound=nn.Module)


class Teacher(Generic[Network]):
    """An exponential moving average of a network's weights, with which a policy scores.

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
        self.start: float = start
        self.end: float = end
        self.updates: int = 0

    @property
    def network(self) -> Network:
        """The averaged network."""
        return cast(Network, self._average.module)

    def momentum(self, progress: float) -> float:
        """Share of its own weights that the teacher keeps in the next update."""
        planned = self.start + (self.end - self.start) * progress
        return min(planned, (1 + self.updates) / (10 + self.updates))

    def follow(self, progress: float) -> None:
        """Moves the teacher towards the current network."""
        self._average.decay = self.momentum(progress)
        self._average.update(self.followed)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]


class TaughtPolicy(MaskPolicy):
    """Base class of mask policies whose only state is a teacher that follows the autoencoder."""

    teacher: Teacher[Any]

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        self.teacher.follow(patches.progress)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])

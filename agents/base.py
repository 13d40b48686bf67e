"""What the training loop asks of an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium.vector import VectorEnv
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.schedules import Ramp, Share

Metrics = dict[str, float]
Callback = Callable[[Metrics], bool]
"""Called after every update of the autoencoder with its metrics; True asks the agent to stop."""


@runtime_checkable
class Agent(Protocol):
    """A learner of masks in a vector environment.

    It may have shares of its own, `guided_fraction(progress)` and `spread_fraction(progress)`: see `shares_of`; and
    in `reward` the name of what pays it unless another is asked for, in place of relative. With `takes_tensors = True`
    the environment's observations are tensors on the device, without a way through main memory.
    """

    env_id: str
    """Id of the environment whose action form it wants."""

    def learn(
        self,
        make_env: Callable[[], VectorEnv],
        num_steps: int,
        *,
        seed: int | None,
        callback: Callback | None = None,
    ) -> None:
        """Acts and learns until the autoencoder had `num_steps` more updates.

        Args:
            make_env: gives an environment; called once in every worker.
            num_steps: updates of the autoencoder, over all workers.
            seed: of the agent's draws and the environment; None goes on with the loaded state.
            callback: called after every update.
        """
        ...

    def act(self, observation: Any, *, deterministic: bool) -> Float[Tensor, "B L"]:
        """One score a patch for a batch of observations (B, L, D)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values, nested: everything that an exact resume needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        ...


GUIDED_FALL = Ramp(first=0.5, last=0.0, start=0.0, end=0.5)
"""The share of guided patches that A3C has: half at first, none from the middle of training on.

Hard patches help early on, spread as `ahm_gym.masking.spread` has it; later they hold an autoencoder back, and
random masks teach more. docs/experiments.md has what was tried.
"""


def shares_of(agent: Any) -> tuple[Share, Share]:
    """The share of the masked patches that an agent chooses, and of the images that have spread masks.

    They are its own `guided_fraction(progress)` and `spread_fraction(progress)` where it has these. One that has
    none chooses half of the patches in spread masks throughout: many algorithms drift once nothing is paid for.
    """
    return getattr(agent, "guided_fraction", 0.5), getattr(agent, "spread_fraction", 1.0)


def update_metrics(info: dict[str, Any], reward: Any) -> Metrics:
    """Reconstruction loss (the weighted mean), share of the masked patches that was guided, and mean reward.

    The latter is of the images in which a choice was paid; it is missing where there are none.
    """
    mask, guided = np.asarray(info["mask"]), np.asarray(info["guided"])
    metrics = {
        "loss": float(np.average(np.asarray(info["patch_loss"])[mask], weights=weights_of(info)[mask])),
        "guided": float(guided.sum() / mask.sum()),
    }
    paid = paid_images(info) & guided.any(axis=1)
    return metrics | ({"reward": float(np.asarray(reward)[paid].mean())} if paid.any() else {})


def weights_of(info: dict[str, Any]) -> np.ndarray:
    """How much the patches (B, L) count in the loss; where the environment has no weights, every masked one 1."""
    return np.asarray(info.get("weight", info["mask"]), dtype=np.float32)


def paid_images(info: dict[str, Any]) -> np.ndarray:
    """The images (B,) whose reward was measured; all, where the environment says nothing of it."""
    return np.asarray(info.get("paid", np.ones(len(info["mask"]))), dtype=bool)

"""The base class of agents, and the metrics of an update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import Ramp, Share
from ahm_gym.masking.selection import PatchBatch

Metrics = dict[str, float]
MakeEnv = Callable[[], VectorEnv]
"""Makes an environment; called once in every worker."""
Callback = Callable[[Metrics], bool]
"""Called after every update of the autoencoder with its metrics; True asks the agent to stop."""


@runtime_checkable
class PausingCallback(Protocol):
    """A callback that finds all workers at rest at the updates that it names."""

    def __call__(self, metrics: Metrics) -> bool: ...

    def next_pause(self, done: int) -> int:
        """Updates of this call of `learn` after which all workers must rest, when `done` have been made."""
        ...


class Agent(ABC):
    """A learner of masks in a vector environment: the base class of every agent.

    A subclass has the four abstract methods, and overrides the attributes whose defaults do not fit. It is made as
    `cls(observation_shape, grid=..., seed=..., device=...)` from the patches L and width D of an observation.
    """

    env_id: str = "AHM/Masking-v0"
    """Id of the environment whose action form it takes."""
    guided_fraction: Share = 0.5
    """Share of the masked patches that it chooses, 0 to 1, or a function of training progress.

    The default is constant: many algorithms drift once nothing is paid for.
    """
    spread_fraction: Share = 1.0
    """Share of the images whose visible patches are spread over the grid (`ahm_gym.masking.spread`), likewise."""
    reward: str = "relative"
    """Name in `ahm_gym.envs.REWARDS` of what pays it unless another is asked for."""
    takes_tensors: bool = False
    """Whether observations are tensors on the device instead of arrays."""
    sees_pixels: bool = False
    """Whether observations are raw pixels, patch by patch: it is then given `channels`, and needs the U-Net."""
    resumes_exactly: bool = True
    """Whether its state holds everything that a bit-exact resume needs."""

    @abstractmethod
    def learn(
        self, make_env: MakeEnv, num_steps: int, *, seed: int | None, callback: Callback | None = None
    ) -> None:
        """Acts and learns until the autoencoder had `num_steps` more updates.

        Args:
            make_env: makes an environment; called once in every worker.
            num_steps: updates of the autoencoder, over all workers.
            seed: of the agent's draws and the environment; None goes on with the loaded state.
            callback: called right after every update, with at least `loss` and `reward`; see `update_metrics`.
        """

    @abstractmethod
    def act(self, observation: Any, *, deterministic: bool) -> Float[Tensor, "B L"]:
        """One score a patch for a batch of observations (B, L, D), arrays or tensors."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values, nested: everything that an exact resume needs."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""

    def score(self, patches: PatchBatch) -> Float[Tensor, "B L"]:
        """Scores for evaluation and pictures, without exploration; they change nothing."""
        return self.act(patches.embeddings, deterministic=True)

    def weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Float[Tensor, "B L"]:
        """How much each patch counts in the loss, 0 on visible ones (default: every masked patch 1)."""
        return masks.weight


def sees_pixels(make_agent: Any) -> bool:
    """Whether this is the class of an agent that sees raw pixels; a function that makes agents never is."""
    return isinstance(make_agent, type) and issubclass(make_agent, Agent) and make_agent.sees_pixels


GUIDED_FALL = Ramp(first=0.5, last=0.0, start=0.0, end=0.5)
"""The share of guided patches that A3C has: half at first, none from the middle of training on.

Hard patches help early on, spread as `ahm_gym.masking.spread` has it; later they hold an autoencoder back, and
random masks teach more. docs/experiments.md has what was tried.
"""


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

"""The base class of agents, and the metrics of an update of the autoencoder."""

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
MakeEnv = Callable[[], VectorEnv[Any, Any, Any]]
"""Makes an environment; called once per worker."""
Callback = Callable[[Metrics], bool]
"""Called after every update of the autoencoder with its metrics; returning True asks the agent to stop."""


@runtime_checkable
class PausingCallback(Protocol):
    """A callback that names the updates after which every worker must be idle when it is called."""

    def __call__(self, metrics: Metrics) -> bool: ...

    def next_pause(self, done: int) -> int:
        """Number of updates since `learn` began after which all workers must next be idle; `done` are finished."""
        ...


@runtime_checkable
class StoppingCallback(Protocol):
    """A callback that can be asked between updates whether the agent has to stop."""

    def __call__(self, metrics: Metrics) -> bool: ...

    def has_to_stop(self) -> bool: ...


class Agent(ABC):
    """Base class of agents, which learn in a vector environment to choose masks.

    A subclass implements the four abstract methods, and overrides the attributes if their defaults do not fit. It is
    built as `cls(observation_shape, grid=..., seed=..., device=...)`; `observation_shape` is the number of patches L
    and the width of an embedding D.
    """

    env_id: str = "AHM/Masking-v0"
    """Id of the environment that has the agent's form of action."""
    guided_fraction: Share = 0.5
    """Share of the masked patches that the agent chooses, 0 to 1, or a function of training progress.

    The default is constant, because many algorithms drift once no choice is rewarded.
    """
    spread_fraction: Share = 1.0
    """Share of the images whose visible patches are spread over the grid (`ahm_gym.masking.spread`), or a function
    of training progress."""
    mask_ratio: Share | None = None
    """Share of the patches that are masked, if the agent chooses it, or a function of training progress; None leaves
    it to the settings."""
    reward: str = "relative"
    """Name of the default reward, one of `ahm_gym.envs.REWARDS`."""
    takes_tensors: bool = False
    """Whether observations are tensors on the device instead of arrays."""
    sees_pixels: bool = False
    """Whether observations are raw pixels, patch by patch. The agent is then passed `channels`, and needs the U-Net."""
    resumes_exactly: bool = True
    """Whether the state holds everything needed to resume bit for bit."""
    divides: bool = True
    """Whether it can learn in several processes of torchrun, each with a copy of it that sees the whole batch; what the
    copy of rank 0 decides counts."""

    @abstractmethod
    def learn(
        self, make_env: MakeEnv, num_steps: int, *, seed: int | None, callback: Callback | None = None
    ) -> None:
        """Acts and learns until the autoencoder has had `num_steps` more updates.

        Args:
            make_env: makes an environment; called once per worker.
            num_steps: updates of the autoencoder, by all workers together.
            seed: seed of the agent's draws and the environment; None continues from the current state.
            callback: called right after every update, with at least `loss` and `reward`; see `update_metrics`.
        """

    @abstractmethod
    def act(self, observation: Any, *, deterministic: bool) -> Float[Tensor, "B L"]:
        """One score per patch for a batch of observations (B, L, D), an array or a tensor."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as nested tensors and JSON values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""

    def score(self, patches: PatchBatch) -> Float[Tensor, "B L"]:
        """Scores for evaluation and figures, without exploration; the agent does not change."""
        return self.act(patches.embeddings, deterministic=True)

    def weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Float[Tensor, "B L"]:
        """Weight of each patch in the loss, 0 on visible patches (default: 1 on every masked patch)."""
        return masks.weight


def sees_pixels(make_agent: Any) -> bool:
    """Whether `make_agent` is the class of an agent that sees raw pixels; False for any function."""
    return isinstance(make_agent, type) and issubclass(make_agent, Agent) and make_agent.sees_pixels


GUIDED_FALL: Ramp = Ramp(first=0.5, last=0.0, start=0.0, end=0.5)
"""The share of guided patches of A3C: half at first, none from the middle of training on.

Hard patches help early on if visible patches are spread (`ahm_gym.masking.spread`). Later they hold the autoencoder
back, and random masks teach it more. docs/experiments.md describes what was tried.
"""


def update_metrics(info: dict[str, Any], reward: Any) -> Metrics:
    """Weighted mean of the reconstruction loss, share of the masked patches that was guided, and mean reward.

    The mean reward covers the images in which a choice was paid, and is missing if there are none.
    """
    mask, guided = np.asarray(info["mask"]), np.asarray(info["guided"])
    metrics = {
        "loss": float(np.average(np.asarray(info["patch_loss"])[mask], weights=weights_of(info)[mask])),
        "guided": float(guided.sum() / mask.sum()),
    }
    paid = paid_images(info) & guided.any(axis=1)
    return metrics | ({"reward": float(np.asarray(reward)[paid].mean())} if paid.any() else {})


def weights_of(info: dict[str, Any]) -> np.ndarray:
    """Weights (B, L) of the patches in the loss; 1 on masked patches if the environment does not report any."""
    return np.asarray(info.get("weight", info["mask"]), dtype=np.float32)


def paid_images(info: dict[str, Any]) -> np.ndarray:
    """True for the images (B,) whose reward was measured; for all if the environment does not report it."""
    return np.asarray(info.get("paid", np.ones(len(info["mask"]))), dtype=bool)

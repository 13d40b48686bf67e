"""What all agents share that draw patches in order: the network, its optimiser, scores, and the state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.base import GUIDED_FALL, Agent
from ahm_gym.agents.networks import ActorCritic, PatchActorCritic, available_patches, square_grid
from ahm_gym.agents.ordering import draw_order, draw_scores
from ahm_gym.errors import RunError, check_numbers
from ahm_gym.masking.schedules import Share
from ahm_gym.masking.spread import SPREAD_FALL

Network = str | Callable[[tuple[int, int]], ActorCritic]
"""Kind of network, conv or attention, or a function that builds another one from the grid."""


class PatchAgent(Agent):
    """Draws patches one after another without replacement, by the logits of one network (Plackett-Luce).

    Args:
        observation_shape: number of patches L and width of an embedding D.
        grid: rows and columns of patches; None means a square.
        entropy_coef: weight of the mean entropy of the draws, relative to rewards of root mean square 1.
        logit_cost: weight of the mean square of the logits.
        learning_rate: learning rate of Adam.
        max_grad_norm: largest norm of the gradient, which is clipped to it.
        width: width of the network's hidden layers.
        network: conv, attention, or a function that builds another network from the grid.
        seed: seed of the network's initial weights.
        device: device of the network.

    Raises:
        InputError: if the network is unknown or does not fit the grid, or a number is out of range.
    """

    guided_fraction: Share = GUIDED_FALL
    spread_fraction: Share = SPREAD_FALL
    reward = "progress"
    takes_tensors = True
    title: str = "this agent"
    """What messages call the agent."""

    def __init__(
        self,
        observation_shape: tuple[int, int],
        *,
        grid: tuple[int, ...] | None,
        entropy_coef: float,
        logit_cost: float,
        learning_rate: float,
        max_grad_norm: float,
        width: int,
        network: Network,
        seed: int,
        device: torch.device | str,
    ) -> None:
        check_numbers("count", width=width)
        check_numbers("cost", entropy_coef=entropy_coef, logit_cost=logit_cost)
        check_numbers("size", learning_rate=learning_rate, max_grad_norm=max_grad_norm)
        self.entropy_coef: float = entropy_coef
        self.logit_cost: float = logit_cost
        self.max_grad_norm: float = max_grad_norm
        num_patches, dim = observation_shape
        self.device: torch.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.grid: tuple[int, ...] = grid or square_grid(num_patches)
            if isinstance(network, str):
                built: ActorCritic = PatchActorCritic(num_patches, dim, self.grid, width=width, kind=network)
            else:
                built = network(self.grid)
            self.network: ActorCritic = built.to(self.device)
        self.optimizer: torch.optim.Optimizer = self.make_optimizer(learning_rate)
        self.generator: torch.Generator = torch.Generator()
        self.writes: Tensor = torch.zeros((), dtype=torch.int64)
        """Number of updates of the weights so far."""

    def make_optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """The optimiser of the network."""
        return torch.optim.Adam(self.network.parameters(), lr=learning_rate, fused=self.device.type == "cuda")

    def act(self, observation: Any, *, deterministic: bool) -> Float[Tensor, "B L"]:
        """One score per patch: the logits if `deterministic`, else the scores of a drawn order."""
        observation = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        self.network.eval()
        with torch.no_grad():
            logits = self.network(observation).logits
        if deterministic:
            return logits
        return draw_scores(logits, available_patches(observation), self.generator)

    def draw(
        self,
        logits: Float[Tensor, "B L"],
        available: Bool[Tensor, "B L"],
        uniform: Float[Tensor, "B L"],
    ) -> Int[Tensor, "B L"]:
        """The order in which patches are masked during learning; `uniform` are random numbers from 0 to 1."""
        return draw_order(logits, available, uniform)

    def check_gradient(self, norm: float, loss: float) -> None:
        """Raises RunError if the norm of the gradient of the next update is not finite."""
        if not math.isfinite(norm):
            raise RunError(
                f"the agent's gradient is not finite (loss {loss}) at its update {int(self.writes) + 1}: check the "
                "rewards; the last checkpoint is still good."
            )

    def write(self) -> None:
        """Updates the weights by their gradients; several workers call it under the lock."""
        self.optimizer.step()
        self.writes += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "writes": int(self.writes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
        self.writes.fill_(state["writes"])

    def __getstate__(self) -> dict[str, Any]:
        # As bytes: tensors sent to another process are shared with it, and a generator's state cannot be shared.
        return self.__dict__ | {"generator": self.generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"generator": torch.Generator()}
        self.generator.set_state(torch.frombuffer(bytearray(state["generator"]), dtype=torch.uint8))

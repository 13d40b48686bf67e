"""Asynchronous advantage actor-critic over patches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.base import GUIDED_FALL, Agent, Callback, MakeEnv
from ahm_gym.agents.learner import Learner, Transition
from ahm_gym.agents.losses import StepLoss, step_loss
from ahm_gym.agents.networks import (
    ActorCritic,
    PatchActorCritic,
    available_patches,
    square_grid,
)
from ahm_gym.agents.ordering import draw_order, scores_of_order
from ahm_gym.agents.workers import run_workers
from ahm_gym.device.sharing import held, share
from ahm_gym.errors import InputError, check_numbers
from ahm_gym.masking.spread import SPREAD_FALL


class A3C(Agent):
    """Draws the order in which patches are masked and learns from the loss of every patch.

    After "Asynchronous Methods for Deep Reinforcement Learning" (Mnih et al., ICML 2016), with an exact
    policy over ordered draws without replacement (Plackett-Luce) and a value for every patch.

    Args:
        observation_shape: patches L and width D.
        grid: rows and columns of patches; None takes a square.
        num_workers: 1 learns in this process and is deterministic; more are processes of one thread each.
        credit: local pays every draw its own patch's reward, image pays all the mean reward of the mask.
        gamma: discount a step.
        gae_lambda: of generalised advantage estimation, for episodes of several steps.
        n_steps: steps of a rollout; None takes the whole episode.
        entropy_coef: of the mean entropy of the draws, in root mean squares of the reward.
        value_coef: of the critic's loss.
        logit_cost: of the mean square of the logits: small ones can turn round while the autoencoder changes. Image
            credit, whose advantages are smaller, wants less.
        learning_rate: of Adam.
        max_grad_norm: the gradient is scaled down to this norm.
        width: of the network's hidden layers.
        network: conv, attention, or a function from the grid that builds another.
        seed: of the network's initial weights.
        device: of the network.

    Raises:
        InputError: for an unknown credit or network, or a number out of range.
    """

    guided_fraction = GUIDED_FALL
    spread_fraction = SPREAD_FALL
    reward = "progress"
    takes_tensors = True

    def __init__(
        self,
        observation_shape: tuple[int, int],
        *,
        grid: tuple[int, int] | None = None,
        num_workers: int = 1,
        credit: str = "local",
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        n_steps: int | None = None,
        entropy_coef: float = 0.02,
        value_coef: float = 0.5,
        logit_cost: float = 0.005,
        learning_rate: float = 3e-3,
        max_grad_norm: float = 1.0,
        width: int = 32,
        network: str | Callable[[tuple[int, int]], ActorCritic] = "conv",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if credit not in ("local", "image"):
            raise InputError(f"credit {credit!r} is unknown: choose local or image.")
        check_numbers(
            "count", num_workers=num_workers, n_steps=1 if n_steps is None else n_steps, width=width
        )
        check_numbers("share", gamma=gamma, gae_lambda=gae_lambda)
        check_numbers("cost", entropy_coef=entropy_coef, value_coef=value_coef, logit_cost=logit_cost)
        check_numbers("size", learning_rate=learning_rate, max_grad_norm=max_grad_norm)
        num_patches, dim = observation_shape
        self.num_workers = num_workers
        self.credit = credit
        self.gamma, self.gae_lambda, self.n_steps = gamma, gae_lambda, n_steps
        self.entropy_coef, self.value_coef, self.logit_cost = entropy_coef, value_coef, logit_cost
        self.max_grad_norm = max_grad_norm
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            grid = grid or square_grid(num_patches)
            if isinstance(network, str):
                built: ActorCritic = PatchActorCritic(num_patches, dim, grid, width=width, kind=network)
            else:
                built = network(grid)
            self.network = built.to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        self.generator = torch.Generator()
        self.writes = torch.zeros((), dtype=torch.int64)
        """Updates of the shared weights so far: what staleness is counted in."""
        self.lock: Any = None

    def learn(
        self, make_env: MakeEnv, num_steps: int, *, seed: int | None, callback: Callback | None = None
    ) -> None:
        if self.num_workers > 1:
            run_workers(self, make_env, num_steps, seed=seed, callback=callback)
            return
        learner = Learner(self, self.network, make_env(), self.generator, seed)
        for _ in range(num_steps):
            metrics = learner.episode()
            if callback is not None and callback(metrics):
                return

    def act(self, observation: Any, *, deterministic: bool) -> Float[Tensor, "B L"]:
        """One score a patch: the order of the logits, or a drawn one."""
        observation = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        self.network.eval()
        with torch.no_grad():
            logits = self.network(observation).logits
        if deterministic:
            return logits
        order = draw_order(logits, available_patches(observation), self.generator)
        return scores_of_order(order)

    def draw(
        self,
        logits: Float[Tensor, "B L"],
        available: Bool[Tensor, "B L"],
        generator: torch.Generator,
    ) -> Int[Tensor, "B L"]:
        """The order in which patches are masked while learning."""
        return draw_order(logits, available, generator)

    def step_loss(
        self,
        step: Transition,
        masked: Bool[Tensor, "B L"],
        patch_return: Float[Tensor, "B L"],
        image_return: Float[Tensor, " B"],
    ) -> StepLoss:
        """The losses of one step; see `ahm_gym.agents.losses.step_loss`."""
        return step_loss(
            step.output,
            step.order,
            step.available,
            step.chosen,
            masked,
            patch_return,
            image_return,
            self.credit,
        )

    def write(self) -> None:
        """One update of the weights by the gradients that they have; called under the lock."""
        self.optimizer.step()
        self.writes += 1

    def state_dict(self) -> dict[str, Any]:
        with self.locked():
            state = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "writes": int(self.writes),
            }
            return copy.deepcopy(state) if self.lock else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
        self.writes.fill_(state["writes"])

    def share_memory(self, lock: Any) -> None:
        """Lets worker processes update this agent's weights under `lock`."""
        share(self.network, self.optimizer)
        self.writes.share_memory_()
        self.lock = lock

    def locked(self) -> AbstractContextManager[None]:
        return held(self.lock) if self.lock else nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        # As bytes: tensors on the way to another process are shared with it, which the state of a generator cannot be.
        return self.__dict__ | {"generator": self.generator.get_state().numpy().tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"generator": torch.Generator()}
        self.generator.set_state(torch.frombuffer(bytearray(state["generator"]), dtype=torch.uint8))

"""Asynchronous advantage actor-critic over patches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ahm_gym.agents.base import Callback, Metrics, update_metrics
from ahm_gym.agents.losses import StepLoss, step_loss
from ahm_gym.agents.networks import (
    ActorCritic,
    ActorCriticOutput,
    PatchActorCritic,
    available_patches,
    square_grid,
)
from ahm_gym.agents.ordering import draw_order, scores_of_order
from ahm_gym.agents.returns import lambda_returns
from ahm_gym.agents.workers import run_workers
from ahm_gym.errors import InputError, RunError
from ahm_gym.sharing import hand_over_gradients, held, read, share, write_buffers


class A3C:
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
        learning_rate: of Adam.
        max_grad_norm: the gradient is scaled down to this norm.
        width: of the network's hidden layers.
        network: conv, attention, or a function from the grid that builds another.
        seed: of the network's initial weights.
        device: of the network.

    Raises:
        InputError: for an unknown credit or network, or a count below 1.
    """

    env_id = "AHM/Masking-v0"

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
        learning_rate: float = 1e-3,
        max_grad_norm: float = 1.0,
        width: int = 32,
        network: str | Callable[[tuple[int, int]], ActorCritic] = "conv",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if credit not in ("local", "image"):
            raise InputError(f"credit {credit!r} is unknown: choose local or image.")
        for name, count in (("num_workers", num_workers), ("n_steps", 1 if n_steps is None else n_steps)):
            if count < 1:
                raise InputError(f"{name} is {count}: choose at least 1.")
        num_patches, dim = observation_shape
        self.num_workers = num_workers
        self.credit = credit
        self.gamma, self.gae_lambda, self.n_steps = gamma, gae_lambda, n_steps
        self.entropy_coef, self.value_coef = entropy_coef, value_coef
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
        self,
        make_env: Callable[[], VectorEnv],
        num_steps: int,
        *,
        seed: int | None,
        callback: Callback | None = None,
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
            step.num_guided,
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
        return self.__dict__ | {"generator": None}


@dataclass
class Transition:
    """One step of a batch of images, as the learner remembers it."""

    output: ActorCriticOutput
    order: Tensor
    available: Bool[Tensor, "B L"]
    num_guided: Tensor
    patch_reward: Float[Tensor, "B L"]
    image_reward: Float[Tensor, " B"]
    ended: Bool[Tensor, " B"]


class Learner:
    """One worker's environment, its copy of the network, and the loop of acting and learning.

    Args:
        agent: holds the shared weights, the optimiser and the lock.
        network: the copy that acts; the agent's own where there is one worker.
        env: this worker's environment.
        generator: of this worker's draws.
        seed: of the draws and the environment; None leaves both as they are.
    """

    def __init__(
        self,
        agent: A3C,
        network: ActorCritic,
        env: VectorEnv,
        generator: torch.Generator,
        seed: int | None,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InputError(
                f"the environment's autoreset mode is {mode}: A3C needs SAME_STEP; build it with "
                "autoreset_mode='SameStep'."
            )
        self.agent, self.network, self.env, self.generator = agent, network, env, generator
        if seed is not None:
            generator.manual_seed(seed)
        observation, _ = env.reset(seed=seed)
        self.observation = self._tensor(observation)

    def episode(self) -> Metrics:
        """Plays the present batch to its end, learning after every rollout; gives back metrics."""
        metrics: Metrics = {}
        ended = False
        while not ended:
            rollout, info, reward = self._rollout()
            ended = bool(rollout[-1].ended.all())
            metrics = self._learn(rollout, torch.as_tensor(info["mask"], device=self.agent.device))
            if ended:
                metrics = update_metrics(info, reward) | metrics
        return metrics

    def _rollout(self) -> tuple[list[Transition], dict[str, Any], np.ndarray]:
        agent, network = self.agent, self.network
        if network is not agent.network:
            with agent.locked():
                read(network, agent.network)
        self.read_at = int(agent.writes)
        network.train()
        rollout: list[Transition] = []
        while True:
            observation = self.observation
            available = available_patches(observation)
            output = network(observation)
            order = agent.draw(output.logits, available, self.generator)
            following, reward, terminated, truncated, info = self.env.step(
                scores_of_order(order).cpu().numpy()
            )
            if "patch_reward" not in info:
                raise InputError(
                    "the environment's info has no 'patch_reward': A3C needs the reward of every patch; "
                    "use AHM/Masking-v0."
                )
            guided = self._tensor(info["guided"]).bool() & available
            rollout.append(
                Transition(
                    output=output,
                    order=order,
                    available=available,
                    num_guided=guided.sum(dim=1),
                    patch_reward=self._tensor(info["patch_reward"]),
                    image_reward=self._tensor(reward),
                    ended=torch.as_tensor(terminated | truncated, device=agent.device),
                )
            )
            self.observation = self._tensor(following)
            if rollout[-1].ended.any() or len(rollout) == agent.n_steps:
                return rollout, info, reward

    def _learn(self, rollout: list[Transition], mask: Bool[Tensor, "B L"]) -> Metrics:
        agent, network = self.agent, self.network
        if bool(rollout[-1].ended.all()):
            network.reward_scale.follow(rollout[-1].patch_reward[mask])
        returns, image_returns = self._returns(rollout)
        losses = [agent.step_loss(step, mask, returns[t], image_returns[t]) for t, step in enumerate(rollout)]
        mean = StepLoss(*(torch.stack(parts).mean() for parts in zip(*losses, strict=True)))
        loss = mean.policy + agent.value_coef * mean.value - agent.entropy_coef * mean.entropy
        network.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), agent.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise RunError(
                f"the agent's gradient is not finite (loss {float(loss.detach())}) at its update "
                f"{int(agent.writes) + 1}: look at the rewards; the last checkpoint is good."
            )
        staleness = self._write()
        return {
            "agent/policy_loss": float(mean.policy.detach()),
            "agent/value_loss": float(mean.value.detach()),
            "agent/draw_entropy": float(mean.relative_entropy),
            "agent/staleness": float(staleness),
        }

    def _returns(self, rollout: list[Transition]) -> tuple[Float[Tensor, "T B L"], Float[Tensor, "T B"]]:
        """Returns of the patches and of the whole mask, in root mean squares of the reward."""
        agent = self.agent
        scale = self.network.reward_scale.value()
        ended = torch.stack([step.ended for step in rollout])
        values = torch.stack([step.output.values.detach() for step in rollout])
        image_values = torch.stack([step.output.image_value.detach() for step in rollout])
        bootstrap, image_bootstrap = torch.zeros_like(values[0]), torch.zeros_like(image_values[0])
        if not bool(ended[-1].all()):
            with torch.no_grad():
                self.network.eval()
                after = self.network(self.observation)
                bootstrap, image_bootstrap = after.values, after.image_value
        options = {"gamma": agent.gamma, "gae_lambda": agent.gae_lambda}
        patch = lambda_returns(
            torch.stack([step.patch_reward for step in rollout]) / scale,
            values,
            ended[..., None].expand(values.shape),
            bootstrap,
            **options,
        )
        image = lambda_returns(
            torch.stack([step.image_reward for step in rollout]) / scale,
            image_values,
            ended,
            image_bootstrap,
            **options,
        )
        return patch, image

    def _write(self) -> int:
        """Applies the gradients to the shared weights; gives back the writes of others since the last read."""
        agent, network = self.agent, self.network
        with agent.locked():
            staleness = int(agent.writes) - self.read_at
            if network is not agent.network:
                hand_over_gradients(network, agent.network)
                write_buffers(network, agent.network)
            agent.write()
        return staleness

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.agent.device)

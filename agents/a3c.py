"""Asynchronous advantage actor-critic (A3C) over patches."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.base import Callback, MakeEnv
from ahm_gym.agents.learner import Learned, Learner
from ahm_gym.agents.losses import CREDITS, Later, StepLoss, step_loss
from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.agents.nodes import run_on_ray
from ahm_gym.agents.optimizers import OPTIMIZERS
from ahm_gym.agents.patch_agent import Network, PatchAgent
from ahm_gym.agents.workers import run_workers
from ahm_gym.device.sharing import held, load, share, use_gradients, weights_of
from ahm_gym.errors import InputError, check_numbers, unknown_name


class A3C(PatchAgent):
    """Draws the order in which patches are masked, and learns from the reward of every patch.

    After "Asynchronous Methods for Deep Reinforcement Learning" (Mnih et al., ICML 2016):

    - Policy: patches are drawn one after another without replacement (Plackett-Luce). The environment masks the first
      of them, and the log-probability of each draw is exact (`ahm_gym.agents.ordering`).
    - Critic: a value for every patch, and one for the whole mask.
    - Credit: by default each draw is credited with the reward of its own patch (`ahm_gym.agents.losses`).
    - Asynchrony: each worker acts in its own environment with a copy of the weights, and applies its gradients to the
      shared weights. Meanwhile others may have changed them: `agent/staleness` counts their updates.

    The optimiser of the paper is an option: shared RMSProp, applied without a lock, with a rate that falls to 0.

    Args:
        observation_shape: number of patches L and width of an embedding D.
        grid: rows and columns of patches; None means a square.
        num_workers: 1 learns in this process and is deterministic; more start that many single-threaded processes.
        ray: address of a Ray cluster on which the workers run, even a single one, or local (`ahm_gym.agents.nodes`).
        credit: own pays each draw the reward of its own patch; local that of its own patch and of those drawn after it,
            which is the exact gradient where patches do not influence each other, and has more variance; image pays
            all draws the mean reward of the mask.
        gamma: discount per step.
        gae_lambda: lambda of generalised advantage estimation, for episodes of several steps.
        n_steps: steps per rollout; None means the whole episode.
        entropy_coef: weight of the mean entropy of the draws, relative to rewards of root mean square 1.
        value_coef: weight of the critic's loss.
        logit_cost: weight of the mean square of the logits. Small logits can still change sign while the autoencoder
            changes. Choose a smaller value for image credit, because its advantages are smaller.
        learning_rate: learning rate of the optimiser, in the first update.
        optimizer: adam, or rmsprop as in the paper (`ahm_gym.agents.optimizers`). All workers share its statistics. The
            steps of rmsprop are smaller; 0.01 to 0.03 is a learning rate for it.
        anneal: whether the learning rate falls linearly to 0 over the run, counted in updates of the autoencoder, those
            without guided patches included. A second call of `learn` continues the same run.
        lock_free: whether several workers apply their gradients without waiting for each other (Hogwild; Niu et al.,
            2011). Updates of the same weight can then be lost, and a worker can read weights in the middle of an
            update. Updates and running statistics are still counted under the lock, so staleness stays exact: it is
            the number of updates that others finished since this worker began to read. A run with several workers is
            not reproducible, with this option or without. With one worker it has no effect.
        importance_clip: corrects for what other workers have changed since a rollout was drawn. The worker reads the
            shared weights again before it learns, and weighs each image by how likely its draws are under them, at
            most this number (`ahm_gym.agents.importance`): 1 as in V-trace, Infinity to clip nothing; None
            corrects nothing. Staleness still counts from the drawing, and rollouts that begin within an episode
            (`n_steps`) are not corrected for its earlier steps. With one worker all weights are 1.
        max_grad_norm: largest norm of the gradient, which is clipped to it.
        width: width of the network's hidden layers.
        network: conv, attention, or a function that builds another network from the grid.
        seed: seed of the network's initial weights.
        device: device of the network.

    Raises:
        InputError: if credit, optimiser or network is unknown, or a number is out of range.
    """

    title = "A3C"

    def __init__(
        self,
        observation_shape: tuple[int, int],
        *,
        grid: tuple[int, ...] | None = None,
        num_workers: int = 1,
        ray: str | None = None,
        credit: str = "own",
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        n_steps: int | None = None,
        entropy_coef: float = 0.02,
        value_coef: float = 0.5,
        logit_cost: float = 0.005,
        learning_rate: float = 3e-3,
        optimizer: str = "adam",
        anneal: bool = False,
        lock_free: bool = False,
        importance_clip: float | None = None,
        max_grad_norm: float = 1.0,
        width: int = 32,
        network: Network = "conv",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if credit not in CREDITS:
            raise unknown_name("credit", credit, CREDITS)
        if optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", optimizer, OPTIMIZERS)
        check_numbers("count", num_workers=num_workers, n_steps=1 if n_steps is None else n_steps)
        check_numbers("share", gamma=gamma, gae_lambda=gae_lambda)
        check_numbers("cost", value_coef=value_coef)
        if importance_clip is not None and importance_clip != math.inf:
            check_numbers("size", importance_clip=importance_clip)
        if ray is not None and (lock_free or importance_clip is not None):
            name = "lock_free" if lock_free else "importance_clip"
            raise InputError(
                f"`{name}` needs weights in the memory of one machine, and `ray` sends them to workers elsewhere: "
                "leave one of the two out."
            )
        self.num_workers: int = num_workers
        self.ray: str | None = ray
        self.credit: str = credit
        self.gamma: float = gamma
        self.gae_lambda: float = gae_lambda
        self.n_steps: int | None = n_steps
        self.value_coef: float = value_coef
        self.learning_rate: float = learning_rate
        self.optimizer_name: str = optimizer
        self.anneal: bool = anneal
        self.lock_free: bool = lock_free
        self.importance_clip: float | None = importance_clip
        self.episodes: Tensor = torch.zeros((), dtype=torch.int64)
        """Number of updates of the autoencoder in which this agent has acted so far."""
        self.last_episode: int = 0
        """What that number will be at the end of the run."""
        super().__init__(
            observation_shape,
            grid=grid,
            entropy_coef=entropy_coef,
            logit_cost=logit_cost,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            width=width,
            network=network,
            seed=seed,
            device=device,
        )
        self.lock: Any = None
        self._sent: list[Learned] | None = None

    def learn(
        self, make_env: MakeEnv, num_steps: int, *, seed: int | None, callback: Callback | None = None
    ) -> None:
        self.last_episode = int(self.episodes) + num_steps
        if self.ray is not None:
            run_on_ray(self, make_env, num_steps, address=self.ray, seed=seed, callback=callback)
            return
        if self.num_workers > 1:
            run_workers(self, make_env, num_steps, seed=seed, callback=callback)
            return
        learner = Learner(self, self.network, make_env(), self.generator, seed)
        for _ in range(num_steps):
            metrics = learner.episode()
            if callback is not None and callback(metrics):
                return

    def step_loss(
        self,
        output: ActorCriticOutput,
        order: Int[Tensor, "B L"],
        available: Bool[Tensor, "B L"],
        chosen: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        patch_return: Float[Tensor, "B L"],
        image_return: Float[Tensor, " B"],
        later: Later | None,
        weight: Float[Tensor, " B"] | None = None,
    ) -> tuple[StepLoss, Later]:
        """The losses of one step; see `ahm_gym.agents.losses.step_loss`."""
        returns = (patch_return, image_return)
        return step_loss(output, order, available, chosen, masked, *returns, self.credit, later, weight)

    def make_optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        on_gpu = self.device.type == "cuda"
        return OPTIMIZERS[self.optimizer_name](self.network.parameters(), learning_rate, fused=on_gpu)

    def write(self) -> None:
        """Updates the weights by their gradients: under the lock, or with `lock_free` outside of it."""
        if self.anneal:
            for group in self.optimizer.param_groups:
                group["lr"] = self.annealed_rate()
        if not self.lock_free:
            super().write()
            return
        self.optimizer.step()
        with self.locked():
            self.writes.add_(1)

    def apply(self, learned: Learned) -> int:
        """Updates the weights and the running statistics by what a worker has learned.

        Returns how many updates the weights have had since the worker read them. A copy that sends keeps it instead.
        """
        if self._sent is not None:
            self._sent.append(learned)
            return 0
        with self.locked():
            staleness = int(self.writes) - learned.writes_read
            if learned.gradients is not None:
                use_gradients(self.network, learned.gradients)
            for observation in learned.observations:
                self.network.observe(observation)
            if learned.mean_square is not None:
                self.network.reward_scale.follow(learned.mean_square)
            if learned.gradients is not None and not self.lock_free:
                self.write()
        if learned.gradients is not None and self.lock_free:
            self.write()
        return staleness

    def published(self) -> tuple[list[Tensor], tuple[int, int, int]]:
        """The weights and the counters, which a copy in another process can `receive`."""
        counters = (int(self.writes), int(self.episodes), self.last_episode)
        return [value.detach() for value in weights_of(self.network)], counters

    def receive(self, published: tuple[list[Tensor], tuple[int, int, int]]) -> None:
        """Takes over what the owner of the weights has `published`."""
        weights, (writes, episodes, self.last_episode) = published
        load(self.network, weights)
        self.writes.fill_(writes)
        self.episodes.fill_(episodes)

    def send_gradients(self) -> None:
        """Turns this copy into one that never updates its weights, and keeps for the owner what it has learned."""
        self._sent = []
        self.optimizer.state.clear()

    def sent(self) -> list[Learned]:
        """What was learned since the last call, in order."""
        sent, self._sent = self._sent or [], []
        return sent

    def annealed_rate(self) -> float:
        """The learning rate of the next update with `anneal`."""
        left = self.last_episode - int(self.episodes)
        return self.learning_rate * max(left, 0) / max(self.last_episode, 1)

    def state_dict(self) -> dict[str, Any]:
        with self.locked():
            state = super().state_dict() | ({"episodes": int(self.episodes)} if self.anneal else {})
            return copy.deepcopy(state) if self.lock else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.episodes.fill_(state.get("episodes", 0))

    def share_memory(self, lock: Any) -> None:
        """Lets worker processes update this agent's weights under `lock`."""
        share(self.network, self.optimizer)
        self.writes.share_memory_()
        self.episodes.share_memory_()
        self.lock = lock

    def locked(self) -> AbstractContextManager[None]:
        """The lock of the shared weights, or no lock in a single process."""
        return held(self.lock) if self.lock else nullcontext()

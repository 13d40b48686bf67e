"""One worker of A3C: it acts in its own environment, and learns after every rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.base import Metrics, paid_images, update_metrics
from ahm_gym.agents.importance import importance
from ahm_gym.agents.losses import explained_variance, mean_over_draws
from ahm_gym.agents.networks import ActorCritic
from ahm_gym.agents.player import Player, Transition
from ahm_gym.agents.returns import scaled_returns
from ahm_gym.device.cuda_graphs import Gradients
from ahm_gym.device.sharing import gradients_of, read
from ahm_gym.device.transfers import Fetch, to_device

if TYPE_CHECKING:
    from ahm_gym.agents.a3c import A3C


LEARNED_FROM: tuple[str, ...] = (
    "observation", "order", "available", "guided", "patch_reward", "image_reward", "ended", "logits",
)  # fmt: skip
"""The fields of a transition that enter the loss."""


class Learned(NamedTuple):
    """What a worker has learned from a rollout; `A3C.apply` changes the agent by it."""

    gradients: list[Tensor | None] | None
    """Clipped gradients of the network's parameters; None if there was nothing to learn from."""
    observations: list[Float[Tensor, "B L D"]]
    """Observations that the agent's running statistics do not cover yet.

    A copy of the worker's own statistics would throw away what other workers have added since.
    """
    mean_square: Float[Tensor, ""] | None
    """Mean square of new rewards that the agent's statistics have not seen."""
    writes_read: int
    """Updates that the agent had had when the worker read its weights."""


class Learner(Player["A3C"]):
    """One worker's environment, its copy of the network, and the loop of acting and learning.

    Args:
        agent: holds the shared weights, the optimiser and the lock.
        network: the network that acts: a copy of the agent's, or with one worker the agent's own.
        env: environment of this worker.
        generator: generator of this worker's draws.
        seed: seed of the generator and the environment; None leaves both as they are.

    Raises:
        InputError: if the autoreset mode of the environment is not SAME_STEP.
    """

    def __init__(
        self,
        agent: A3C,
        network: ActorCritic,
        env: VectorEnv[Any, Any, Any],
        generator: torch.Generator,
        seed: int | None,
    ) -> None:
        super().__init__(agent, network, env, generator, seed)
        self._writes_read = 0
        self._unshared: list[Tensor] = []
        """Observations of this worker that the shared running statistics do not cover yet."""
        parameters = list(network.parameters())
        self._passes = Gradients(self._loss, parameters, agent.max_grad_norm, records=network.records)

    def episode(self) -> Metrics:
        """Plays the current batch to its end, learning after every rollout; returns metrics.

        As long as the scores have not chosen any patch, there is nothing to learn from.
        """
        metrics: Metrics = {}
        ended = False
        while not ended:
            rollout, info, reward, ended = self._rollout()
            if info["guided"].any():
                paid = torch.as_tensor(paid_images(info) | (not ended))
                metrics = self._learn(rollout, torch.as_tensor(info["mask"]), paid, ended)
            else:
                self._keep_statistics()
            if ended:
                metrics = update_metrics(info, reward) | metrics
        with self.agent.locked():
            self.agent.episodes += 1
        return metrics

    def _rollout(self) -> tuple[list[Transition], dict[str, Any], np.ndarray, bool]:
        """Copies the shared weights, then acts for `n_steps` steps or to the end of the episode; see `Player.play`."""
        self._writes_read = self._read()
        if self.network is not self.agent.network:
            self._unshared.append(self.observation)
        return self.play(self.agent.n_steps)

    def _read(self) -> int:
        """Copies the shared weights; returns how many updates they had had before."""
        agent, network = self.agent, self.network
        with agent.locked():
            writes = int(agent.writes)
            if network is not agent.network and not agent.lock_free:
                read(network, agent.network)
        if network is not agent.network and agent.lock_free:
            read(network, agent.network)
        return writes

    def _learn(
        self, rollout: list[Transition], mask: Bool[Tensor, "B L"], paid: Bool[Tensor, " B"], over: bool
    ) -> Metrics:
        """Updates the shared weights from one rollout; returns metrics.

        Args:
            rollout: consecutive steps of the batch.
            mask: patches masked by the end of the rollout.
            paid: images to learn from.
            over: whether the episode ended with the rollout.
        """
        agent, network = self.agent, self.network
        if agent.importance_clip is not None:
            self._read()
        mask = mask & paid[:, None]
        mean_square = None
        if over and bool(mask.any()):
            mean_square = to_device(rollout[-1].patch_reward[mask].square().mean(), agent.device)
            network.reward_scale.follow(mean_square)
        for step in rollout:
            step.guided = step.guided & paid[:, None]
        stacked = (torch.stack([getattr(step, name) for step in rollout]) for name in LEARNED_FROM)
        inputs = (to_device(value, agent.device) for value in (*stacked, mask))
        loss, parts, norm = self._passes(*inputs, *self.bootstrap(rollout))
        numbers = torch.cat((torch.stack((norm, loss)), parts))
        size, total, policy, value, entropy, relative, explained, *moved = Fetch(numbers).wait().tolist()
        agent.check_gradient(size, total)
        staleness = self._write(mean_square)
        return {
            "agent/policy_loss": policy,
            "agent/value_loss": value,
            "agent/draw_entropy": relative,
            "agent/explained_variance": explained,
            "agent/grad_norm": size,
            "agent/staleness": float(staleness),
            "train/entropy_loss": -entropy,
            **dict(zip(("train/approx_kl", "train/clip_fraction"), moved, strict=False)),
            **({"train/learning_rate": agent.annealed_rate()} if agent.anneal else {}),
        }

    def _loss(
        self,
        observation: Float[Tensor, "T B L D"],
        order: Int[Tensor, "T B L"],
        available: Bool[Tensor, "T B L"],
        guided: Bool[Tensor, "T B L"],
        patch_reward: Float[Tensor, "T B L"],
        image_reward: Float[Tensor, "T B"],
        ended: Bool[Tensor, "T B"],
        logits: Float[Tensor, "T B L"],
        mask: Bool[Tensor, "B L"],
        bootstrap: Float[Tensor, "B L"],
        image_bootstrap: Float[Tensor, " B"],
    ) -> tuple[Tensor, ...]:
        """The loss, and its parts that are reported, for the stacked fields of `Transition` and what follows them."""
        agent, network = self.agent, self.network
        outputs = [network(seen) for seen in observation]
        values = torch.stack([output.values.detach() for output in outputs])
        image_values = torch.stack([output.image_value.detach() for output in outputs])
        patch_return, image_return = scaled_returns(
            patch_reward,
            image_reward,
            ended,
            values,
            image_values,
            (bootstrap, image_bootstrap),
            network.reward_scale.value(),
            gamma=agent.gamma,
            gae_lambda=agent.gae_lambda,
        )
        chosen = (guided & available).gather(2, order)
        found = None
        if agent.importance_clip is not None:
            now = torch.stack([output.logits.detach() for output in outputs])
            found = importance(now, logits, order, available, chosen, agent.importance_clip)
        losses, later = [], None
        for t in reversed(range(len(outputs))):
            loss, later = agent.step_loss(
                outputs[t],
                order[t],
                available[t],
                chosen[t],
                mask,
                patch_return[t],
                image_return[t],
                later,
                None if found is None else found.weight,
            )
            later = later._replace(paid=agent.gamma * later.paid)
            losses.append(loss)
        mean = mean_over_draws(losses[::-1], guided.sum(dim=(1, 2)))
        loss = mean.policy + agent.value_coef * mean.value - agent.entropy_coef * mean.entropy
        loss = loss + agent.logit_cost * mean.logit_square
        explained = explained_variance(values, patch_return, mask.expand(values.shape))
        moved = () if found is None else (found.approx_kl, found.clipped)
        parts = (mean.policy, mean.value, mean.entropy, mean.relative_entropy, explained)
        return loss, torch.stack((*parts, *moved))

    def _write(self, mean_square: Float[Tensor, ""] | None) -> int:
        """Applies the gradients to the shared weights; returns how many updates others made since they were read.

        Args:
            mean_square: mean square of new rewards, which this worker's network has seen.
        """
        unseen = None if self.network is self.agent.network else mean_square
        return self.agent.apply(Learned(gradients_of(self.network), self._taken(), unseen, self._writes_read))

    def _keep_statistics(self) -> None:
        """Shares the statistics of the observations when there is nothing to learn from."""
        self.agent.apply(Learned(None, self._taken(), None, self._writes_read))

    def _taken(self) -> list[Tensor]:
        """The observations that are not shared yet; they then count as shared."""
        taken, self._unshared = self._unshared, []
        return taken

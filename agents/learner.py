"""One worker of A3C: it acts in its own environment, and learns after every rollout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ahm_gym.agents.base import Metrics, paid_images, update_metrics
from ahm_gym.agents.losses import StepLoss
from ahm_gym.agents.networks import ActorCritic, ActorCriticOutput, available_patches
from ahm_gym.agents.ordering import scores_of_order
from ahm_gym.agents.returns import lambda_returns
from ahm_gym.device.sharing import hand_over_gradients, read, write_buffers
from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.errors import InputError, RunError

if TYPE_CHECKING:
    from ahm_gym.agents.a3c import A3C


@dataclass
class Transition:
    """One step of a batch of images, as the learner remembers it.

    Rewards stay in main memory until the learner learns from them.
    """

    output: ActorCriticOutput
    """Output of the network for the state before the step."""
    order: Int[Tensor, "B L"]
    """The action: patch indices in the order in which they were drawn."""
    available: Bool[Tensor, "B L"]
    """True for patches that could be drawn."""
    chosen: Bool[Tensor, "B L"]
    """True for entries of `order` that the environment masked by following it."""
    patch_reward: Float[Tensor, "B L"]
    image_reward: Float[Tensor, " B"]
    ended: Bool[Tensor, " B"]


class Learner:
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
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InputError(
                f"the environment's autoreset mode is {mode}: A3C needs SAME_STEP; build it with "
                "autoreset_mode='SameStep'."
            )
        self.agent: A3C = agent
        self.network: ActorCritic = network
        self.env: VectorEnv[Any, Any, Any] = env
        self.generator: torch.Generator = generator
        self._writes_read = 0
        if seed is not None:
            generator.manual_seed(seed)
        observation, _ = env.reset(seed=seed)
        self.observation: Float[Tensor, "B L D"] = self._tensor(observation)

    def episode(self) -> Metrics:
        """Plays the current batch to its end, learning after every rollout; returns metrics.

        As long as the scores have not chosen any patch, there is nothing to learn from.
        """
        metrics: Metrics = {}
        ended = False
        while not ended:
            rollout, info, reward = self._rollout()
            ended = bool(rollout[-1].ended.all())
            if info["guided"].any():
                paid = torch.as_tensor(paid_images(info) | (not ended))
                metrics = self._learn(rollout, torch.as_tensor(info["mask"]), paid)
            else:
                self._keep_statistics()
            if ended:
                metrics = update_metrics(info, reward) | metrics
        return metrics

    def _rollout(self) -> tuple[list[Transition], dict[str, Any], np.ndarray]:
        """Copies the shared weights, then acts for `n_steps` steps or to the end of the episode.

        Returns the transitions, and `info` and reward (B,) of the last step.
        """
        agent, network = self.agent, self.network
        if network is not agent.network:
            with agent.locked():
                read(network, agent.network)
        self._writes_read = int(agent.writes)
        network.train()
        rollout: list[Transition] = []
        while True:
            observation = self.observation
            available = available_patches(observation)
            output = network(observation)
            order = agent.draw(output.logits, available, self.generator)
            scores = Fetch(scores_of_order(order)).wait().numpy()
            next_observation, reward, terminated, truncated, info = self.env.step(scores)
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
                    chosen=guided.gather(1, order),
                    patch_reward=torch.as_tensor(info["patch_reward"], dtype=torch.float32),
                    image_reward=torch.as_tensor(reward, dtype=torch.float32),
                    ended=torch.as_tensor(terminated | truncated),
                )
            )
            self.observation = self._tensor(next_observation)
            if rollout[-1].ended.any() or len(rollout) == agent.n_steps:
                return rollout, info, reward

    def _learn(
        self, rollout: list[Transition], mask: Bool[Tensor, "B L"], paid: Bool[Tensor, " B"]
    ) -> Metrics:
        """Updates the shared weights from one rollout; returns metrics.

        Args:
            rollout: consecutive steps of the batch.
            mask: patches masked by the end of the rollout.
            paid: images to learn from.
        """
        agent, network = self.agent, self.network
        mask = mask & paid[:, None]
        if bool(rollout[-1].ended.all()):
            network.reward_scale.follow(to_device(rollout[-1].patch_reward[mask], agent.device))
        mask, paid = to_device(mask, agent.device), to_device(paid, agent.device)
        for step in rollout:
            step.chosen = step.chosen & paid[:, None]
        returns, image_returns = self._returns(rollout)
        losses = [agent.step_loss(step, mask, returns[t], image_returns[t]) for t, step in enumerate(rollout)]
        mean = StepLoss(*(torch.stack(parts).mean() for parts in zip(*losses, strict=True)))
        loss = mean.policy + agent.value_coef * mean.value - agent.entropy_coef * mean.entropy
        loss = loss + agent.logit_cost * mean.logit_square
        network.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), agent.max_grad_norm)
        numbers = torch.stack((norm, loss, mean.policy, mean.value, mean.relative_entropy))
        size, total, policy, value, entropy = Fetch(numbers).wait().tolist()
        if not math.isfinite(size):
            raise RunError(
                f"the agent's gradient is not finite (loss {total}) at its update "
                f"{int(agent.writes) + 1}: check the rewards; the last checkpoint is still good."
            )
        staleness = self._write()
        return {
            "agent/policy_loss": policy,
            "agent/value_loss": value,
            "agent/draw_entropy": entropy,
            "agent/staleness": float(staleness),
        }

    def _returns(self, rollout: list[Transition]) -> tuple[Float[Tensor, "T B L"], Float[Tensor, "T B"]]:
        """Returns of the patches and of the whole mask, in units of the reward's root mean square."""
        agent = self.agent
        scale = self.network.reward_scale.value()
        ended = torch.stack([step.ended for step in rollout])
        continues = not bool(ended[-1].all())
        ended, patch_reward, image_reward = (
            to_device(value, agent.device)
            for value in (
                ended,
                torch.stack([step.patch_reward for step in rollout]),
                torch.stack([step.image_reward for step in rollout]),
            )
        )
        values = torch.stack([step.output.values.detach() for step in rollout])
        image_values = torch.stack([step.output.image_value.detach() for step in rollout])
        bootstrap, image_bootstrap = torch.zeros_like(values[0]), torch.zeros_like(image_values[0])
        if continues:
            with torch.no_grad():
                self.network.eval()
                after = self.network(self.observation)
                bootstrap, image_bootstrap = after.values, after.image_value
        options = {"gamma": agent.gamma, "gae_lambda": agent.gae_lambda}
        patch = lambda_returns(
            patch_reward / scale,
            values,
            ended[..., None].expand(values.shape),
            bootstrap,
            **options,
        )
        image = lambda_returns(
            image_reward / scale,
            image_values,
            ended,
            image_bootstrap,
            **options,
        )
        return patch, image

    def _write(self) -> int:
        """Applies the gradients to the shared weights; returns how many updates others made since they were read."""
        agent, network = self.agent, self.network
        with agent.locked():
            staleness = int(agent.writes) - self._writes_read
            if network is not agent.network:
                hand_over_gradients(network, agent.network)
                write_buffers(network, agent.network)
            agent.write()
        return staleness

    def _keep_statistics(self) -> None:
        """Shares the statistics of the observations when there is nothing to learn from."""
        agent, network = self.agent, self.network
        if network is not agent.network:
            with agent.locked():
                write_buffers(network, agent.network)

    def _tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return to_device(torch.as_tensor(array, dtype=torch.float32), self.agent.device)

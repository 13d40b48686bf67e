"""One worker of the actor-critic: it acts in its environment, and learns after every rollout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float
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

    What the environment has paid stays in main memory until it is learned from.
    """

    output: ActorCriticOutput
    order: Tensor
    available: Bool[Tensor, "B L"]
    chosen: Bool[Tensor, "B L"]
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
        """Plays the present batch to its end, learning after every rollout; gives back metrics.

        Nothing is learned before the environment has masked a patch because of the scores.
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
            scores = Fetch(scores_of_order(order)).wait().numpy()
            following, reward, terminated, truncated, info = self.env.step(scores)
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
            self.observation = self._tensor(following)
            if rollout[-1].ended.any() or len(rollout) == agent.n_steps:
                return rollout, info, reward

    def _learn(
        self, rollout: list[Transition], mask: Bool[Tensor, "B L"], paid: Bool[Tensor, " B"]
    ) -> Metrics:
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
                f"{int(agent.writes) + 1}: look at the rewards; the last checkpoint is good."
            )
        staleness = self._write()
        return {
            "agent/policy_loss": policy,
            "agent/value_loss": value,
            "agent/draw_entropy": entropy,
            "agent/staleness": float(staleness),
        }

    def _returns(self, rollout: list[Transition]) -> tuple[Float[Tensor, "T B L"], Float[Tensor, "T B"]]:
        """Returns of the patches and of the whole mask, in root mean squares of the reward."""
        agent = self.agent
        scale = self.network.reward_scale.value()
        ended = torch.stack([step.ended for step in rollout])
        goes_on = not bool(ended[-1].all())
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
        if goes_on:
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
        """Applies the gradients to the shared weights; gives back the writes of others since the last read."""
        agent, network = self.agent, self.network
        with agent.locked():
            staleness = int(agent.writes) - self.read_at
            if network is not agent.network:
                hand_over_gradients(network, agent.network)
                write_buffers(network, agent.network)
            agent.write()
        return staleness

    def _keep_statistics(self) -> None:
        """Hands over what the network has seen, where there is nothing to learn from."""
        agent, network = self.agent, self.network
        if network is not agent.network:
            with agent.locked():
                write_buffers(network, agent.network)

    def _tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return to_device(torch.as_tensor(array, dtype=torch.float32), self.agent.device)

"""Group-relative policy gradient: several masks of the same images are compared, and there is no critic."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.base import Callback, MakeEnv, Metrics, update_metrics
from ahm_gym.agents.losses import sizes
from ahm_gym.agents.networks import available_patches
from ahm_gym.agents.ordering import order_statistics
from ahm_gym.agents.patch_agent import Network, PatchAgent
from ahm_gym.agents.player import Player
from ahm_gym.device.cuda_graphs import Gradients
from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.errors import InputError, check_numbers
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import share_at


class Group(PatchAgent):
    """Draws a group of orders for every image, learns from how their masks compare, and plays one of them.

    After leave-one-out REINFORCE (Kool et al., "Buy 4 REINFORCE Samples, Get a Baseline for Free!", 2019; RLOO,
    Ahmadian et al., 2024) and GRPO (Shao et al., 2024), with a credit for every draw. The masks of a group are measured
    by `env.unwrapped.evaluate`, in one forward pass and without an update of the autoencoder. The value of a patch is
    its mean reward in the other masks of the group, or the mean reward of the image in them where none has it. A draw
    is credited with the reward of its own patch, less the expected value of the draw.

    The value of the drawn patch itself would be a wrong baseline: it depends on the action, and where patches do not
    influence each other it equals the reward, so nothing would be learned.

    The cost is a forward pass of `group_size` masks per image, and one more with the rewards progress and advantage.

    Args:
        observation_shape: number of patches L and width of an embedding D.
        grid: rows and columns of patches; None means a square.
        group_size: masks that are compared for each image, 2 or more.
        entropy_coef: weight of the mean entropy of the draws, relative to rewards of root mean square 1.
        logit_cost: weight of the mean square of the logits; see `A3C`.
        learning_rate: learning rate of Adam.
        max_grad_norm: largest norm of the gradient, which is clipped to it.
        width: width of the network's hidden layers.
        network: conv, attention, or a function that builds another network from the grid.
        seed: seed of the network's initial weights.
        device: device of the network.

    Raises:
        InputError: if the network is unknown, or a number is out of range.
    """

    title = "group"

    def __init__(
        self,
        observation_shape: tuple[int, int],
        *,
        grid: tuple[int, ...] | None = None,
        group_size: int = 4,
        entropy_coef: float = 0.02,
        logit_cost: float = 0.005,
        learning_rate: float = 3e-3,
        max_grad_norm: float = 1.0,
        width: int = 32,
        network: Network = "conv",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        check_numbers("count", group_size=group_size)
        if group_size < 2:
            raise InputError(
                f"`group_size` is {group_size}: choose 2 or more, so that masks can be compared."
            )
        self.group_size: int = group_size
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

    def learn(
        self, make_env: MakeEnv, num_steps: int, *, seed: int | None, callback: Callback | None = None
    ) -> None:
        player = GroupPlayer(self, self.network, make_env(), self.generator, seed)
        for _ in range(num_steps):
            metrics = player.episode()
            if callback is not None and callback(metrics):
                return

    def loss(
        self,
        observation: Float[Tensor, "B L D"],
        order: Int[Tensor, "K B L"],
        chosen: Bool[Tensor, "K B L"],
        reward: Float[Tensor, "K B L"],
        value: Float[Tensor, "K B L"],
    ) -> tuple[Tensor, Tensor]:
        """The loss, and its parts that are reported: policy loss, entropy in nats and relative to the largest.

        Args:
            observation: what the orders were drawn for.
            order: the orders of the group.
            chosen: True for entries of the order that masked their patch by it.
            reward: reward of every patch, in units of the running scale.
            value: value of every patch, from the other masks of the group.
        """
        logits, _, _ = self.network(observation)
        available = available_patches(observation).expand(order.shape).flatten(0, 1)
        logits = logits.expand(order.shape).flatten(0, 1)
        order, chosen, reward, value = (part.flatten(0, 1) for part in (order, chosen, reward, value))
        left = available.gather(1, order)
        draws = order_statistics(logits.gather(1, order), value.gather(1, order), left)
        advantage = reward.gather(1, order) - draws.expected
        policy = -(advantage * draws.log_prob * chosen).sum() / chosen.sum().clamp(min=1)
        entropy, relative, logit_square = sizes(logits, draws, left, available, chosen)
        loss = policy - self.entropy_coef * entropy + self.logit_cost * logit_square
        return loss, torch.stack((policy, entropy, relative)).detach()


class GroupPlayer(Player[Group]):
    """The environment of `Group`, and its loop.

    Raises:
        InputError: if the environment cannot evaluate masks, or builds a mask up in several steps.
    """

    def __init__(
        self,
        agent: Group,
        network: Any,
        env: VectorEnv[Any, Any, Any],
        generator: torch.Generator,
        seed: int | None,
    ) -> None:
        super().__init__(agent, network, env, generator, seed)
        self.judge: Any = env.unwrapped
        if not hasattr(self.judge, "evaluate"):
            raise InputError("the environment has no evaluate(): agent group needs it; use AHM/Masking-v0.")
        parameters = list(network.parameters())
        self._passes = Gradients(agent.loss, parameters, agent.max_grad_norm, records=network.records)

    def episode(self) -> Metrics:
        """Compares a group of masks, learns from them, and masks by the first of their orders; returns metrics."""
        if self.judge.masking_steps != 1:
            raise InputError(
                f"`masking_steps` is {self.judge.masking_steps}: agent group compares whole masks; choose 1."
            )
        agent, observation = self.agent, self.observation
        self.network.train()
        self._observe(observation)
        shape = (agent.group_size * observation.shape[0], observation.shape[1])
        uniform = torch.rand(shape, generator=self.generator)
        order, _, scores, *_ = self._act(
            observation.repeat(agent.group_size, 1, 1), to_device(uniform, agent.device)
        )
        scores = Fetch(scores).wait()
        metrics = self._learn(observation, order, scores) if self.judge.num_guided else {}
        played = scores[: observation.shape[0]].numpy()
        after, reward, _, _, info = self.env.step(played)
        self.see(after)
        return update_metrics(info, reward) | metrics

    def _learn(
        self, observation: Float[Tensor, "B L D"], order: Int[Tensor, "N L"], scores: Float[Tensor, "N L"]
    ) -> Metrics:
        """Measures the masks of these orders and updates the weights by them; returns metrics.

        Raises:
            RunError: if the gradient is not finite.
        """
        agent, scale = self.agent, self.network.reward_scale
        masks = self._masks(scores)
        group = (agent.group_size, -1, scores.shape[1])
        masked, guided = masks.masked.reshape(group), masks.guided.reshape(group)
        reward = torch.as_tensor(self.judge.evaluate(masked, guided).patch_reward, dtype=torch.float32)
        scale.follow(to_device(reward[masked].square().mean(), agent.device))
        value = others_mean(reward, masked)
        drawn = scores.argsort(dim=1, descending=True)  # the order, in main memory
        chosen = guided.flatten(0, 1).gather(1, drawn).reshape(group)
        unit = scale.value()
        reward, value, chosen = (to_device(part, agent.device) for part in (reward, value, chosen))
        inputs = (observation, order.reshape(group), chosen, reward / unit, value / unit)
        loss, parts, norm = self._passes(*inputs)
        policy, entropy, relative, total, size = (
            Fetch(torch.cat((parts, torch.stack((loss, norm))))).wait().tolist()
        )
        agent.check_gradient(size, total)
        agent.write()
        return {
            "agent/policy_loss": policy,
            "agent/draw_entropy": relative,
            "agent/grad_norm": size,
            "train/entropy_loss": -entropy,
        }

    def _masks(self, scores: Float[Tensor, "N L"]) -> Masks:
        """Masks as the environment would draw them by these scores: with its random and its spread patches."""
        env = self.judge
        spread = getattr(env, "spread_fraction", 0.0)
        progress = env.pretrainer.progress if callable(spread) else 0.0
        return draw_masks(
            scores,
            self.agent.grid,
            env.num_masked,
            self.generator,
            guided_fraction=env.num_guided / env.num_masked,
            spread_fraction=share_at(spread, progress, "spread fraction"),
        )


def others_mean(reward: Float[Tensor, "K B L"], masked: Bool[Tensor, "K B L"]) -> Float[Tensor, "K B L"]:
    """Mean reward of each patch in the other masks of its group, or of their whole image where none of them has it."""
    paid = reward * masked

    def of_others(total: Tensor) -> Tensor:
        return total.sum(dim=0) - total

    patches = of_others(masked.float())
    images = of_others(masked.sum(dim=2, keepdim=True).float())
    image = of_others(paid.sum(dim=2, keepdim=True)) / images.clamp(min=1)
    return torch.where(patches > 0, of_others(paid) / patches.clamp(min=1), image)

"""Acts in an environment with a network: the part that all agents with ordered draws share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.agents.networks import ActorCritic, available_patches
from ahm_gym.agents.ordering import scores_of_order
from ahm_gym.agents.patch_agent import PatchAgent
from ahm_gym.device.cuda_graphs import Replay
from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.errors import InputError
from ahm_gym.masking.selection import random_scores


@dataclass
class Transition:
    """One step of a batch of images, as the learner remembers it.

    Rewards stay in main memory until the learner learns from them.
    """

    observation: Float[Tensor, "B L D"]
    order: Int[Tensor, "B L"]
    """The action: patch indices in the order in which they were drawn."""
    available: Bool[Tensor, "B L"]
    """True for patches that could be drawn."""
    guided: Bool[Tensor, "B L"]
    """True for patches that the environment masked by following the order."""
    patch_reward: Float[Tensor, "B L"]
    image_reward: Float[Tensor, " B"]
    ended: Bool[Tensor, " B"]
    logits: Float[Tensor, "B L"]
    """Logits with which the order was drawn."""
    values: Float[Tensor, "B L"]
    """Values of the patches by the critic of that moment."""
    image_value: Float[Tensor, " B"]
    """Its value of the whole mask."""


SomeAgent = TypeVar("SomeAgent", bound=PatchAgent)


class Player(Generic[SomeAgent]):
    """An environment, the network that acts in it, and the observation that comes next.

    Args:
        agent: draws the orders.
        network: the network that acts.
        env: the environment.
        generator: generator of the draws.
        seed: seed of the generator and the environment; None leaves both as they are.

    Raises:
        InputError: if the autoreset mode of the environment is not SAME_STEP.
    """

    def __init__(
        self,
        agent: SomeAgent,
        network: ActorCritic,
        env: VectorEnv[Any, Any, Any],
        generator: torch.Generator,
        seed: int | None,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InputError(
                f"the environment's autoreset mode is {mode}: {agent.title} needs SAME_STEP; build it with "
                "autoreset_mode='SameStep'."
            )
        self.agent: SomeAgent = agent
        self.network: ActorCritic = network
        self.env: VectorEnv[Any, Any, Any] = env
        self.generator: torch.Generator = generator
        self._last: Tensor | None = None
        """What was observed last in an episode that was truncated."""
        self._observe = Replay(self._observed, records=network.records)
        self._act = Replay(self._drawn, records=network.records)
        if seed is not None:
            generator.manual_seed(seed)
        observation, _ = env.reset(seed=seed)
        self.observation: Float[Tensor, "B L D"] = self._tensor(observation)

    def play(self, n_steps: int | None = None) -> tuple[list[Transition], dict[str, Any], np.ndarray, bool]:
        """Acts for `n_steps` steps, or to the end of the episode.

        Returns the transitions, `info` and reward (B,) of the last step, and whether the episode is over.
        """
        self.network.train()
        self._observe(self.observation)
        rollout: list[Transition] = []
        while True:
            observation = self.observation
            shape = (observation.shape[0], observation.shape[1])
            uniform = random_scores(shape, self.generator, self.agent.device)
            order, available, scores, *output = self._act(observation, uniform)
            scores = Fetch(scores).wait().numpy()
            next_observation, reward, terminated, truncated, info = self.env.step(scores)
            if "patch_reward" not in info:
                raise InputError(
                    f"the environment's info has no 'patch_reward': {self.agent.title} needs the reward of every "
                    "patch; use AHM/Masking-v0."
                )
            rollout.append(
                Transition(
                    observation,
                    order,
                    available,
                    torch.as_tensor(info["guided"]).bool(),
                    torch.as_tensor(info["patch_reward"], dtype=torch.float32),
                    torch.as_tensor(reward, dtype=torch.float32),
                    torch.as_tensor(terminated),
                    *output,
                )
            )
            self.see(next_observation)
            over = bool((terminated | truncated).all())
            self._last = self._tensor(info["final_obs"]) if over and not terminated.all() else None
            if over or len(rollout) == n_steps:
                return rollout, info, reward, over

    def _observed(self, observation: Float[Tensor, "B L D"]) -> tuple[Tensor, ...]:
        self.network.observe(observation)
        return ()

    def _drawn(
        self, observation: Float[Tensor, "B L D"], uniform: Float[Tensor, "B L"]
    ) -> tuple[Tensor, ...]:
        """The order drawn for this observation, the patches that could be drawn, the scores of the order, and what the
        network said."""
        with torch.no_grad():
            output = self.network(observation)
            available = available_patches(observation)
            order = self.agent.draw(output.logits, available, uniform)
            return order, available, scores_of_order(order), *output

    def see(self, observation: np.ndarray | Tensor) -> None:
        """Notes the observation that comes next."""
        self.observation = self._tensor(observation)

    def bootstrap(self, rollout: list[Transition]) -> tuple[Float[Tensor, "B L"], Float[Tensor, " B"]]:
        """Values of the patches and of the whole mask after a rollout; 0 if it ended its episode by itself."""
        return self._bootstrap(bool(rollout[-1].ended.all()))

    def _bootstrap(self, ended: bool) -> tuple[Float[Tensor, "B L"], Float[Tensor, " B"]]:
        """Values of the patches and of the whole mask after the rollout; 0 if the episode has ended by itself."""
        if ended:
            zeros = torch.zeros(self.observation.shape[:2], device=self.agent.device)
            return zeros, zeros[:, 0]
        with torch.no_grad():
            self.network.eval()
            after = self.network(self.observation if self._last is None else self._last)
            self.network.train()
        return after.values, after.image_value

    def _tensor(self, array: np.ndarray | Tensor) -> Tensor:
        return to_device(torch.as_tensor(array, dtype=torch.float32), self.agent.device)

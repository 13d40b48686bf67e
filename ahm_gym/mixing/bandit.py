"""A bandit that chooses between strategies by what each has lately been worth."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.errors import InputError, check_numbers, check_seed


class ThompsonSampling:
    """Gaussian Thompson sampling with forgetting, for rewards that change over time.

    Every choice draws a mean reward for each arm from what is believed of it, and takes the arm with the highest draw
    (Thompson, "On the likelihood that one unknown probability exceeds another in view of the evidence of two samples",
    Biometrika 1933; Russo et al., "A tutorial on Thompson sampling", 2018). Each arm is chosen once before that, in
    random order. After every reward all older ones lose a part of their weight, so the belief about an arm that was not
    chosen for long returns to the mean of all arms. That the reward is learning progress follows Graves et al.,
    "Automated curriculum learning for neural networks", ICML 2017, with another bandit than theirs (Exp3.S).

    The belief about an arm is a normal distribution. Its prior is worth one reward that is the mean of all arms, and
    the variance of a reward is that of all remembered ones. Rewards are divided by the mean size of the remembered
    ones, because progress becomes smaller during training, while the relation of the arms may stay.

    Args:
        num_arms: number of arms.
        forgetting: factor of the weight of older rewards for every new one, above 0 and up to 1; 1 forgets nothing.
        seed: seed of all draws.

    Raises:
        InputError: if there is no arm, or the factor is out of range.
    """

    def __init__(self, num_arms: int, *, forgetting: float = 0.95, seed: int = 0) -> None:
        check_numbers("count", num_arms=num_arms)
        check_seed(seed)
        if not 0.0 < forgetting <= 1.0:
            raise InputError(
                f"`forgetting` is {forgetting}: choose a number above 0 and up to 1, such as 0.95."
            )
        self.forgetting: float = forgetting
        self.generator: torch.Generator = torch.Generator().manual_seed(seed)
        self.weight: Float[Tensor, " arms"] = torch.zeros(num_arms, dtype=torch.float64)
        """Sum of the weights of each arm's remembered rewards."""
        self.total: Float[Tensor, " arms"] = torch.zeros(num_arms, dtype=torch.float64)
        """Weighted sum of its rewards, in units of their mean size when they came."""
        self.squares: Float[Tensor, " arms"] = torch.zeros(num_arms, dtype=torch.float64)
        """Weighted sum of their squares."""
        self._size, self._seen = 0.0, 0.0

    @property
    def num_arms(self) -> int:
        """Number of arms."""
        return len(self.weight)

    def choose(self) -> int:
        """The next arm."""
        untried = (self.weight == 0).nonzero().flatten()
        if len(untried):
            return int(untried[int(torch.randint(len(untried), (), generator=self.generator))])
        mean, deviation = self.belief()
        draw = torch.randn(self.num_arms, dtype=torch.float64, generator=self.generator)
        return int((mean + deviation * draw).argmax())

    def learn(self, arm: int, reward: float) -> None:
        """Remembers what an arm paid.

        Raises:
            InputError: if the reward is not finite.
        """
        if not math.isfinite(reward):
            raise InputError(f"the reward of arm {arm} is {reward}: expected a finite number.")
        self._size = self.forgetting * self._size + abs(reward)
        self._seen = self.forgetting * self._seen + 1.0
        reward = reward / max(self._size / self._seen, 1e-30)
        for sums, value in ((self.weight, 1.0), (self.total, reward), (self.squares, reward**2)):
            sums *= self.forgetting
            sums[arm] += value

    def belief(self) -> tuple[Float[Tensor, " arms"], Float[Tensor, " arms"]]:
        """Mean and standard deviation of the belief about each arm, in units of the mean size of a reward."""
        number = self.weight.sum()
        if number == 0:
            return torch.zeros_like(self.weight), torch.ones_like(self.weight)
        mean, square = self.total.sum() / number, self.squares.sum() / number
        variance = square - mean**2
        # Without any difference between rewards the arms are equal, and any positive variance says so.
        variance = variance if variance > 1e-12 * square else torch.ones_like(variance)
        return (self.total + mean) / (self.weight + 1), (variance / (self.weight + 1)).sqrt()

    def play(self, env: gym.Env[Any, Any], *, seed: int | None = None) -> list[dict[str, Any]]:
        """Plays one episode of an environment with discrete actions, such as `AHM/Curriculum-v0`, and learns from it.

        Args:
            env: environment with as many actions as this bandit has arms; its observations are not used.
            seed: seed of the reset.

        Returns:
            The `info` of every step, with its `action` and `reward`.

        Raises:
            InputError: if the environment has other actions.
        """
        space = env.action_space
        if not isinstance(space, gym.spaces.Discrete) or space.n != self.num_arms:
            raise InputError(
                f"the actions of the environment are {space}: this bandit needs Discrete({self.num_arms}), one action "
                "per arm."
            )
        env.reset(seed=seed)
        rows, ended = [], False
        while not ended:
            arm = self.choose()
            _, reward, terminated, truncated, info = env.step(arm + int(space.start))
            self.learn(arm, float(reward))
            rows.append({**info, "action": arm, "reward": float(reward)})
            ended = terminated or truncated
        return rows

    def state_dict(self) -> dict[str, Any]:
        """What was learned, and the state of the generator."""
        return {
            "weight": self.weight.clone(),
            "total": self.total.clone(),
            "squares": self.squares.clone(),
            "size": self._size,
            "seen": self._seen,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        self.weight, self.total, self.squares = (
            state[name].clone() for name in ("weight", "total", "squares")
        )
        self._size, self._seen = state["size"], state["seen"]
        self.generator.set_state(state["generator"])

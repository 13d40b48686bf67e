"""The forms of the action of `AHM/Curriculum-v0`: what it says about the updates of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from ahm_gym.errors import InputError, unknown_name
from ahm_gym.mixing.strategies import Strategy

LEAST_RATIO: float = 0.25
"""Mask ratio of the controller's action -1."""
MOST_RATIO: float = 0.9
"""Mask ratio of the controller's action 1."""

Mixture = list[tuple[Strategy, float]]
"""Strategies with the probabilities, which sum to 1, with which each is drawn for an update."""


class ActionForm(ABC):
    """Base class of the forms of the action."""

    space: gym.Space[Any]
    share_names: list[str]
    """What the shares are of."""

    @abstractmethod
    def mixture(self, action: Any) -> Mixture:
        """The strategies that an action mixes; raises InputError for an action outside the space."""

    @abstractmethod
    def counted(self, strategy: Strategy) -> np.ndarray:
        """What an update with this strategy adds to the shares, one number for each name."""


class StrategyAction(ActionForm):
    """`Discrete(n)`: one of n strategies."""

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        self.strategies: tuple[Strategy, ...] = tuple(strategies)
        self.share_names: list[str] = [strategy.name for strategy in strategies]
        self.space: gym.Space[Any] = gym.spaces.Discrete(len(self.strategies))

    def mixture(self, action: Any) -> Mixture:
        index = np.asarray(action)
        if index.size != 1 or not 0 <= index.item() < len(self.strategies) or index.item() % 1:
            raise InputError(
                f"the action is {action}: expected the number of a strategy, 0 to {len(self.strategies) - 1}."
            )
        return [(self.strategies[int(index.item())], 1.0)]

    def counted(self, strategy: Strategy) -> np.ndarray:
        return np.array([float(one == strategy) for one in self.strategies])


class MixtureAction(StrategyAction):
    """`Box(-1, 1, (n,))`: every update draws one of n strategies, with a probability proportional to (a + 1) / 2.

    If every entry is -1, all strategies are equally probable.
    """

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        super().__init__(strategies)
        self.space: gym.Space[Any] = gym.spaces.Box(-1.0, 1.0, (len(self.strategies),), np.float32)

    def mixture(self, action: Any) -> Mixture:
        weights = (checked_box(action, len(self.strategies)) + 1.0) / 2.0
        if not weights.any():
            weights = np.ones_like(weights)
        return list(zip(self.strategies, (weights / weights.sum()).tolist(), strict=True))


class ControllerAction(ActionForm):
    """`Box(-1, 1, (2,))`: the mask ratio, 0.25 to 0.9, and the guided share, 0 to 1, both linear in the action.

    Its shares are the mean of both over the updates so far.

    Args:
        guide: what the guided patches follow, a name in `KINDS`.
    """

    def __init__(self, guide: str) -> None:
        self.guide: str = Strategy("controller", kind=guide).kind
        self.share_names: list[str] = ["mask_ratio", "guided_fraction"]
        self.space: gym.Space[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def mixture(self, action: Any) -> Mixture:
        ratio, guided = ((checked_box(action, 2) + 1.0) / 2.0).tolist()
        ratio = LEAST_RATIO + (MOST_RATIO - LEAST_RATIO) * ratio
        return [(Strategy("controller", kind=self.guide, mask_ratio=ratio, guided_fraction=guided), 1.0)]

    def counted(self, strategy: Strategy) -> np.ndarray:
        return np.array([strategy.mask_ratio, strategy.guided_fraction])


FORMS: tuple[str, ...] = ("strategies", "mixture", "controller")
"""Names of the forms, for `make_action`."""


def make_action(form: str, strategies: Sequence[Strategy], guide: str) -> ActionForm:
    """The form of the action with this name.

    Raises:
        InputError: if it is not in `FORMS`.
    """
    if form == "strategies":
        return StrategyAction(strategies)
    if form == "mixture":
        return MixtureAction(strategies)
    if form == "controller":
        return ControllerAction(guide)
    raise unknown_name("form of the action", form, FORMS)


def checked_box(action: Any, size: int) -> np.ndarray:
    """The action as double precision; raises InputError unless it has `size` numbers from -1 to 1."""
    values = np.asarray(action, dtype=np.float64)
    if values.shape != (size,) or not (np.abs(values) <= 1.0).all():
        raise InputError(f"the action is {action}: expected {size} numbers from -1 to 1.")
    return values

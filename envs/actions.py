"""What the forms of the action share: whole numbers as actions, and guided patches that are chosen step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.plans import guided_plan
from ahm_gym.errors import InputError


def whole_numbers(actions: Any, limits: np.ndarray, expected: str) -> Tensor:
    """The actions as whole numbers, each from 0 to below its limit.

    Args:
        actions: numbers of any type, in the shape of `limits`.
        limits: the first number that is too high, one for each number of the actions.
        expected: what the message says was expected.

    Raises:
        InputError: for another shape, or a number that is not whole or out of range.
    """
    numbers = np.asarray(actions, dtype=np.float64)
    if numbers.shape != limits.shape:
        raise InputError(f"actions of shape {numbers.shape}: expected {expected}, of shape {limits.shape}.")
    wrong = ~((numbers >= 0) & (numbers < limits) & (np.floor(numbers) == numbers))
    if wrong.any():
        raise InputError(f"actions that hold {numbers[wrong][0]:g}: expected {expected}.")
    return torch.from_numpy(numbers.astype(np.int64))


class StepwiseMaskingVectorEnv(MaskingVectorEnv):
    """Steps that choose the guided patches, part by part; the last step also masks the random rest.

    At least one patch of an image is guided. Takes the arguments of `MaskingVectorEnv` but
    masking_steps: the length of an episode follows from the number of guided patches.
    """

    def __init__(self, num_envs: int = 16, **options: Any) -> None:
        if "masking_steps" in options:
            raise InputError(
                "masking_steps does not go with this form of the action, whose episode is as long as its guided "
                "patches take: leave it out, or use AHM/Masking-v0."
            )
        super().__init__(num_envs, **options)

    def _plan(self, num_guided: int) -> list[tuple[int, int]]:
        return guided_plan(self.num_masked, self._parts(max(1, num_guided)))

    def _parts(self, num_guided: int) -> list[int]:
        """Guided patches of every step, at least one each; `num_guided` in all."""
        raise NotImplementedError

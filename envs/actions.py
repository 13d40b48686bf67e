"""Shared parts of the action forms: integer actions, and masks whose guided patches are chosen step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.envs.plans import guided_plan
from ahm_gym.errors import InputError


def whole_numbers(actions: Any, limits: np.ndarray, expected: str) -> Tensor:
    """The actions as integers, each at least 0 and below its limit.

    Args:
        actions: numbers of any type, in the shape of `limits`.
        limits: exclusive upper bound of each number.
        expected: description of valid actions, for the error message.

    Raises:
        InputError: if the shape differs, or a number is out of range or not whole.
    """
    numbers = np.asarray(actions, dtype=np.float64)
    if numbers.shape != limits.shape:
        raise InputError(
            f"the actions have shape {numbers.shape}: expected {expected}, in shape {limits.shape}."
        )
    wrong = ~((numbers >= 0) & (numbers < limits) & (np.floor(numbers) == numbers))
    if wrong.any():
        raise InputError(f"the actions contain {numbers[wrong][0]:g}: expected {expected}.")
    return torch.from_numpy(numbers.astype(np.int64))


class StepwiseMaskingVectorEnv(MaskingVectorEnv):
    """Chooses the guided patches part by part over several steps; the last step also masks the random rest.

    At least one patch of each image is guided. Accepts the arguments of `MaskingVectorEnv` except
    masking_steps: the number of guided patches sets the length of an episode.
    """

    def __init__(self, num_envs: int = 16, **options: Any) -> None:
        if "masking_steps" in options:
            raise InputError(
                "masking_steps does not apply to this form of the action, in which the number of guided patches sets "
                "the length of an episode: leave it out, or use AHM/Masking-v0."
            )
        super().__init__(num_envs, **options)

    def _plan(self, num_guided: int) -> list[tuple[int, int]]:
        return guided_plan(self.num_masked, self._parts(max(1, num_guided)))

    def _parts(self, num_guided: int) -> list[int]:
        """Number of guided patches of each step: at least one, and `num_guided` in total."""
        raise NotImplementedError

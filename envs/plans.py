"""The number of patches that each step of an episode masks, and how many of them its action chooses."""

from __future__ import annotations

import math
from collections.abc import Callable

from ahm_gym.errors import InputError
from ahm_gym.masking.schedules import MixedMaskRatio
from ahm_gym.masking.selection import count_masked

MaskRatio = float | Callable[[float], float]
"""Share of the patches that is masked, or a function of training progress."""


def masked_count(mask_ratio: MaskRatio, num_patches: int, progress: float) -> int:
    """Number of masked patches per image, at least one and not all, at that training progress.

    Raises:
        InputError: if the ratio is not strictly between 0 and 1.
    """
    return count_masked(num_patches, mask_ratio(progress) if callable(mask_ratio) else mask_ratio)


def least_masked_count(mask_ratio: MaskRatio, num_patches: int) -> int:
    """Smallest number of masked patches during training; any other function is evaluated in steps of one percent.

    Raises:
        InputError: if the ratio is not strictly between 0 and 1 at one of these steps.
    """
    if isinstance(mask_ratio, MixedMaskRatio):
        return min(count_masked(num_patches, ratio) for ratio in mask_ratio.ratios)
    return min(masked_count(mask_ratio, num_patches, percent / 100) for percent in range(101))


def proportional_plan(num_masked: int, num_guided: int, num_steps: int) -> list[tuple[int, int]]:
    """(num_new, num_guided) of `num_steps` steps that mask equal parts, each with its share of guided patches."""
    masked = [round(num_masked * part / num_steps) for part in range(num_steps + 1)]
    # Rounding the running total keeps the guided patches of a step within its new ones, and their sum exact.
    share = num_guided / num_masked
    guided = [math.floor(count * share + 0.5) for count in masked]
    return [(masked[i + 1] - masked[i], guided[i + 1] - guided[i]) for i in range(num_steps)]


def guided_plan(num_masked: int, parts: list[int]) -> list[tuple[int, int]]:
    """(num_new, num_guided) of steps that choose `parts` patches; the last step also masks the random rest."""
    plan = [(part, part) for part in parts]
    plan[-1] = (parts[-1] + num_masked - sum(parts), parts[-1])
    return plan


def equal_parts(count: int, num_parts: int) -> list[int]:
    """`count` split into min(num_parts, count) parts of at least 1 that differ by at most 1."""
    num_parts = min(num_parts, count)
    ends = [count * part // num_parts for part in range(num_parts + 1)]
    return [ends[i + 1] - ends[i] for i in range(num_parts)]


def check_count(name: str, count: int, num_masked: int) -> None:
    """Raises InputError if the count is not from 1 to `num_masked`, the fewest patches masked during training."""
    if not 1 <= count <= num_masked:
        raise InputError(f"`{name}` is {count}: choose from 1 to the {num_masked} patches that are masked.")

"""Shares and ratios that may change during training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ahm_gym.errors import InputError

Share = float | Callable[[float], float]
"""A share of patches or images, 0 to 1, or a function that returns one for the progress of training, 0 to 1."""


def ramp(progress: float, start: float, end: float, top: float) -> float:
    """A linear rise over training: 0 up to progress `start`, `top` from progress `end` on."""
    return top * min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)


def check_mask_ratio(mask_ratio: float, name: str = "mask ratio") -> float:
    """The ratio itself; raises InputError unless it is strictly between 0 and 1."""
    if not 0.0 < mask_ratio < 1.0:
        raise InputError(
            f"{name} {mask_ratio} is out of range: choose a value between 0 and 1, such as 0.75."
        )
    return mask_ratio


@dataclass(frozen=True)
class RisingMaskRatio:
    """A mask ratio that rises linearly from `initial` to `final` with the progress of training, 0 to 1.

    The task becomes harder as the autoencoder improves. After the adaptive masking ratio of AMLP (Wang et al.,
    "Adaptive Masking Lesion Patches for Self-supervised Medical Image Segmentation").

    Raises:
        InputError: if a ratio is not strictly between 0 and 1, or the initial one is above the final one.
    """

    initial: float
    final: float

    def __post_init__(self) -> None:
        check_mask_ratio(self.initial, "initial mask ratio")
        check_mask_ratio(self.final)
        if self.initial > self.final:
            raise InputError(
                f"initial mask ratio {self.initial} is above the final mask ratio {self.final}: the ratio only rises, "
                "choose an initial one up to the final one."
            )

    def __call__(self, progress: float) -> float:
        # This form is exact at the end, and for a constant ratio.
        return max(self.initial, self.final - (self.final - self.initial) * (1.0 - progress))


@dataclass(frozen=True)
class MixedMaskRatio:
    """One of several mask ratios for each update, so that an autoencoder learns easy and hard reconstruction.

    The ratio is a pseudo-random function of the progress of training alone: the same updates have the same ratio for
    every seed and policy, and in a resumed run.

    Raises:
        InputError: if there is no ratio, or one is not strictly between 0 and 1.
    """

    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ratios:
            raise InputError("`mask_ratio` is empty: give a ratio such as 0.75, or several.")
        for ratio in self.ratios:
            check_mask_ratio(ratio)

    def __call__(self, progress: float) -> float:
        return random.Random(progress).choice(self.ratios)


def typical_mask_ratio(mask_ratio: float | tuple[float, ...]) -> float:
    """The ratio at which masks and reconstructions are measured: the mean, if a run mixes several."""
    return sum(mask_ratio) / max(len(mask_ratio), 1) if isinstance(mask_ratio, tuple) else mask_ratio


@dataclass(frozen=True)
class Ramp:
    """A share that changes linearly over training: `first` up to progress `start`, `last` from progress `end` on.

    Raises:
        InputError: if a number is not between 0 and 1, or `start` is above `end`.
    """

    first: float
    last: float
    start: float
    end: float

    def __post_init__(self) -> None:
        check_share(self.first)
        check_share(self.last)
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise InputError(
                f"a ramp from progress {self.start} to {self.end} is out of range: give its start and its end, in this "
                "order, from 0 to 1."
            )

    def __call__(self, progress: float) -> float:
        return self.first + (self.last - self.first) * ramp(progress, self.start, self.end, 1.0)


def check_share(share: float, name: str = "share") -> float:
    """The share itself; raises InputError unless it is from 0 to 1."""
    if not 0.0 <= share <= 1.0:
        raise InputError(f"{name} {share} is out of range: choose a value from 0 to 1.")
    return share


def check_target_fraction(target_fraction: float, *, weighs: bool) -> float:
    """The share of the masked patches that count in the loss, itself.

    Raises:
        InputError: if it is not above 0 and up to 1, or below 1 although something else weighs the patches (`weighs`).
    """
    if not 0.0 < target_fraction <= 1.0:
        raise InputError(
            f"`target_fraction` is {target_fraction}: choose a number above 0 and up to 1, such as 0.5."
        )
    if weighs and target_fraction < 1.0:
        raise InputError(
            f"`target_fraction={target_fraction}` sets the weights of patches in the loss, which the policy or `weigh` "
            "sets itself: leave one of the two out."
        )
    return target_fraction


def share_at(share: Share, progress: float, name: str) -> float:
    """The value of a share at this progress of training; `name` names it in the error message.

    Raises:
        InputError: if the value is not from 0 to 1.
    """
    return check_share(share(progress) if callable(share) else share, name)


def chosen_share(
    name: str, share: float | None, ramp: tuple[float, float] | None, own: Share, *, falls: bool
) -> Share:
    """The share that the settings `NAME_fraction` and `NAME_ramp` ask for, or else `own`.

    Args:
        name: NAME of the settings.
        share: value of NAME_fraction; None if it was not given.
        ramp: value of NAME_ramp, the progress at which the ramp starts and ends; None keeps the share constant.
        own: share of the policy or agent that chooses the masks.
        falls: whether the ramp falls from `share` to 0, instead of rising from 0 to `share`.

    Raises:
        InputError: if a setting is out of range, or there is a ramp but no share.
    """
    if share is None:
        if ramp is not None:
            raise InputError(
                f"`{name}_ramp` has no share to {'fall from' if falls else 'rise to'}: give `{name}_fraction`."
            )
        return own
    check_share(share, f"{name} fraction")
    if ramp is None:
        return share
    try:
        return Ramp(share, 0.0, *ramp) if falls else Ramp(0.0, share, *ramp)
    except InputError as error:
        raise InputError(f"`{name}_ramp`: {error}") from error

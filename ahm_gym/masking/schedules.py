"""Shares and ratios that may change over training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ahm_gym.errors import InputError

Share = float | Callable[[float], float]
"""A share from 0 to 1, of patches or of images, or a function of training progress, 0 to 1."""


def ramp(progress: float, start: float, end: float, top: float) -> float:
    """0 up to `start`, `top` from `end` on, linear between: the share of guided patches over training."""
    return top * min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)


def check_mask_ratio(mask_ratio: float, name: str = "mask ratio") -> float:
    if not 0.0 < mask_ratio < 1.0:
        raise InputError(
            f"{name} {mask_ratio} is out of range: choose a value between 0 and 1, such as 0.75."
        )
    return mask_ratio


@dataclass(frozen=True)
class RisingMaskRatio:
    """The mask ratio at a progress of training, 0 to 1: it rises linearly from `initial` to `final`.

    After the adaptive masking ratio of AMLP (Wang et al., "Adaptive Masking Lesion Patches for
    Self-supervised Medical Image Segmentation"): the task grows harder as the autoencoder gets better.

    Raises:
        InputError: where a ratio is not strictly between 0 and 1, or the initial one above the final one.
    """

    initial: float
    final: float

    def __post_init__(self) -> None:
        check_mask_ratio(self.initial, "initial mask ratio")
        check_mask_ratio(self.final)
        if self.initial > self.final:
            raise InputError(
                f"initial mask ratio {self.initial} is above the final mask ratio {self.final}, and the ratio only "
                "rises: choose one that is not above it."
            )

    def __call__(self, progress: float) -> float:
        # In this form rounding neither misses the final ratio nor moves one that is constant.
        return max(self.initial, self.final - (self.final - self.initial) * (1.0 - progress))


@dataclass(frozen=True)
class Ramp:
    """A share at a progress of training: `first` up to `start`, `last` from `end` on, linear between.

    Raises:
        InputError: where the shares or the progress are not between 0 and 1, or the latter not in order.
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
                f"a ramp from progress {self.start} to {self.end} is out of range: give where it begins and where it "
                "ends, in order, from 0 to 1."
            )

    def __call__(self, progress: float) -> float:
        return self.first + (self.last - self.first) * ramp(progress, self.start, self.end, 1.0)


def check_share(share: float, name: str = "share") -> float:
    if not 0.0 <= share <= 1.0:
        raise InputError(f"{name} {share} is out of range: choose a value from 0 to 1.")
    return share


def share_at(share: Share, progress: float, name: str) -> float:
    """The share at that progress of training; `name` tells what it is of.

    Raises:
        InputError: where it is not from 0 to 1.
    """
    return check_share(share(progress) if callable(share) else share, name)


def chosen_share(
    name: str, share: float | None, ramp: tuple[float, float] | None, own: Share, *, falls: bool
) -> Share:
    """What the settings --NAME-fraction and --NAME-ramp ask for; `own` where they leave it open.

    Args:
        name: of the settings.
        share: at the end of the ramp, or at its beginning where it `falls`; constant without a ramp.
        ramp: progress of training from which to which the share changes.
        own: of whoever chooses the masks.
        falls: whether a ramp goes down to 0, or up from it.

    Raises:
        InputError: where one is out of range, or a ramp has no share.
    """
    if share is None:
        if ramp is not None:
            raise InputError(
                f"--{name}-ramp has no share to go {'from' if falls else 'to'}: give --{name}-fraction."
            )
        return own
    check_share(share, f"{name} fraction")
    if ramp is None:
        return share
    try:
        return Ramp(share, 0.0, *ramp) if falls else Ramp(0.0, share, *ramp)
    except InputError as error:
        raise InputError(f"--{name}-ramp: {error}") from error

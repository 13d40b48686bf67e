"""The two kinds of failure that a person reads.

A message names a setting in backticks, `steps` or `steps=0`; the command line turns it into its flag.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable


class InputError(ValueError):
    """A file, folder or argument that cannot be used.

    The message is one sentence or two: what was given, what was expected, the way out.
    """


class RunError(RuntimeError):
    """A run that could not go on: a non-finite loss, a dead worker, a full disk."""


def unknown_name(kind: str, name: str, known: Iterable[str], unlisted: Collection[str] = ()) -> InputError:
    """The error for a name that is in no table, with the nearest name that is; `unlisted` are too many to tell."""
    choices = sorted(known)
    nearest = difflib.get_close_matches(name, [*choices, *unlisted], n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    more = f", or one of {len(unlisted)} more" if unlisted else ""
    return InputError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(choices)}{more}.")


class Interrupted(RunError):
    """A run that was asked to stop and has saved where it stands."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


NUMBERS: dict[str, tuple[Callable[[int | float], bool], str]] = {
    "count": (lambda number: number >= 1 and float(number).is_integer(), "a whole number from 1 on"),
    "share": (lambda number: 0 <= number <= 1, "a number from 0 to 1"),
    "cost": (lambda number: 0 <= number < math.inf, "0 or a positive number"),
    "size": (lambda number: 0 < number < math.inf, "a positive number"),
}
"""Kinds of numbers: what they must be, and how a message says so."""


def check_numbers(kind: str, **numbers: int | float) -> None:
    """Raises InputError where one of them is not of that kind in `NUMBERS`."""
    fits, expected = NUMBERS[kind]
    for name, number in numbers.items():
        if not fits(number):
            raise InputError(f"`{name}` is {number}: choose {expected}.")


def check_seed(seed: int) -> None:
    """Raises InputError where the seed is not from 0 to 2**63 - 1."""
    if not 0 <= seed < 2**63:
        raise InputError(f"`seed` is {seed}: choose a whole number from 0 to 2**63 - 1.")

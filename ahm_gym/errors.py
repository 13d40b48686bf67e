"""The two kinds of failure that a person reads, and how a command line ends on them."""

from __future__ import annotations

import contextlib
import difflib
import errno
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator


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
            raise InputError(f"{name} is {number}: choose {expected}.")


def check_seed(seed: int) -> None:
    """Raises InputError where the seed is not from 0 to 2**63 - 1."""
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed {seed} is out of range: choose a whole number from 0 on.")


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Turn the failures above into one sentence on stderr and an exit code.

    2 for bad input, a full disk and too little memory, 1 for a run that failed, 130 for Ctrl-C, 143 for a polite kill.
    """
    try:
        yield
    except InputError as error:
        fail(2, str(error))
    except Interrupted as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except RunError as error:
        fail(1, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(2, "out of memory: choose a smaller --batch-size, --image-size or --model.")
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename:
            fail(
                2,
                f"{error.filename}: {error.strerror}: expected the right to use it; change its permissions or those of "
                "its folder, or choose another.",
            )
        if error.errno != errno.ENOSPC:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        fail(2, f"no space left on the device{where}: free some, or choose another --run-dir.")
    except KeyboardInterrupt:
        fail(130, "interrupted.")


def is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, or torch on a processor or a GPU, found no memory."""
    said = str(error)
    return isinstance(error, MemoryError) or "out of memory" in said or "not enough memory" in said


def fail(code: int, message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)

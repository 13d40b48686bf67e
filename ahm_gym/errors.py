"""The exceptions whose messages are written for the user.

A message names a setting in backticks, `steps` or `steps=0`; the command line turns it into the flag.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import math
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from typing import Any


class InputError(ValueError):
    """A file, folder or argument that cannot be used.

    The message is one or two sentences: what was given, what was expected, and what to do.
    """


class RunError(RuntimeError):
    """A run that could not continue, because of a non-finite loss or a dead worker."""


def unknown_name(kind: str, name: str, known: Iterable[str], unlisted: Collection[str] = ()) -> InputError:
    """The error for an unknown name, with a suggestion of the nearest known name.

    Args:
        kind: what the name stands for, such as "mask policy".
        name: the unknown name.
        known: the known names; the message lists them all.
        unlisted: further known names, too many to list.
    """
    choices = sorted(known)
    nearest = difflib.get_close_matches(name, [*choices, *unlisted], n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    more = f", or one of {len(unlisted)} more" if unlisted else ""
    return InputError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(choices)}{more}.")


class Interrupted(RunError):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code: int = 128 + signal_number


def load_package(name: str, needed: str, extra: str, instead: str = "") -> Any:
    """Imports a package that comes with an extra of this project.

    Args:
        name: name of the package.
        needed: what needs it, such as "`ray` needs the package ray".
        extra: the extra that installs it.
        instead: another way out, such as ", or leave it out".

    Raises:
        InputError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f'{needed}, which is not installed: pip install "ahm-gym[{extra}]"{instead}.'
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether numpy, or torch on a CPU or a GPU, ran out of memory."""
    told = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in told)


FAILURES_OF_DISKS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the device", "free some"),
    errno.EDQUOT: ("your disk quota is used up", "free some space"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EIO: ("the disk failed to read or write", "continue with --resume once it is repaired"),
    errno.ESTALE: ("the file system of the network is gone", "continue with --resume once it is back"),
    errno.ENAMETOOLONG: ("a name is too long", "choose a shorter one"),
    errno.ENOENT: ("a file or folder was removed while the program ran", "restore it"),
}
"""What a failed access to a disk is called, and the way out, by the number of the error."""


def disk_failure(error: BaseException) -> str | None:
    """What a failed access to a disk is called, with the way out and without a full stop; None for another error."""
    if not isinstance(error, OSError) or error.errno not in FAILURES_OF_DISKS:
        return None
    happened, way_out = FAILURES_OF_DISKS[error.errno]
    return f"{happened}{f' at {error.filename}' if error.filename else ''}: {way_out}"


def reason_of(error: Exception) -> str:
    """Why one of several jobs failed, in one line; the traceback of an unexpected error goes to standard error."""
    if told := disk_failure(error):
        return f"{told}."
    if isinstance(error, (InputError, RunError)):
        return str(error).splitlines()[0]
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


NUMBERS: dict[str, tuple[Callable[[int | float], bool], str]] = {
    "count": (lambda number: number >= 1 and float(number).is_integer(), "a whole number, 1 or more"),
    "share": (lambda number: 0 <= number <= 1, "a number from 0 to 1"),
    "cost": (lambda number: 0 <= number < math.inf, "0 or a positive number"),
    "size": (lambda number: 0 < number < math.inf, "a positive number"),
}
"""Kinds of numbers: the test of a number, and the words of a message for what is expected."""


def check_numbers(kind: str, **numbers: int | float) -> None:
    """Raises InputError if one of the numbers is not of that kind in `NUMBERS`."""
    fits, expected = NUMBERS[kind]
    for name, number in numbers.items():
        if not fits(number):
            raise InputError(f"`{name}` is {number}: choose {expected}.")


def check_seed(seed: Any) -> None:
    """Raises InputError if the seed is not one whole number between 0 and 2**63 - 1."""
    if not hasattr(seed, "__index__") or not 0 <= int(seed) < 2**63:
        raise InputError(f"`seed` is {seed}: choose a whole number from 0 to 2**63 - 1.")


CONTROLS: dict[int, str] = {
    code: ascii(chr(code))[1:-1]
    for first, last in (
        (0x00, 0x1F), (0x7F, 0x9F), (0x61C, 0x61C), (0x200E, 0x200F), (0x2028, 0x202E), (0x2066, 0x2069),
    )
    for code in range(first, last + 1)
}  # fmt: skip
"""Characters that steer a terminal, end a line or turn the direction of text, each with its escape."""


def printable(text: object) -> str:
    """The text in one line that is safe in a terminal: a name of a file may hold any character but `/`."""
    return str(text).translate(CONTROLS)


def say(sentence: object) -> None:
    """Prints a sentence on standard error, as one line that is safe in a terminal."""
    print(printable(sentence), file=sys.stderr)

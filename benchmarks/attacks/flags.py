"""Gives every flag of every command values that nobody should be able to break it with.

`python benchmarks/attacks/flags.py --tries 200` draws pairs of a flag and a hostile value, runs the command on a small
folder of images, and says which did not end in success or one sentence. A run that would be long is cut short by
`--steps 1` where the flag under test is another one.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tyro
from scenes import build, commands
from trying import Outcome, forked, report

WORDS = """
-1 0 1 -0.0 0.5 nan inf -inf 1e999 1e-320 999999999999999999999999999999 10**9 0x10 1_0 None true [] {} , a,b ' " \\ %s
$HOME ~nobody/x .. / /dev/zero /dev/null /proc/self/mem /nonexistent/x -- -h (?P<patient> [ (a+)+$ medsegbench:
medsegbench:none random a3c none cuda
""".split()
VALUES = [*WORDS, "", " ", "1 2", "1 2 3", "a\nb", "\x1b[31mred", "\u202e", "\U0001f9e0", "x" * 5000]
"""Hostile values, whatever the flag expects."""
POSITIONAL: dict[str, tuple[str, ...]] = {
    "look": ("--data",),
    "predict": ("--scans",),
    "evaluate": ("--scans",),
    "embed": ("--scans",),
}
"""Settings that are given without a flag, as the last argument."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Try hostile values of flags."""

    tries: int = 200
    """Pairs of a flag and a value."""
    seed: int = 0
    """Seed of the choice of pairs."""
    out: Path = Path("runs/attacks/flags.jsonl")
    """File of all outcomes."""


def tries(arguments: Arguments, folder: Path) -> Iterator[Outcome]:
    """Runs the drawn pairs."""
    from ahm_gym.cli import PROGRAMS

    drawn = random.Random(arguments.seed)
    pairs = [
        (command, f"--{field.name.replace('_', '-')}")
        for command in commands(folder, folder)
        for field in dataclasses.fields(PROGRAMS[command][0])
    ]
    for index in range(arguments.tries):
        command, flag = drawn.choice(pairs)
        value = drawn.choice(VALUES)
        usual = commands(folder, folder / f"try-{index}")[command][1:]
        if flag in POSITIONAL.get(command, ()):
            argv = [command, *usual[:-1], value]
        else:
            argv = [command, flag, value, *_without(usual, flag)]
        yield forked(f"{command} {flag} {value[:60]!r}", argv, limit=90)


def _without(argv: list[str], flag: str) -> list[str]:
    """Arguments without a flag and its value, which another value replaces."""
    if flag not in argv:
        return argv
    index = argv.index(flag)
    return argv[:index] + argv[index + 2 :]


def main() -> None:
    """Runs the attack."""
    arguments = tyro.cli(Arguments)
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        sys.exit(report(tries(arguments, folder), out))


if __name__ == "__main__":
    main()

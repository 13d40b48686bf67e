"""Runs commands of ahm-gym in forked processes and judges how they ended: the shared part of the attacks."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ENDINGS = {0, 1, 2, 130, 143}
"""Exit codes that the documentation names: done, failed run, bad input, Ctrl-C, SIGTERM."""
MEMORY = 8 << 30
"""Bytes of address space that a forked command may use."""
UGLY = re.compile(
    r"Traceback \(most recent call last\)|^\w+Error\b|Segmentation fault|core dumped", re.MULTILINE
)
ESCAPES = re.compile(r"\x1b\](?!8;)|\x1b\[\d*[JH]|[\x00\x07\x08]")
"""Control characters that only a hostile name can have brought to the screen."""


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    name: str
    code: int
    seconds: float
    output: str
    fault: str | None
    """Why it did not hold; None: it did."""


def fault_of(code: int, output: str) -> str | None:
    """Why the end of a command is not one that a user can live with, or None."""
    if ugly := UGLY.search(output):
        return f"prints {ugly.group(0)!r}"
    if code not in ENDINGS:
        return f"exit code {code}"
    if code in (1, 2) and "error: " not in output and "\u256d" not in output:
        return f"exit code {code} without a sentence"  # those of tyro stand in a box
    if ESCAPES.search(output):
        return "control characters on the screen"
    return None


def forked(
    name: str, argv: list[str], limit: float = 120.0, before: Callable[[], None] | None = None
) -> Outcome:
    """Runs a command in a fork of this process, which has imported everything, and ends whatever it leaves.

    Args:
        name: what is tried.
        argv: arguments of `ahm-gym`.
        limit: seconds after which it counts as hung.
        before: called in the child first, as to set a limit.
    """
    from ahm_gym import cli

    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(_code_of(lambda: cli.main(argv), before))
        code = _waited(pid, started + limit)
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    fault = f"still running after {limit:g} s" if code is None else fault_of(code, text)
    return Outcome(
        name, -1 if code is None else code, round(time.monotonic() - started, 2), text[-4000:], fault
    )


def _code_of(command: Callable[[], None], before: Callable[[], None] | None) -> int:
    """The exit code of a command that runs in this process; whatever escapes it is printed."""
    code = 0
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        if before is not None:
            before()
        command()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _waited(pid: int, deadline: float) -> int | None:
    """The exit code of a child, negative for a signal; None if it had to be ended. Its group is ended with it."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def started(argv: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a command of `ahm-gym` in a process group of its own; its output is appended to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "ahm_gym", *argv],
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            start_new_session=True,
        )


def report(outcomes: Iterator[Outcome], out: Path) -> int:
    """Prints every fault as it comes, writes all outcomes to `out`, and returns an exit code."""
    faults: list[Outcome] = []
    codes: Counter[int] = Counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            codes[outcome.code] += 1
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            if outcome.fault:
                faults.append(outcome)
                print(f"{outcome.name!r}: {outcome.fault}\n    {outcome.output[-700:]!r}", flush=True)
    print(
        f"{codes.total()} tried, {codes.total() - len(faults)} held; exit codes {dict(sorted(codes.items()))}"
    )
    return 1 if faults else 0

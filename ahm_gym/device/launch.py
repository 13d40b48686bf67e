"""What the environment variables of torchrun say about this process; imports no torch, so that `--help` is quick."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ahm_gym.errors import InputError


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def number_of(name: str, default: int = 0) -> int:
    """A number that torchrun gives to its processes, such as `RANK`; the default without torchrun."""
    return int(os.environ.get(name, default)) if launched() else default


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, only rank 0 of a run prints: what the others would say is the same."""
    if number_of("RANK") == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def begins(run_dir: Path | None) -> bool:
    """Whether `resume` begins the run in this folder: torchrun repeats a command line, the first time included."""
    return launched() and run_dir is not None and not (run_dir / "config.json").is_file()


def check_restarts(resume: bool) -> None:
    """Raises InputError if torchrun may start this command again, and it would then begin another run."""
    restarts = number_of("TORCHELASTIC_MAX_RESTARTS")
    if restarts and not resume:
        raise InputError(
            f"torchrun starts this command again after a failure (--max-restarts {restarts}): give `resume` and "
            "`run_dir`, so that the run goes on from its last checkpoint."
        )


def check_alone(command: str) -> None:
    """Raises InputError if torchrun started several processes of a command that is made for one."""
    size = number_of("WORLD_SIZE", 1)
    if size > 1:
        raise InputError(
            f"{command} runs in one process, and torchrun started {size}: start it without torchrun; pretrain and "
            "finetune divide their work."
        )

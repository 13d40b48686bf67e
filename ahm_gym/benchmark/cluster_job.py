"""One job of a benchmark on a cluster: it runs one group, and keeps its rows in files of its own.

This module and `cluster` are the only ones that import submitit, which comes with the extra `cluster`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
import torch
from submitit.core.utils import DelayedSubmission

from ahm_gym.benchmark.jobs import Failure, Group, run_group
from ahm_gym.benchmark.progress import append_row
from ahm_gym.benchmark.rows import Row, read_lines
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.lines import complete_lines
from ahm_gym.runs.schema import Schema
from ahm_gym.runs.storage import sync, write_atomically

FOLDER: str = "cluster"
"""Folder of a benchmark with what its jobs on a cluster read and write."""


class Submission(Schema):
    """The job that a group was last given to."""

    token: str
    """Names this submission. A job that holds another one is out of date, and does nothing."""
    id: str | None
    """The number that the cluster knows it by; None until it is known."""
    jobs: list[str]
    """What it is to do, in words."""
    place: str
    """Where it runs: SLURM, or the name of the machine for a local job."""


class GroupFiles:
    """What the driver and the job of one group tell each other, as files in a folder that both machines see.

    Args:
        group: the group; its `out` is an absolute path.
    """

    def __init__(self, group: Group) -> None:
        run_dir = group.pretraining.run_dir
        assert run_dir is not None, "the plan names it"
        self.folder: Path = group.out / FOLDER / "groups" / group.data / run_dir.name

    def submission(self) -> Submission | None:
        """The last submission; its id may be known from the job alone, if the driver was killed while it submitted."""
        submission = self._read("job.json")
        started = self._read("started.json")
        if submission is not None and started is not None and submission.token == started.token:
            return started
        return submission

    def submit(self, submission: Submission) -> None:
        """Stores a submission, which takes the place of all earlier ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "job.json", submission.model_dump_json())

    def start(self, token: str, job_id: str) -> bool:
        """Whether a job is still the one to do the work; if so, its id is stored."""
        submission = self._read("job.json")
        if submission is None or submission.token != token:
            return False
        started = submission.model_copy(update={"id": job_id})
        write_atomically(self.folder / "started.json", started.model_dump_json())
        return True

    def rows(self) -> list[Row]:
        """The rows so far."""
        return read_lines(self.folder)

    def failures(self) -> dict[str, str]:
        """The reasons of failures, by the job in words."""
        lines = map(json.loads, complete_lines(self.folder / "failures.jsonl"))
        return {line["job"]: line["reason"] for line in lines}

    def size(self) -> int:
        """Number of bytes of all rows and failures, which grows with each."""
        paths = (self.folder / "rows.jsonl", self.folder / "failures.jsonl")
        return sum(path.stat().st_size for path in paths if path.exists())

    def add(self, outcome: Row | Failure) -> None:
        """Appends a row or a failure."""
        if not isinstance(outcome, Failure):
            append_row(self.folder, outcome)
            return
        path = self.folder / "failures.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"job": str(outcome.job), "reason": outcome.reason}) + "\n")
        sync(path)

    def drop_torn_row(self) -> None:
        """Removes the incomplete row that a kill has left."""
        if rows := self.rows():
            write_atomically(self.folder / "rows.jsonl", "".join(row.line() for row in rows))
        else:
            (self.folder / "rows.jsonl").unlink(missing_ok=True)

    def forget_failures(self) -> None:
        """Removes the failures, so that what failed is run again."""
        (self.folder / "failures.jsonl").unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all files of the group, once its rows are in those of the benchmark."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> Submission | None:
        path = self.folder / name
        try:
            return Submission.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{path} is not what this program has written: delete {self.folder}.") from error


class Preemption(Interrupt):
    """A request to stop that comes from the signal of the cluster alone.

    SIGTERM is no request: SLURM sends it first to jobs that are preempted and also to those that are cancelled.
    """

    def __enter__(self) -> Preemption:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class GroupJob:
    """What a job of the cluster calls: it runs those jobs of a group that have neither a row nor a failure.

    Before the end of its time, and when it is preempted, a job gets a signal. It saves its state and is requeued, and
    then goes on from there; see `requeued`.
    """

    group: Group
    """All its paths are absolute."""
    token: str
    """See `Submission`."""
    local: bool = False
    """Whether it runs on the machine of the driver, by a process of submitit's."""
    threads: int | None = None
    """Number of threads; None leaves the choice to torch."""
    gpus: str | None = None
    """CUDA_VISIBLE_DEVICES of the driver, for local jobs; submitit hides all GPUs from them."""
    grace: int = 60
    """Seconds that it has to save its state after the signal; see `requeued`."""

    def __call__(self) -> None:
        """Runs the group.

        Raises:
            SystemExit: after a request to stop, when it has been requeued.
        """
        files = GroupFiles(self.group)
        if not files.start(self.token, submitit.JobEnvironment().job_id):
            print("A newer job does this work, or it is done.")
            return
        self._set_up()
        files.drop_torn_row()
        ended, failed = {row.key for row in files.rows()}, files.failures()
        left = tuple(job for job in self.group.jobs if job.key not in ended and str(job) not in failed)
        if not left:
            return
        with requeued(self.grace) as preemption, contextlib.suppress(Interrupted):
            for outcome in run_group(replace(self.group, jobs=left), preemption):
                files.add(outcome)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again when the job is requeued: the same, since all state is in files."""
        return DelayedSubmission(self)

    def _set_up(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if not self.local:
            return
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


@contextlib.contextmanager
def requeued(grace: int) -> Iterator[Preemption]:
    """A context in which submitit's signal asks for a stop first, and requeues the job at the end of the context.

    Args:
        grace: seconds after the signal at which the job is requeued without having stopped; what came after its last
            checkpoint is lost then.

    Yields:
        The request to stop.
    """
    number = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
    requeue: Any = signal.getsignal(number)
    preemption = Preemption()

    def ask(received: int, frame: FrameType | None) -> None:
        preemption.signal = signal.SIGTERM
        signal.signal(signal.SIGALRM, lambda *_: requeue(received, None))
        signal.alarm(grace)

    signal.signal(number, ask)
    try:
        yield preemption
    finally:
        signal.alarm(0)
        signal.signal(number, requeue)
    if preemption.signal is not None:
        requeue(number, None)


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended; alone it would work beside the job that takes its place."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)

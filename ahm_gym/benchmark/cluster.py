"""Runs the groups of a benchmark as jobs of a SLURM cluster by submitit, one job a group, and collects their rows.

The machine that submits the jobs and those that run them share the folder of the benchmark and the data. All state is
in that folder: another session finds the jobs of this one, whether or not they have ended.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import submitit
from submitit.core.utils import FailedJobError

import ahm_gym
from ahm_gym.benchmark.cluster_job import FOLDER, GroupFiles, GroupJob, Submission
from ahm_gym.benchmark.cluster_options import OF_SBATCH_ALONE, ClusterOptions
from ahm_gym.benchmark.jobs import Failure, Group, Job
from ahm_gym.benchmark.rows import Row
from ahm_gym.device.signals import ignored_by_children
from ahm_gym.errors import InputError, RunError, say
from ahm_gym.runs.interrupt import Interrupt

ClusterJob: TypeAlias = "submitit.Job[None]"

POLL: dict[bool, float] = {True: 0.2, False: 5.0}
"""Seconds between two looks at the files of the jobs, for local jobs and those of SLURM."""
LARGEST_ARRAY: int = 1000
"""Number of jobs that are submitted at once; SLURM takes 1001 unless it was configured otherwise."""
SQUEUE_EVERY: float = 60.0
"""Seconds between two questions about a job that SLURM's accounting does not know."""
FOREVER: int = 60 * 24 * 365
"""Minutes that a local job has."""
NUM_LINES: int = 10
"""Number of lines shown of the log of a job that died."""


@dataclass
class Task:
    """A group that is to be run or that runs."""

    group: Group
    left: dict[tuple[str, str, str, int, int | None], Job]
    """Its jobs that have neither a row nor a failure."""
    job: ClusterJob | None = None
    """What runs it on the cluster."""
    asked: set[str] = field(default_factory=set)
    """What that job was asked to do, in words."""
    size: int = -1
    """Size of its files when they were last read."""
    next_question: float = 0.0
    """When squeue may be asked again."""

    @property
    def files(self) -> GroupFiles:
        return GroupFiles(self.group)


class Cluster:
    """Gives each group to a job, and yields the rows and failures that the jobs write.

    Args:
        groups: the groups, in the order in which they start.
        options: what each job asks the cluster for.
        interrupt: what ends the wait for the jobs; the jobs themselves go on.

    Raises:
        InputError: by `run`, if jobs of an earlier session may still be alive where this one cannot see them.
        RunError: by `run`, if SLURM refuses the jobs.
    """

    def __init__(self, groups: Sequence[Group], options: ClusterOptions, interrupt: Interrupt) -> None:
        self.options: ClusterOptions = options
        self.interrupt: Interrupt = interrupt
        groups = [with_absolute_paths(group) for group in groups]
        self.waiting: deque[Task] = deque(
            Task(group, {job.key: job for job in group.jobs}) for group in groups
        )
        self.running: list[Task] = []
        self._own: set[str] = set()
        self._place: str = socket.gethostname() if options.local else "SLURM"
        self._executor = executor_of(options, groups[0].out / FOLDER / "jobs") if groups else None

    def run(self) -> Iterator[Row | Failure]:
        """Yields the row or the failure of every job, each once; ends early after a request to stop.

        A group whose job of an earlier session is still alive waits for that job. Rows that were not collected are
        yielded first, and what else has no row is submitted.
        """
        yield from self._take_up()
        while (self.running or self.waiting) and not self.interrupt.requested:
            self._submit()
            time.sleep(POLL[self.options.local])
            for task in list(self.running):
                yield from self._collect(task)

    def _take_up(self) -> Iterator[Row | Failure]:
        """Finds what earlier sessions have left, and yields rows of jobs that have ended."""
        tasks, self.waiting = list(self.waiting), deque()
        for task in tasks:
            submission = task.files.submission()
            if submission is not None and submission.place != self._place:
                raise InputError(
                    f"a job for {task.group} may still run at another place, {submission.place}: give this command "
                    f"there, or, if no job of this benchmark runs there, delete {task.files.folder}."
                )
            if submission is not None and submission.id is not None:
                task.job, task.asked = self._job_of(submission.id), set(submission.jobs)
        for task in tasks:
            if task.job is not None and not self._is_over(task):
                self.running.append(task)
                continue
            yield from self._rows(task)
            if task.left:
                self.waiting.append(task)
            else:
                self._forget(task)
        if self.running:
            ids = ", ".join(task.job.job_id for task in self.running if task.job is not None)
            say(f"note: waiting for {counted(len(self.running))} of an earlier session ({ids}).")

    def _submit(self) -> None:
        """Submits the groups that wait, as far as jobs may run at the same time."""
        room = self.options.parallel - len(self.running) if self.options.local else LARGEST_ARRAY
        tasks = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        if not tasks:
            return
        assert self._executor is not None, "there are groups"
        jobs = [self._group_job(task) for task in tasks]
        submissions = [
            Submission(token=job.token, id=None, jobs=[str(one) for one in job.group.jobs], place=self._place)
            for job in jobs
        ]
        for task, submission in zip(tasks, submissions, strict=True):
            task.files.forget_failures()
            task.files.submit(submission)
        try:
            with ignored_by_children(signal.SIGINT, signal.SIGHUP):  # local jobs outlive this program
                submitted = self._executor.submit_array(jobs)
        except FailedJobError as error:
            raise RunError(f"SLURM has refused the jobs: {' '.join(str(error).split())}") from error
        for task, submission, job in zip(tasks, submissions, submitted, strict=True):
            task.files.submit(submission.model_copy(update={"id": job.job_id}))
            task.job, task.asked, task.size = job, set(submission.jobs), -1
        if not self._own or not self.options.local:
            ids = " to ".join(dict.fromkeys((submitted[0].job_id, submitted[-1].job_id)))
            say(f"note: submitted {counted(len(tasks))} ({ids}); logs are in {self._executor.folder}.")
        self._own.update(job.job_id for job in submitted)
        self.running += tasks

    def _group_job(self, task: Task) -> GroupJob:
        """What the job of a group calls, with a token of its own."""
        local, parallel = self.options.local, self.options.parallel
        delay = self.options.values.get("signal_delay_s", 90)
        assert isinstance(delay, int), "checked when it was read"
        return GroupJob(
            group=replace(task.group, jobs=tuple(task.left.values())),
            token=uuid.uuid4().hex,
            local=local,
            threads=max((os.cpu_count() or 1) // parallel, 1) if local and parallel > 1 else None,
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES") if local else None,
            grace=max(2 * delay // 3, 1),
        )

    def _collect(self, task: Task) -> Iterator[Row | Failure]:
        """Yields what is new of a group; once its job has ended, also the failures of what it has left."""
        is_over = self._is_over(task)
        size = task.files.size()
        if size != task.size or is_over:
            task.size = size
            yield from self._rows(task)
            failures = task.files.failures()
            for job in [job for job in task.left.values() if str(job) in failures]:
                yield self._failed(task, job, failures[str(job)])
        if not is_over:
            return
        self.running.remove(task)
        missing = [job for job in task.left.values() if str(job) in task.asked]
        if missing:
            reason = self._why(task)
            for job in missing:
                yield self._failed(task, job, reason)
        self._forget(task)
        if task.left:  # this session asks for more than the job of an earlier one was asked for
            self.waiting.append(task)

    def _rows(self, task: Task) -> Iterator[Row]:
        for row in task.files.rows():
            if task.left.pop(row.key, None) is not None:
                yield row

    def _failed(self, task: Task, job: Job, reason: str) -> Failure:
        del task.left[job.key]
        return Failure(job, reason)

    def _why(self, task: Task) -> str:
        """Why a job has ended without all its rows; the last lines of its log are printed on standard error."""
        assert task.job is not None, "it has run"
        log = task.job.paths.stdout
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        say(f"The last lines of the log of {task.group}, {log}:")
        for line in text.splitlines()[-NUM_LINES:] or ["(empty)"]:
            say(f"    {line}")
        state = "killed, or out of memory?" if self.options.local else f"SLURM calls it {task.job.state}"
        return f"its job {task.job.job_id} ended without this row ({state}); see {log}"

    def _is_over(self, task: Task) -> bool:
        """Whether the job of a group has ended, whatever it has left."""
        job = task.job
        assert job is not None, "it has been submitted"
        if self.options.local:
            return job.done() if job.job_id in self._own else not is_controller(job)
        if job.done():
            return True
        if job.state != "UNKNOWN" or time.monotonic() < task.next_question:
            return False
        task.next_question = time.monotonic() + SQUEUE_EVERY
        return not is_queued(job.job_id)

    def _job_of(self, job_id: str) -> ClusterJob:
        """A job that an earlier session has submitted."""
        assert self._executor is not None, "there are groups"
        return self._executor.job_class(self._executor.folder, job_id)

    def _forget(self, task: Task) -> None:
        """Removes the files of a group whose rows have been stored, but not its log."""
        task.files.clear()
        if task.job is not None:
            for path in (task.job.paths.submitted_pickle, task.job.paths.result_pickle):
                path.unlink(missing_ok=True)


def counted(number: int) -> str:
    """A number of jobs in words."""
    return f"{number} job{'s' * (number != 1)}"


def with_absolute_paths(group: Group) -> Group:
    """The group with absolute paths, for a job that may start in another folder."""
    pretraining = group.pretraining
    paths = {name: getattr(pretraining, name) for name in ("run_dir", "data_root")}
    absolute = {name: path.absolute() for name, path in paths.items() if path is not None}
    return replace(group, out=group.out.absolute(), pretraining=replace(pretraining, **absolute))


def check_cluster(options: ClusterOptions) -> None:
    """Raises InputError if there is no SLURM on this machine, unless jobs are to run here."""
    if not options.local and None in (shutil.which("sbatch"), shutil.which("srun")):
        raise InputError(
            "`slurm` needs the commands of SLURM, sbatch and srun, and this machine has none: run this on a login node "
            "of the cluster, or try it here with `slurm=local`."
        )


def executor_of(options: ClusterOptions, folder: Path) -> submitit.LocalExecutor | submitit.SlurmExecutor:
    """What submits the jobs, with its files in a folder."""
    given: dict[str, Any] = dict(options.values)
    retries = given.pop("max_num_timeout", 3)
    if options.local:
        executor = submitit.LocalExecutor(folder, max_num_timeout=retries, python=python_command())
        executor.update_parameters(
            timeout_min=given.get("time", FOREVER),
            signal_delay_s=given.get("signal_delay_s", 90),
            stderr_to_stdout=True,
        )
        return executor
    executor = submitit.SlurmExecutor(folder, max_num_timeout=retries, python=python_command())
    more = {name.replace("_", "-"): given.pop(name) for name in OF_SBATCH_ALONE if name in given}
    executor.update_parameters(
        **{"job_name": "ahm-gym", "stderr_to_stdout": True, "additional_parameters": more, **given}
    )
    return executor


def python_command() -> str:
    """The command that starts Python so that a job finds what this process finds: a clone, and PYTHONPATH."""
    root = Path(ahm_gym.__file__).resolve().parents[1]
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [str(root)] * (root / "pyproject.toml").exists() + [os.path.abspath(path) for path in given]
    variables = [f"PYTHONPATH={os.pathsep.join(dict.fromkeys(paths))}"] * bool(paths)
    return shlex.join(["env", *variables, sys.executable])


def is_controller(job: ClusterJob) -> bool:
    """Whether submitit's process for a local job of an earlier session is alive."""
    if Path("/proc/self/cmdline").exists():
        path = Path("/proc", job.job_id, "cmdline")
        found = path.read_text(errors="replace") if path.exists() else ""
    else:
        command = ["ps", "-ww", "-o", "args=", "-p", job.job_id]
        found = subprocess.run(command, capture_output=True, text=True).stdout
    return "submitit.local._local" in found and str(job.paths.folder) in found


def is_queued(job_id: str) -> bool:
    """Whether squeue knows a job. If squeue itself fails, yes."""
    command = ["squeue", "--noheader", "--jobs", job_id]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return True
    return bool(found.stdout.strip()) or (found.returncode != 0 and "Invalid job id" not in found.stderr)

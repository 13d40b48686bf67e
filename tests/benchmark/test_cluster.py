"""A benchmark as jobs of a cluster; only the slow tests start processes."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import submitit
from programs import ROOT, run, write_discs
from submitit.core.utils import DelayedSubmission

from ahm_gym.benchmark import cluster, cluster_job, evaluations, jobs
from ahm_gym.benchmark import run as benchmark
from ahm_gym.benchmark.cluster import Cluster, executor_of, with_absolute_paths
from ahm_gym.benchmark.cluster_job import GroupFiles, GroupJob, Submission
from ahm_gym.benchmark.cluster_options import read_options
from ahm_gym.benchmark.config import BenchmarkConfig
from ahm_gym.benchmark.jobs import Failure
from ahm_gym.benchmark.rows import read_lines
from ahm_gym.benchmark.run import run_benchmark
from ahm_gym.errors import InputError, Interrupted, RunError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.defaults import with_learning_rate
from ahm_gym.runs.interrupt import Interrupt

WRITE_REPORT = benchmark.write_report
OF_TIME = ("seconds", "images_per_second", "limit_share", "peak_memory_mib")


@pytest.fixture(scope="module")
def settings(discs):
    return BenchmarkConfig(
        data=(str(discs),), policies=("random",), labels=("4",), seeds=1, tasks=("probe",), baselines=(),
        pretrain=with_learning_rate(PretrainConfig(steps=2, batch_size=8, image_size=32)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(settings, tmp_path_factory):
    """The rows of `--jobs 1`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations, "NUM_DRAWS", 2)
        patch.setattr(benchmark, "write_report", lambda out: None)
        return timeless(
            run_benchmark(dataclasses.replace(settings, out=tmp_path_factory.mktemp("one") / "out"))
        )


@pytest.fixture
def config(settings, tmp_path):
    return dataclasses.replace(settings, out=tmp_path / "out", slurm="local")


class FakeJob(submitit.Job):
    """A job of a cluster without processes."""

    def _register_in_watcher(self):
        pass

    def done(self):
        return True


class FakeCluster:
    """Runs every job at once in this process, unless `dies` says so of its group."""

    job_class = FakeJob

    def __init__(self):
        self.submitted = []
        self.alive = set()

    def __call__(self, options, folder):
        self.folder = folder
        return self

    def dies(self, job):
        return False

    def submit_array(self, given):
        self.folder.mkdir(parents=True, exist_ok=True)
        return [self.submit(job) for job in given]

    def submit(self, job):
        fake = FakeJob(self.folder, str(100 + len(self.submitted)))
        self.submitted.append(job.group.pretraining.policy)
        os.environ["SUBMITIT_LOCAL_JOB_ID"] = fake.job_id
        if self.dies(job):
            fake.paths.stdout.write_text("one\ntwo\noom-kill\n")
        else:
            job()
        return fake


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    fake = FakeCluster()
    monkeypatch.setattr(evaluations, "NUM_DRAWS", 2)
    monkeypatch.setattr(benchmark, "write_report", lambda out: None)  # takes a second
    monkeypatch.setattr(cluster, "executor_of", fake)
    monkeypatch.setattr(cluster, "POLL", {True: 0.0, False: 0.0})
    monkeypatch.setattr(cluster, "is_controller", lambda job: job.job_id in fake.alive)
    monkeypatch.setattr(cluster_job, "_end_with", lambda parent: None)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "1")
    return fake


def timeless(out):
    """The lines of the rows without what depends on time."""
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_TIME} for line in lines]


def groups_of(config):
    """The groups as the driver hands them to jobs: those of scratch and of random masks."""
    return [with_absolute_paths(group) for group in benchmark.plan(config, benchmark.open_all(config))]


def submitted(group, token="mine", job_id="7"):
    """A job of a group, submitted by a driver that was killed then."""
    files = GroupFiles(group)
    asked = [str(job) for job in group.jobs]
    files.submit(Submission(token=token, id=job_id, jobs=asked, place=socket.gethostname()))
    return GroupJob(group, token), files


def test_a_cluster_yields_the_rows_of_one_process_bit_for_bit_and_ends_with_the_same_files(
    config, expected, fake, capsys, monkeypatch
):
    monkeypatch.setattr(benchmark, "write_report", WRITE_REPORT)
    run_benchmark(config)
    assert timeless(config.out) == expected and len(expected) == 4
    assert fake.submitted == ["scratch", "random"]
    assert "4 of 4 | discs, random, seed 0: probe, 4 labels, Dice" in capsys.readouterr().err
    assert (config.out / "report.html").exists() and not list(config.out.glob("cluster/groups/*/*"))
    run_benchmark(config)
    assert len(fake.submitted) == 2 and timeless(config.out) == expected


def test_a_job_that_dies_fails_alone_and_the_same_command_submits_it_again(config, expected, fake, capsys):
    fake.dies = lambda job: job.group.pretraining.policy == "random"
    with pytest.raises(RunError, match="2 jobs failed.*its job 101 ended without this row.*101_0_log.out"):
        run_benchmark(config)
    assert timeless(config.out) == expected[:2]
    assert capsys.readouterr().err.count("    oom-kill\n") == 1
    del fake.dies
    run_benchmark(config)
    assert fake.submitted == ["scratch", "random", "random"] and timeless(config.out) == expected


def test_a_failure_has_the_reason_of_the_job_and_is_forgotten_with_it(config, expected, fake, monkeypatch):
    monkeypatch.setattr(jobs, "pretrain", lambda *_, **__: (_ for _ in ()).throw(RunError("the loss is nan")))
    with pytest.raises(RunError, match="2 jobs failed.*: the loss is nan"):
        run_benchmark(config)
    assert timeless(config.out) == expected[:2] and not GroupFiles(groups_of(config)[0]).folder.exists()


def test_rows_that_were_not_collected_are_merged_once_and_only_the_rest_is_submitted(
    config, expected, fake, monkeypatch
):
    """The driver is killed, one job ends without it, and the other is killed in its second row."""
    whole, broken = groups_of(config)
    config.out.mkdir()
    benchmark.write_settings(config, benchmark.open_all(config), "")
    for group in (whole, broken):
        job, files = submitted(group)
        job()
    first, second = (files.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (files.folder / "rows.jsonl").write_text(first + second[:50])
    merged = read_lines(GroupFiles(whole).folder)[0]
    benchmark.append_row(config.out, merged)
    monkeypatch.setattr(jobs, "pretrain", None)
    run_benchmark(config)
    assert fake.submitted == ["random"]
    assert sorted(map(str, timeless(config.out))) == sorted(map(str, expected))


def test_a_living_job_is_waited_for_and_what_it_was_not_asked_for_comes_after_it(config, fake):
    group = groups_of(config)[0]
    wanted = dataclasses.replace(group, jobs=group.jobs[:1])
    job, _ = submitted(wanted)
    fake.alive.add("7")
    driver = Cluster([group], read_options("local"), Interrupt()).run()
    looks = []

    def look():
        looks.append(len(fake.submitted))
        if len(looks) == 2:
            job()
            fake.alive.clear()

    original = cluster.Cluster._is_over
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.Cluster, "_is_over", lambda self, task: (look(), original(self, task))[1])
        kinds = [row.kind for row in driver]
    assert kinds == ["pretrain", "probe"] and looks[:2] == [0, 0] and fake.submitted == ["scratch"]


def test_a_living_job_of_a_driver_that_was_killed_while_it_submitted_is_found(config, fake):
    group = groups_of(config)[0]
    job, files = submitted(group, job_id=None)
    assert files.submission().id is None
    job()
    assert files.submission().id == "1"
    fake.alive.add("1")
    driver = Cluster([group], read_options("local"), Interrupt())
    rows = driver.run()
    assert next(rows).kind == "pretrain" and len(driver.running) == 1 and not fake.submitted


def test_jobs_that_may_live_where_they_cannot_be_seen_are_not_submitted_again(config, fake):
    group = groups_of(config)[0]
    files = GroupFiles(group)
    files.submit(Submission(token="mine", id="7", jobs=[], place="SLURM"))
    with pytest.raises(
        InputError, match="may still run at another place, SLURM: give this command there, or"
    ):
        list(Cluster([group], read_options("local"), Interrupt()).run())
    assert not fake.submitted


def test_a_job_that_is_out_of_date_does_nothing(config, capsys):
    group = groups_of(config)[0]
    old, files = submitted(group, "old")
    submitted(group, "new")
    old()
    assert not files.rows() and "A newer job does this work" in capsys.readouterr().out
    files.clear()
    old()
    assert not files.folder.exists()


def test_ctrl_c_ends_the_wait_alone_and_names_the_command(config, fake, monkeypatch):
    monkeypatch.setattr(FakeJob, "done", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    fake.submit_array = lambda given: [FakeJob(fake.folder, "100") for _ in given]
    message = (
        "stopped: 4 of 4 jobs are left; those on the cluster go on, and this collects their rows: ahm-gym x"
    )
    with pytest.raises(Interrupted, match=message):
        run_benchmark(config, command="ahm-gym x")


def test_a_preempted_job_saves_its_state_is_requeued_and_goes_on_to_the_same_rows(
    config, expected, monkeypatch
):
    group = groups_of(config)[1]
    job, files = submitted(group)
    asked, steps = [], []
    pretrain = jobs.pretrain

    def preempted(settings, **options):
        steps.append(len(list((group.pretraining.run_dir / "checkpoint").glob("step-1"))))
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)
        return pretrain(settings, **options)

    monkeypatch.setattr(jobs, "pretrain", preempted)
    before = [
        signal.signal(number, lambda *given: asked.append(given))
        for number in (signal.SIGUSR2, signal.SIGTERM)
    ]
    try:
        job()
        assert [number for number, _ in asked] == [signal.SIGTERM, signal.SIGUSR2] and not files.rows()
        again = job.checkpoint()
        assert isinstance(again, DelayedSubmission) and again.function == job
        again.result()
    finally:
        for number, handler in zip((signal.SIGUSR2, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert steps == [0, 1] and timeless(files.folder) == expected[2:]


def test_a_requeued_job_does_not_repeat_what_failed(config):
    group = groups_of(config)[0]
    job, files = submitted(group)
    files.add(Failure(group.jobs[0], "broken"))
    job()
    assert [row.kind for row in files.rows()] == ["probe"] and list(files.failures().values()) == ["broken"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("partition=gpu,gpus=1,time=120", {"partition": "gpu", "gpus": "1", "time": 120}),
        ("--cpus-per-task=4, slurm_timeout_min=9,mem_gb=8", {"cpus_per_task": 4, "time": 9, "mem": "8G"}),
        ("time=5,nodelist=a1,a2,qos=low", {"time": 5, "nodelist": "a1,a2", "qos": "low"}),
        ("local,array_parallelism=3", {"array_parallelism": 3}),
    ],
)
def test_options_have_the_names_of_sbatch_or_submitit(text, values):
    assert read_options(text).values == values and read_options(text).local == text.startswith("local")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slurm": "partitoin=gpu,time=1"}, "'partitoin': did you mean 'partition'? choose one of account,"),
        (
            {"slurm": "partition=gpu"},
            "has no time limit, and SLURM's own is often too short: add time=MINUTES",
        ),
        (
            {"slurm": "gpu"},
            "'gpu' is no option: write options such as partition=gpu,gpus=1,time=120, or local",
        ),
        ({"slurm": "time=1:30:00"}, "`slurm` has time=1:30:00: choose a whole number of minutes, 1 or more"),
        ({"slurm": "time=0"}, "`slurm.time` is 0: choose a whole number, 1 or more"),
        ({"slurm": "time=1,qos="}, "`slurm` gives qos no value"),
        ({"slurm": "local,gpus=1"}, "where gpus means nothing: leave it out; known there are time,"),
        ({"jobs": 2}, "`jobs=2` is for this machine alone: leave it out with `slurm`"),
        (
            {"time_budget": 5.0},
            "`time_budget=5` does not reach the jobs of a cluster: leave it out with `slurm`",
        ),
    ],
)
def test_what_does_not_fit_a_cluster_is_refused_in_one_sentence(config, change, message):
    with pytest.raises(InputError) as refusal:
        run_benchmark(dataclasses.replace(config, **change))
    assert message in str(refusal.value) and not config.out.exists()


def test_without_submitit_the_command_says_what_to_install(discs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    result = run("benchmark.py", "--data", discs, "--slurm", "local", "--out", "out", cwd=tmp_path)
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    assert (
        'error: --slurm needs submitit, which is not installed: pip install "ahm-gym[cluster]"'
        in result.stderr
    )


def test_without_slurm_the_command_says_where_to_run_it(config, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        InputError, match="sbatch and srun, and this machine has none: run this on a login node"
    ):
        run_benchmark(dataclasses.replace(config, slurm="time=5"))
    assert not config.out.exists()


def test_slurm_gets_one_array_with_the_options_and_the_place_of_the_clone(config, tmp_path, monkeypatch):
    programs = {
        "sbatch": 'cp "$1" script; echo Submitted batch job 12',
        "srun": "",
        "sacct": "echo 'JobID|State'",
        "squeue": 'echo "$@" >>asked; echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", "plugins")
    monkeypatch.setattr(cluster, "executor_of", executor_of)
    options = read_options("partition=gpu,gpus=1,time=120,max_num_timeout=5")
    driver = Cluster(groups_of(config), options, Interrupt())
    failures = list(driver.run())
    script = (tmp_path / "script").read_text()
    for line in (
        "partition=gpu",
        "gpus=1",
        "time=120",
        "array=0-1%2",
        "signal=USR2@90",
        "job-name=ahm-gym",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert f"env PYTHONPATH={ROOT}:{tmp_path}/plugins {sys.executable} -u -m submitit" in script
    assert (
        len(failures) == 4
        and "its job 12_1 ended without this row (SLURM calls it UNKNOWN)" in failures[3].reason
    )
    assert "--jobs 12_0" in (tmp_path / "asked").read_text()


def processes(folder):
    """The ids of the running jobs of a benchmark, and not of submitit's processes that started them."""
    text = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True).stdout
    return [
        int(line.split()[0]) for line in text.splitlines() if "core._submit" in line and str(folder) in line
    ]


@pytest.mark.slow
def test_twelve_groups_survive_two_kills_of_the_driver_and_one_of_a_job(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "ahm_gym", "benchmark", "--data", "discs.npz", "--policies", "block,grid",
        "--labels", "4", "--seeds", "3", "--tasks", "plain", "--baselines", "--pretrain-steps", "4",
        "--finetune-steps", "2", "--batch-size", "8", "--image-size", "32", "--out", "out",
        "--slurm", "local,array_parallelism=2",
    ]  # fmt: skip
    options = {"cwd": data.parent, "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}}

    def rows():
        return len((out / "rows.jsonl").read_text().splitlines()) if (out / "rows.jsonl").exists() else 0

    def num_started():
        return len(list(out.glob("cluster/groups/*/*/started.json")))

    def start():
        with (tmp_path / "err").open("w") as err:  # a pipe would only end with the jobs
            return subprocess.Popen(command, stderr=err, stdout=err, **options)

    def wait_until(condition):
        while not condition():
            assert driver.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.1)

    for wanted in (2, 8):
        driver = start()
        wait_until(lambda wanted=wanted: rows() >= wanted and len(processes(out)) == num_started() == 2)
        driver.kill()
        driver.wait()
    killed, *stopped = processes(out)
    os.kill(killed, signal.SIGKILL)
    for job in stopped:  # so that it is still alive when the next driver looks for it
        os.kill(job, signal.SIGSTOP)
    driver = start()
    wait_until(
        lambda: not stopped or "waiting for 1 job of an earlier session" in (tmp_path / "err").read_text()
    )
    for job in stopped:
        os.kill(job, signal.SIGCONT)
    assert driver.wait(timeout=900) == 0, (tmp_path / "err").read_text()
    keys = [row.key for row in read_lines(out)]
    assert len(keys) == len(set(keys)) == 24 and not processes(out)
    assert "24 of 24 | " in (tmp_path / "err").read_text()

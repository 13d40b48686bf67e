"""Runs programs where a machine has too little: a full or read-only disk, no home, little shared memory, a hung worker.

`sudo python benchmarks/attacks/limits.py` needs Linux and root, because it mounts file systems, in a namespace of its
own, of which nothing is left. After a full disk the disk is enlarged, and the same run has to continue to the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import tyro
from scenes import build, commands
from trying import Outcome, fault_of, report, started

NOBODY = 54321
"""Number of a user that has no name and no home."""
INSIDE = "AHM_ATTACK_NAMESPACE"
WRITTEN_ONCE = ("look", "evaluate", "probe", "export", "embed")
"""Commands that refuse a folder with results of theirs."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Run programs where a machine has too little."""

    parts: tuple[str, ...] = ("homeless", "read_only", "little_shared_memory", "hung_workers", "full_disks")
    """What is lacking."""
    sizes: tuple[int, ...] = (100, 700, 2000, 5000, 9000, 16000)
    """Sizes of the disk in KiB that becomes full."""
    out: Path = Path("runs/attacks/limits.jsonl")
    """File of all outcomes."""


def run(name: str, argv: list[str], log: Path, limit: float = 180, **environment: str) -> Outcome:
    """Runs a command to its end, or ends it after `limit` seconds."""
    log.unlink(missing_ok=True)
    began = time.monotonic()
    process = started(argv, log, **environment)
    try:
        code: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    end(process)
    output = log.read_text(errors="replace")
    fault = f"still running after {limit:g} s" if code is None else fault_of(code, output)
    return Outcome(
        name, -1 if code is None else code, round(time.monotonic() - began, 1), output[-4000:], fault
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a program and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def with_end(outcome: Outcome, codes: set[int]) -> Outcome:
    """An outcome that has to end with one of `codes`."""
    if outcome.fault is None and outcome.code not in codes:
        return dataclasses.replace(outcome, fault=f"exit code {outcome.code}, not {sorted(codes)}")
    return outcome


def full_disks(scene: Path, sizes: tuple[int, ...]) -> Iterator[Outcome]:
    """Lets the disk run full at every size, then enlarges it and continues."""
    place = scene / "disk"
    place.mkdir()
    for size in sizes:
        for name, argv in commands(scene, place).items():
            mount(place, f"size={size}k")
            codes = (
                {0, 1, 2} if name == "benchmark" else {0, 2}
            )  # 1: some jobs failed, and the rest is reported
            yield with_end(run(f"{name}: disk of {size} KiB", argv, scene / "log"), codes)
            subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)
            resumes = name in ("pretrain", "finetune") and (place / "run" / "config.json").exists()
            if name in WRITTEN_ONCE:
                clear(place)
            again = [name, "--resume", "--run-dir", str(place / "run")] if resumes else argv
            yield with_end(run(f"{name}: goes on after {size} KiB", again, scene / "log"), {0})
            subprocess.run(["umount", str(place)], check=True)


def clear(folder: Path) -> None:
    """Removes all that a folder holds."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_only(scene: Path) -> Iterator[Outcome]:
    """Runs every program where nothing can be written."""
    place = scene / "fixed"
    place.mkdir()
    mount(place, "ro")
    for name, argv in commands(scene, place).items():
        yield with_end(run(f"{name}: read-only", argv, scene / "log"), {2})
    subprocess.run(["umount", str(place)], check=True)


def homeless(scene: Path) -> Iterator[Outcome]:
    """Runs every program without a home, as a user without a name who may read everything and write one folder."""
    place = scene / "homeless"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    gone = ("HOME", "USER", "LOGNAME")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment["AHM_CACHE"] = str(place / "cache")
    identity = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    rights = [f"--{kind}=-all,+dac_read_search" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
    for name, argv in commands(scene, place).items():
        log = scene / "log"
        with log.open("wb") as file:
            command = ["setpriv", *identity, *rights, sys.executable, "-m", "ahm_gym", *argv]
            done = subprocess.run(command, stdout=file, stderr=file, env=environment, cwd=place)
        output, code = log.read_text(errors="replace"), done.returncode
        outcome = Outcome(f"{name}: no home, no name", code, 0, output[-4000:], fault_of(code, output))
        yield with_end(outcome, {0})
        shutil.rmtree(place / "run", ignore_errors=True)


def little_shared_memory(scene: Path) -> Iterator[Outcome]:
    """Pretrains with workers where /dev/shm is small, as in a container."""
    for size in ("64m", "8m", "1m"):
        mount(Path("/dev/shm"), f"size={size}")
        argv = [
            "pretrain",
            "--data",
            str(scene / "data"),
            "--image-size",
            "256",
            "--batch-size",
            "64",
            "--steps",
            "2",
        ]
        workers = [
            "--policy",
            "a3c",
            "--num-workers",
            "2",
            "--data-workers",
            "2",
            "--run-dir",
            str(scene / f"shm{size}"),
        ]
        yield with_end(
            run(f"pretrain: {size} of shared memory", [*argv, *workers], scene / "log", 300), {0, 2}
        )
        subprocess.run(["umount", "/dev/shm"], check=True)


def hung_workers(scene: Path) -> Iterator[Outcome]:
    """Stops a worker of a program that runs; it has to end with a sentence within seven minutes."""
    for index, kind in enumerate(("--data-workers", "--num-workers")):
        argv = [
            "pretrain",
            "--data",
            str(scene / "data"),
            "--image-size",
            "32",
            "--batch-size",
            "4",
            "--steps",
            "100000",
        ]
        argv += [kind, "2", "--policy", "a3c", "--run-dir", str(scene / f"hung{index}")]
        log = scene / "log"
        log.unlink(missing_ok=True)
        process = started(argv, log)
        worker = last_worker(process.pid, log)
        if worker is not None:
            os.kill(worker, signal.SIGSTOP)
        try:
            code = process.wait(420)
        except subprocess.TimeoutExpired:
            code = -1
        end(process)
        output = log.read_text(errors="replace")
        fault = "hangs" if code == -1 else fault_of(code, output) or ("no worker" if worker is None else None)
        yield Outcome(f"pretrain: hung worker of {kind}", code, 0, output[-4000:], fault)


def last_worker(parent: int, log: Path, limit: float = 180) -> int | None:
    """The worker that a program has started last, once it has made updates; None if there is none."""
    began = time.monotonic()
    while "steps/s" not in log.read_text(errors="replace") and time.monotonic() - began < limit:
        time.sleep(1)
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    workers = [
        child for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return int(workers[-1]) if workers else None


def mount(place: Path, options: str) -> None:
    """Mounts an empty file system in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def tries(arguments: Arguments, scene: Path) -> Iterator[Outcome]:
    """The parts asked for."""
    parts = {
        "homeless": homeless,
        "read_only": read_only,
        "little_shared_memory": little_shared_memory,
        "hung_workers": hung_workers,
        "full_disks": lambda place: full_disks(place, arguments.sizes),
    }
    for part in arguments.parts:
        yield from parts[part](scene)


def main() -> None:
    """Runs the attack in a namespace of its own."""
    arguments = tyro.cli(Arguments)
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as name:
        scene = Path(name)
        scene.chmod(0o755)
        build(scene)
        sys.exit(report(tries(arguments, scene), out))


if __name__ == "__main__":
    main()

"""Two network namespaces, joined by a cable, stand for two machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pretraining_runs import comparable
from programs import ROOT, assert_same, final_state

from ahm_gym.pretraining.config import PretrainConfig

ADDRESSES = ("10.219.77.1", "10.219.77.2")


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """The names of two namespaces, each with one end of a cable and one of the addresses."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root on Linux, and the program ip (iproute2)")
    tag = uuid.uuid4().hex[:6]
    names = (f"ahm-{tag}-0", f"ahm-{tag}-1")
    try:
        for name in names:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
        ends = [f"ahm{tag}{number}" for number in range(2)]
        cable = ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        if cable.returncode:
            pytest.skip(f"cables between network namespaces are not allowed here: {cable.stderr.strip()}")
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            for command in (
                f"link set {end} netns {name}",
                f"-n {name} link set {end} name cable",
                f"-n {name} address add {address}/24 dev cable",
                f"-n {name} link set cable up",
                f"-n {name} link set lo up",
            ):
                assert ip(*command.split()).returncode == 0, command
        yield names
    finally:
        for name in names:  # with its end of the cable, and the cable with its end
            ip("netns", "delete", name)


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


def sent_bytes(machine: str) -> int:
    """Bytes that a machine has sent through its cable."""
    (cable,) = json.loads(ip("-n", machine, "-json", "-statistics", "link", "show", "cable").stdout)
    return cable["stats64"]["tx"]["bytes"]


@pytest.mark.slow
def test_two_machines_compute_the_bits_of_one(machines: tuple[str, str], discs, tmp_path, monkeypatch):
    config = PretrainConfig(
        data=str(discs), image_size=32, steps=8, batch_size=8, checkpoint_every=4, device="cpu", policy="a3c",
        run_dir=tmp_path / "one",
    )  # fmt: skip
    one = start([], ["--standalone", "--nproc-per-node", "2"], config, {})
    finish([one])
    both = replace(config, run_dir=tmp_path / "both")
    processes = []
    for number, name in enumerate(machines):
        options = [
            "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test",
            "--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--rdzv-conf", f"is_host={1 - number}",
            "--local-addr", ADDRESSES[number],
        ]  # fmt: skip
        inside = ["ip", "netns", "exec", name]
        processes.append(start(inside, options, both, {"GLOO_SOCKET_IFNAME": "cable"}))
    finish(processes)
    assert min(map(sent_bytes, machines)) > config.steps * 4_000_000  # gradients
    assert_same(final_state(config.run_dir), final_state(both.run_dir))
    assert comparable(config.run_dir) == comparable(both.run_dir)


def start(
    prefix: list[str], options: list[str], config: PretrainConfig, environment: dict[str, str]
) -> subprocess.Popen[str]:
    """Starts torchrun with the command that a user types on a machine."""
    flags = {
        "--data": config.data, "--image-size": 32, "--batch-size": config.batch_size, "--device": config.device,
        "--steps": config.steps, "--policy": config.policy, "--checkpoint-every": config.checkpoint_every,
        "--run-dir": config.run_dir,
    }  # fmt: skip
    given = [str(item) for pair in flags.items() for item in pair]
    launch = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "ahm_gym", "pretrain"]
    return subprocess.Popen(
        [*prefix, *launch, *given],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes: list[subprocess.Popen[str]]) -> None:
    """Waits for the processes, and ends them if one takes too long."""
    try:
        for process in processes:
            err = process.communicate(timeout=240)[1]
            assert process.returncode == 0, err[-3000:]
    finally:
        for process in processes:
            process.terminate()  # torchrun ends the ranks
            process.communicate(timeout=60)

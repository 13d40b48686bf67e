"""What happens if a rank is killed or asked to stop, and how runs of ranks begin and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretraining_runs import comparable
from programs import ROOT, assert_same, final_state
from ranks import in_ranks, outcomes
from recorded_runs import in_folder
from torch import nn

from ahm_gym.cli import main
from ahm_gym.device import ranks
from ahm_gym.device.launch import check_restarts
from ahm_gym.errors import InputError
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain


@pytest.fixture
def config(discs, tmp_path):
    return PretrainConfig(
        data=str(discs), image_size=32, steps=8, batch_size=8, checkpoint_every=3, device="cpu", policy="a3c",
        run_dir=tmp_path / "run",
    )  # fmt: skip


def run(config: PretrainConfig, resume: bool = False) -> str:
    return str(pretrain(config, resume=resume))


def signalled(config: PretrainConfig, rank: int, update: int, number: int) -> str:
    """A run in which one rank gets a signal in the middle of an update."""
    step = Pretrainer.step

    def struck(self, images, masks):
        if ranks.rank() == rank and self.updates == update:
            os.kill(os.getpid(), number)
        return step(self, images, masks)

    Pretrainer.step = struck
    return run(config)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_the_run_which_goes_on_to_the_same_bits(config, rank):
    in_ranks(2, run, config)
    broken = in_folder(config, "broken")
    found = outcomes(2, signalled, broken, rank, 4, signal.SIGKILL)
    assert found[rank].died
    assert "RunError: another process of this run died" in found[1 - rank].error
    in_ranks(2, run, broken, True)
    assert_same(final_state(config.run_dir), final_state(broken.run_dir))
    assert comparable(config.run_dir) == comparable(broken.run_dir)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stop_asked_of_one_rank_stops_all_after_the_same_update(config, rank):
    found = outcomes(2, signalled, config, rank, 4, signal.SIGTERM)
    assert {outcome.error.partition(";")[0] for outcome in found} == {"Interrupted: stopped at step 5"}
    assert {outcome.exit_code for outcome in found} == {143}
    assert (config.run_dir / "checkpoint" / "step-5").is_dir()


def told(*configs: PretrainConfig) -> list[str]:
    """What is said to settings that ranks cannot be used with."""
    sentences = []
    for config in configs:
        with pytest.raises(InputError) as caught:
            pretrain(config)
        sentences.append(str(caught.value))
    return sentences


def test_what_ranks_cannot_do_is_refused_in_a_sentence(config):
    wrong = {
        "batch_size=9": replace(config, batch_size=9),
        "2 processes: choose a multiple of 2, such as 10": replace(config, batch_size=9),
        "num_workers=2": replace(config, num_workers=2),
        "leave `ray` out": replace(config, ray="local"),
        "policy ppo learns in one process": replace(config, policy="ppo"),
        "device=cuda:0": replace(config, device="cuda:0"),
    }
    for sentences in in_ranks(2, told, *wrong.values()):
        assert all(part in sentence for part, sentence in zip(wrong, sentences, strict=True)), sentences
    assert not config.run_dir.exists()


def test_a_network_with_statistics_of_a_batch_is_refused(monkeypatch):
    ranks.check_statistics(nn.BatchNorm2d(1))
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    ranks.check_statistics(nn.InstanceNorm2d(1))
    with pytest.raises(InputError, match="BatchNorm2d"):
        ranks.check_statistics(nn.Sequential(nn.BatchNorm2d(1)))


def sentences_said() -> list[bool]:
    """Whether this rank says each sentence, after the other has had its turn."""
    said = []
    for turn in range(2):
        if ranks.rank() == turn:
            said = [ranks.first_to_say(text) for text in ("alike", f"of rank {turn}", ranks.LOST)]
        ranks.barrier()
    return said


def test_one_rank_says_what_several_have_to_say():
    assert in_ranks(2, sentences_said) == [[True, True, False], [False, True, False]]


def exchanged() -> None:
    whole = torch.arange(10.0).reshape(5, 2).requires_grad_()
    assert torch.equal(ranks.mapped(lambda part: 2 * part, whole), 2 * whole)  # 5 rows for 2 ranks
    assert torch.equal(ranks.gathered(ranks.own(whole[:4])), whole[:4])
    ranks.gathered(ranks.own(whole[:4])).square().sum().backward()
    ranks.average_gradients([whole])
    assert torch.equal(whole.grad[:4], 2 * whole[:4])
    assert ranks.from_first(ranks.rank) == 0
    assert ranks.largest(ranks.rank()) == 1
    with ranks.alone():
        assert torch.equal(ranks.own(whole), whole)


def test_what_ranks_exchange():
    in_ranks(2, exchanged)


def test_in_one_process_nothing_is_exchanged():
    whole = torch.arange(4.0)
    assert ranks.gathered(whole) is whole
    assert ranks.of_first(whole) is whole
    assert ranks.rows() == slice(None)
    with ranks.started():
        assert (ranks.rank(), ranks.world_size()) == (0, 1)


def test_a_command_that_torchrun_may_repeat_resumes(config, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InputError, match="--max-restarts 3.*`resume` and `run_dir`"):
        check_restarts(resume=False)
    check_restarts(resume=True)
    config = replace(config, steps=2)
    run(config, resume=True)  # which begins it
    assert final_state(config.run_dir)["step"] == 2


def test_other_commands_run_in_one_process(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["benchmark"])
    assert "ahm-gym benchmark runs in one process, and torchrun started 2" in capsys.readouterr().err


def torchrun(
    config: PretrainConfig, *options: object, more: tuple[object, ...] = ()
) -> subprocess.Popen[str]:
    """Starts two ranks by the command that a user types."""
    flags = {
        "--data": config.data, "--image-size": 32, "--batch-size": 8, "--device": "cpu", "--steps": config.steps,
        "--policy": config.policy, "--checkpoint-every": config.checkpoint_every, "--run-dir": config.run_dir,
    }  # fmt: skip
    command = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        *options,
        "-m",
        "ahm_gym",
        "pretrain",
    ]
    given = [item for pair in flags.items() for item in pair]
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, [*command, *given, *more])],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pid_of(agent: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank that this torchrun started."""
    for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        if f"LOCAL_RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise LookupError(rank)


def strike(agent: subprocess.Popen[str], config: PretrainConfig, step: int, number: int) -> None:
    """Sends a signal to rank 1 once there is a checkpoint of this step."""
    deadline = time.monotonic() + 200
    while not (config.run_dir / "checkpoint" / f"step-{step}" / "state.json").exists():
        assert agent.poll() is None and time.monotonic() < deadline, agent.communicate()
        time.sleep(0.01)
    os.kill(pid_of(agent, 1), number)


@pytest.mark.slow
def test_torchrun_starts_killed_ranks_again_to_the_same_bits(config):
    config = replace(config, steps=150, checkpoint_every=20)
    assert torchrun(config).communicate()[0].startswith("\nWrote")
    killed = in_folder(config, "killed")
    agent = torchrun(killed, "--max-restarts", 2, more=("--resume",))
    strike(agent, killed, 40, signal.SIGKILL)
    out, err = agent.communicate(timeout=300)
    assert agent.returncode == 0, err[:3000]
    assert out.count("Wrote") == 1
    assert_same(final_state(config.run_dir), final_state(killed.run_dir))
    assert comparable(config.run_dir) == comparable(killed.run_dir)


@pytest.mark.slow
def test_torchrun_stops_all_ranks_if_one_gets_sigterm(config):
    config = replace(config, steps=5000, checkpoint_every=20)
    agent = torchrun(config)
    strike(agent, config, 40, signal.SIGTERM)
    err = agent.communicate(timeout=300)[1]
    assert err.count("stopped at step") == 1, err
    stopped = int(err.partition("stopped at step ")[2].partition(";")[0])
    assert final_state(config.run_dir)["step"] == stopped


@pytest.mark.slow
def test_torchrun_says_what_is_wrong_once(config):
    agent = torchrun(replace(config, data="nowhere"))
    err = agent.communicate(timeout=300)[1]
    assert agent.returncode != 0
    assert err.count("error: ") == 1 and err.count("nowhere") == 1, err

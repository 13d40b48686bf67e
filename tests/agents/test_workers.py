"""Several workers: they learn together, and leave nothing behind however a run ends."""

import copy
import os
import pickle
import re
import signal
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import final_state, run, start, wait_for, write_discs

from ahm_gym.agents import make_agent
from ahm_gym.agents.learner import Learner
from ahm_gym.errors import InputError, RunError
from ahm_gym.testing import IdentityTask, solved


def test_an_agent_whose_workers_cannot_start_can_still_be_copied():
    agent = make_agent("a3c", IdentityTask().single_observation_space.shape, num_workers=2)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        agent.learn(lambda: IdentityTask(), 2, seed=0)
    copy.deepcopy(agent)


class Pausing:
    """A callback that wants the workers idle after every third of the first updates, and stops after 400."""

    def __init__(self, agent):
        self.agent, self.heard, self.writes_at_rest = agent, [], []

    def next_pause(self, done):
        return 3 * (done // 3 + 1) if done < 18 else 10_000

    def __call__(self, metrics):
        self.heard.append(metrics)
        count = len(self.heard)
        if count % 3 == 0 and count <= 18:
            time.sleep(0.02)  # long enough for a worker that is not idle
            self.writes_at_rest.append((count, int(self.agent.writes)))
        return count >= 400


def test_two_workers_learn_together_pause_where_the_callback_wants_it_and_stop_when_it_asks():
    agent = make_agent("a3c", IdentityTask().single_observation_space.shape, num_workers=2)
    callback = Pausing(agent)
    agent.learn(IdentityTask, 10_000, seed=0, callback=callback)
    heard = callback.heard
    assert callback.writes_at_rest == [(count, count) for count in (3, 6, 9, 12, 15, 18)]
    assert 400 <= int(agent.writes) == len(heard) < 10_000
    assert solved(IdentityTask(), float(np.mean([m["reward"] for m in heard[350:400]]))) >= 0.9
    assert all(m["agent/staleness"] >= 0 for m in heard)
    copy.deepcopy(agent)


class Raising(IdentityTask):
    def step(self, actions):
        raise ValueError("the scanner is on fire")


class Dying(IdentityTask):
    def step(self, actions):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("env", "reason"), [(Raising, "the scanner is on fire"), (Dying, "SIGKILL")])
def test_a_worker_that_raises_or_dies_ends_the_run_with_the_reason(env, reason):
    agent = make_agent("a3c", IdentityTask().single_observation_space.shape, num_workers=2)
    with pytest.raises(RunError, match=reason):
        agent.learn(env, 100, seed=0)


@pytest.fixture
def traces(monkeypatch):
    """Yields a function that lists what programs started since have left: processes and files in shared memory."""
    mark = f"AHM_TEST_{uuid.uuid4().hex}"
    monkeypatch.setenv(mark, "1")
    memory = Path("/dev/shm")
    if not (memory.is_dir() and Path("/proc/self/environ").exists()):
        pytest.skip("looks at /proc and /dev/shm, which only Linux has")
    before = set(memory.iterdir())

    def look():
        for _ in range(50):
            processes = [entry for entry in Path("/proc").glob("[0-9]*") if is_marked(entry, mark)]
            files = [file for file in set(memory.iterdir()) - before if not is_in_use(file)]
            if not processes and not files:
                break
            time.sleep(0.1)
        return processes, files

    return look


def is_in_use(file):
    """Whether a number in the file's name is the id of a living process, perhaps of another test."""
    return any(Path("/proc", number).exists() for number in re.findall(r"\d+", file.name))


def is_marked(entry, mark):
    try:
        return mark.encode() in (entry / "environ").read_bytes()
    except OSError:  # it has ended meanwhile, or belongs to another user
        return False


def children(process):
    """Processes that the run has started, except Python's own semaphore tracker."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def two_workers(tmp_path, *options):
    data = write_discs(tmp_path / "discs.npz")
    return ["--data", data, "--image-size", 32, "--batch-size", 8, "--num-workers", 2, "--run-dir", tmp_path / "run",
            *options]  # fmt: skip


@pytest.mark.slow
def test_nothing_is_left_of_workers_after_ctrl_c(tmp_path, traces):
    process = start("pretrain.py", *two_workers(tmp_path, "--steps", 5000), cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"reward"' in metrics.read_text(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert traces() == ([], [])


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_within_ten_seconds_and_the_run_goes_on_from_its_checkpoint(
    tmp_path, traces
):
    options = two_workers(tmp_path, "--steps", 30, "--checkpoint-every", 10)
    process = start("pretrain.py", *options, cwd=tmp_path)
    checkpoint = tmp_path / "run" / "checkpoint"
    wait_for(lambda: checkpoint.is_dir() and bool([*checkpoint.glob("step-[1-9]0")]), process)
    os.kill(children(process)[0], signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 10
    assert process.returncode == 1
    assert "SIGKILL" in err and "--resume" in err and "Traceback" not in err
    assert traces() == ([], [])
    result = run("pretrain.py", "--resume", "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert final_state(tmp_path / "run")["pretrainer"]["updates"] == 30
    assert traces() == ([], [])


def test_the_running_statistics_cover_what_every_worker_has_seen():
    agent = make_agent("a3c", IdentityTask().single_observation_space.shape, num_workers=2)
    agent.learn(IdentityTask, 40, seed=0)
    network = agent.network
    assert int(network.normalise.count) == int(network.reward_scale.count) == int(agent.writes) == 40


class Truncated(IdentityTask):
    """Ends every episode by a time limit, after a step without a reward, with an observation of its own."""

    def step(self, actions):
        observation, reward, terminated, truncated, info = super().step(actions)
        info["patch_reward"] = np.zeros_like(info["patch_reward"])
        return observation, 0 * reward, truncated, terminated, info | {"final_obs": observation + 1.0}


def test_a_truncated_episode_bootstraps_from_its_last_observation():
    agent = make_agent("a3c", IdentityTask().single_observation_space.shape)
    learner = Learner(agent, agent.network, Truncated(), agent.generator, seed=0)
    seen, forward = [], agent.network.forward
    agent.network.forward = lambda observation: seen.append(observation) or forward(observation)
    learner.episode()
    assert any(torch.equal(observation, learner.observation + 1.0) for observation in seen)
    bootstrap, _ = learner._bootstrap(False)
    learner._last = None
    assert learner._bootstrap(True)[0].abs().sum() == 0 and bootstrap.shape == (32, 16)


def test_too_little_shared_memory_for_the_weights_is_said_with_the_way_out(monkeypatch):
    def full(module):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        )

    agent = make_agent("a3c", IdentityTask().single_observation_space.shape, num_workers=2)
    monkeypatch.setattr(torch.nn.Module, "share_memory", full)
    with pytest.raises(InputError, match="too little room for the weights .* choose `num_workers=1`"):
        agent.learn(IdentityTask, 2, seed=0)

"""A worker that hangs ends the run, nothing that others can write is unpickled, and no worker outlives its program."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ahm_gym.agents import make_agent, workers
from ahm_gym.errors import RunError
from ahm_gym.testing import IdentityTask


class Stopping(IdentityTask):
    """Stops its own process at the first step, as a debugger or a hung file system would."""

    def step(self, actions):
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().step(actions)


class Stuck(IdentityTask):
    def step(self, actions):
        time.sleep(1000)
        return super().step(actions)


def test_a_stopped_worker_ends_the_run_with_a_sentence(monkeypatch):
    monkeypatch.setattr(workers, "SILENCE", 3.0)
    agent = make_agent("a3c", IdentityTask().single_observation_space.shape, num_workers=2)
    with pytest.raises(RunError, match=r"worker . of 2 has been silent for \d+ s .* `resume`"):
        agent.learn(Stopping, 100, seed=0)


def test_a_heart_beats_only_as_long_as_there_is_progress():
    progress = workers.Progress()
    assert progress.is_recent(progress.last + workers.STUCK - 1)
    assert not progress.is_recent(progress.last + workers.STUCK + 1)


@pytest.mark.slow
def test_workers_leave_no_file_in_the_shared_temporary_folder(tmp_path):
    """`torch.multiprocessing.spawn` unpickles what another user may have put into its error file there."""
    program = (
        "from ahm_gym.agents import make_agent\n"
        "from ahm_gym.testing import IdentityTask\n"
        "import os, tempfile\n"
        "seen = set()\n"
        "def look(metrics):\n"
        "    seen.update(item.name for item in os.scandir(tempfile.gettempdir()) if not item.is_dir())\n"
        "if __name__ == '__main__':\n"
        "    agent = make_agent('a3c', IdentityTask().single_observation_space.shape, num_workers=2)\n"
        "    agent.learn(IdentityTask, 20, seed=0, callback=look)\n"
        "    print(sorted(seen))\n"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "temporary").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    made = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], env=env, capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == "[]"
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc, which only Linux has")
def test_workers_end_soon_after_a_kill_of_their_program(tmp_path):
    program = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_hung_workers import Stuck\n"
        "from ahm_gym.agents import make_agent\n"
        "from ahm_gym.testing import IdentityTask\n"
        "if __name__ == '__main__':\n"
        "    agent = make_agent('a3c', IdentityTask().single_observation_space.shape, num_workers=2)\n"
        "    agent.learn(Stuck, 20, seed=0)\n"
    )
    (tmp_path / "program.py").write_text(program)
    here = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), here])
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while True:  # until both workers have the threads of a worker at work
        children = [Path("/proc", number) for number in listed.read_text().split()]
        found = [child for child in children if len(list((child / "task").iterdir())) >= 3]
        if len(found) == 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(is_alive(child) for child in found):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(process):
    """Whether a process, a folder in /proc, still runs; one that has ended may wait for its new parent."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

import ast

import pytest
from programs import ROOT, run, write_discs

PROGRAM = ROOT / "examples" / "plug_in_agent.py"


def ratio(done):
    assert done.returncode == 0, done.stderr
    return float(done.stdout.rsplit("ratio ", 1)[1])


def test_the_agent_in_one_file_learns_and_evaluates_itself(tmp_path):
    data = write_discs(tmp_path / "discs.npz", size=64)
    arguments = ("--data", data, "--updates", 3, "--rollout", 2, "--num-envs", 4)
    first, second = (run(PROGRAM.name, *arguments, cwd=tmp_path) for _ in range(2))
    assert ratio(first) == ratio(second) > 0
    assert "update 3:" in first.stdout and "update 4:" not in first.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["discs.npz"]


@pytest.mark.slow
def test_the_agent_in_one_file_earns_more_than_random_masks(tmp_path):
    assert ratio(run(PROGRAM.name, cwd=tmp_path)) > 1.2


def test_the_agent_in_one_file_needs_no_agent_of_ours_and_stays_short():
    source = PROGRAM.read_text()
    modules = [n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
    assert "ahm_gym.envs" in modules and not any(name.startswith("ahm_gym.agents") for name in modules)
    assert len(source.splitlines()) < 100

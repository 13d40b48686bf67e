import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def last_line(script, *arguments, cwd):
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_cost_of_a_step_ends_with_its_ratios(tmp_path):
    ratios = last_line("step_cost.py", "--quick", "--rounds", "5", cwd=tmp_path)
    assert {"env_over_bare", "a3c_over_random"} <= set(ratios)
    assert all(0.2 < ratio < 5 for ratio in ratios.values())


@pytest.mark.slow
def test_the_rate_of_workers_ends_with_its_ratios(tmp_path):
    ratios = last_line("workers.py", "--updates", "8", "--rounds", "1", cwd=tmp_path)
    assert ratios["1_over_1"] == 1.0 and ratios["2_over_1"] > 0

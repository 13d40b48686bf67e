import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import write_discs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def printed(script, *arguments, cwd):
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def last_line(script, *arguments, cwd):
    return json.loads(printed(script, *arguments, cwd=cwd)[-1])


@pytest.mark.slow
def test_the_cost_of_a_step_ends_with_its_ratios(tmp_path):
    ratios = last_line("step_cost.py", "--quick", "--rounds", "5", cwd=tmp_path)
    assert {"env_over_bare", "a3c_over_random", "a3c_run_over_random"} <= set(ratios)
    assert all(0.2 < ratio < 5 for ratio in ratios.values())


@pytest.mark.slow
def test_the_rate_of_workers_ends_with_its_ratios(tmp_path):
    ratios = last_line("workers.py", "--updates", "8", "--rounds", "1", cwd=tmp_path)
    assert ratios["1_over_1"] == 1.0 and ratios["2_over_1"] > 0


@pytest.mark.slow
def test_ranks_are_measured_and_compared_with_the_model_of_what_they_exchange(tmp_path):
    lines = printed("ranks.py", "--quick", "--ranks", "1", "2", "--out", "measured.jsonl", cwd=tmp_path)
    rows = [line.split(" | ") for line in lines if line.startswith("| tiny")]
    assert [row[1:3] for row in rows] == [["64", "1"], ["256", "1"], ["64", "2"], ["256", "2"]]
    for row in rows[2:]:
        assert float(row[6]) == pytest.approx(
            float(row[5]), rel=0.05
        )  # MB sent, by the system and by the model
    kept = [json.loads(line) for line in (tmp_path / "measured.jsonl").read_text().splitlines()]
    assert [row["ranks"] for row in kept] == [1, 1, 2, 2, 2] and all(row["commit"] for row in kept)


@pytest.mark.slow
def test_any_number_of_ranks_is_predicted_without_measuring(tmp_path):
    lines = printed("ranks.py", "--bandwidth", "50", "--ranks", "1", "1000", cwd=tmp_path)
    one, many = (line.split(" | ") for line in lines[-2:])
    assert one[1] == "256" and float(one[2]) == pytest.approx(256 * 1.2e-4, abs=1e-3)
    assert many[1] == "256,000" and float(many[5]) > 5  # of gloo alone, from rank 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_agents_are_compared_on_scans_and_by_the_steps_of_a_mask_and_not_run_again(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    arguments = [
        "--parts", "scans", "masking-steps", "--agents", "a3c", "--data", data, "--seeds", "1", "--steps", "2",
    ]  # fmt: skip
    lines = printed("agents.py", *arguments, cwd=tmp_path)
    assert next(line[:14] for line in lines if line.startswith("| ")) == "| discs | a3c "
    assert len([line for line in lines if line.startswith(("| a3c |", "| ppo |"))]) == 6
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/agents/*/config.json")}
    assert len(written) == 6
    assert printed("agents.py", *arguments, cwd=tmp_path) == lines
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())


@pytest.mark.slow
def test_an_agent_reaches_the_level_that_the_identity_table_reports(tmp_path):
    arguments = ["--parts", "identity", "--agents", "a3c", "--seeds", "1"]
    lines = [line for line in printed("agents.py", *arguments, cwd=tmp_path) if line.startswith("| a3c")]
    assert len(lines) == 2 and "within" not in "".join(lines)


@pytest.mark.slow
def test_learning_curves_are_compared_by_options(tmp_path):
    arguments = ["--parts", "curves", "--agents", "a3c", "a3c:credit=image,width=8", "--seeds", "1"]
    lines = [line for line in printed("agents.py", *arguments, cwd=tmp_path) if line.startswith("| ")]
    assert len(lines) == 6 and lines[0].startswith("| 16/4 | a3c | 0.")
    assert lines[1].startswith("| 16/4 | a3c:credit=image,width=8 | ") and lines[0][13:] != lines[1][34:]


@pytest.mark.slow
def test_variants_are_compared_with_random_masks_on_validation_images(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    lines = printed(
        "variants.py", "--data", data, "--steps", "2", "--seeds", "1", "--labels", "4", "--draws", "2",
        "--variants", "half: --policy a3c --guided-fraction 0.5", cwd=tmp_path,
    )  # fmt: skip
    assert [line.split(" |")[0] for line in lines[-2:]] == ["| random", "| half"]


@pytest.mark.slow
def test_rewards_are_compared_on_a_noisy_background(tmp_path):
    data = write_discs(tmp_path / "discs.npz", size=64)
    lines = printed("noisy_background.py", "--data", data, "--steps", "2", "--seeds", "1", cwd=tmp_path)
    assert [line.split(" |")[0] for line in lines[-2:]] == ["| loss", "| progress"]
    noisy, clean = (
        np.load(tmp_path / name) for name in ("runs/noisy-background/noise-0.1-discs.npz", "discs.npz")
    )
    inside = noisy["val_label"] == 1
    noise = noisy["val_images"] / 255 - (0.5 + 0.15 * (clean["val_images"] / 255 - 0.5))
    assert noise[~inside].std() == pytest.approx(0.1, rel=0.05) and noise[inside].std() < 0.02


@pytest.mark.slow
def test_strategies_are_compared_in_the_curriculum(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    small = "--steps 4 --period 2 --batch-size 4 --image-size 32 --held-out 4 --seeds 1".split()
    lines = printed("curriculum.py", "--data", data, *small, cwd=tmp_path)
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split(" |")[0] for row in rows[1:]] == [
        "| random", "| low_ratio", "| high_ratio", "| spread", "| block", "| hard", "| hard_targets", "| uniform",
        "| thompson",
    ]  # fmt: skip
    assert rows[1].endswith("| +0.0000 |") and lines[-1].startswith("Shares of thompson: random ")


@pytest.mark.slow
def test_asynchronous_workers_are_compared_by_updates_and_by_time(tmp_path):
    data = write_discs(tmp_path / "discs.npz", size=64)
    arguments = ["--data", data, "--steps", "20", "--seeds", "1", "--workers", "1", "2"]
    lines = [line for line in printed("asynchrony.py", *arguments, cwd=tmp_path) if line.startswith("| ")]
    assert [line.split(" |")[0] for line in lines] == ["| 1 workers", "| 2 workers"] * 3
    assert (tmp_path / "runs" / "asynchrony" / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_gpu_queue_runs_what_is_missing_and_ends_in_time(tmp_path):
    data = write_discs(tmp_path / "discs.npz")
    small = (
        "--image-size 32 --batch-size 8 --pretrain-steps 2 --finetune-steps 2 --seeds 1 --labels 4 --jobs 1 "
        "--no-compile"
    )
    arguments = [
        "--minutes", "3", "--device", "cpu", "--data", data, "--out", tmp_path / "out", f"--flags={small}",
        "--items", "step_cost", "resenc",
    ]  # fmt: skip
    first = printed("gpu/run_queue.py", *map(str, arguments), cwd=tmp_path)
    assert "step_cost: exit code 0" in "\n".join(first) and "resenc: ended with exit code 0" in first
    (row,) = map(json.loads, (tmp_path / "out" / "queue.jsonl").read_text().splitlines())
    assert row["item"] == "step_cost" and "hardware" in row and json.loads(row["last"])
    rows = (tmp_path / "out" / "resenc" / "rows.jsonl").read_text().splitlines()
    policies = {json.loads(line)["policy"] for line in rows}
    assert policies == {"scratch", "unet_scratch", "random", "a3c"}
    second = printed("gpu/run_queue.py", *map(str, arguments), cwd=tmp_path)
    assert "step_cost: done before at this commit on this hardware" in second
    assert (tmp_path / "out" / "resenc" / "rows.jsonl").read_text().splitlines() == rows
    late = printed("gpu/run_queue.py", "--minutes", "0.1", *map(str, arguments[2:]), cwd=tmp_path)
    assert all("not started" in line for line in late)

"""Pretraining runs whose workers are on a Ray cluster; the last tests start a real one on this machine."""

import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from programs import final_state, run, start, wait_for, write_discs

from ahm_gym.errors import InputError, Interrupted
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"policy": "random"},
            "`ray=local` needs the asynchronous workers of `policy=a3c`, and policy random",
        ),
        ({"policy": "patch_ppo"}, "and policy patch_ppo has none"),
        ({"target": "latent"}, "`ray` does not go with `target=latent`"),
        ({"joint_labels": 4}, "`ray` does not go with `joint_labels`"),
        ({"agent_options": ("lock_free=true",)}, "`lock_free` needs weights in the memory of one machine"),
        ({"agent_options": ("importance_clip=1.0",)}, "`importance_clip` needs weights in the memory"),
        ({"ray": ""}, "`ray` is empty"),
        ({"num_workers": 10_000}, "`num_workers=10000` is too many"),
    ],
)
def test_what_does_not_go_with_ray_is_refused_and_leaves_no_folder(config, use_fake_ray, settings, message):
    use_fake_ray()
    with pytest.raises(InputError, match=message):
        pretrain(dataclasses.replace(config, **{"policy": "a3c", "ray": "local"} | settings))
    assert not config.run_dir.exists()


def test_a_cluster_may_have_more_workers_than_this_machine(config, use_fake_ray):
    use_fake_ray(cpus=10_000)
    many = dataclasses.replace(config, policy="a3c", ray="auto", num_workers=10_000, target="latent")
    with pytest.raises(InputError, match="`target=latent`"):  # and not the number of workers
        pretrain(many)


def test_without_ray_the_command_says_what_to_install(discs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("pretrain.py", "--data", discs, "--ray", "local", "--run-dir", "run", cwd=tmp_path)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert (
        'error: --ray needs the package ray, which is not installed: pip install "ahm-gym[ray]"'
        in result.stderr
    )


def test_a_run_begins_on_ray_and_goes_on_with_another_address_or_without(config, use_fake_ray, monkeypatch):
    ray = use_fake_ray()
    config = dataclasses.replace(config, policy="a3c", ray="local", num_workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            "ahm_gym.pretraining.recorder.Recorder.has_to_stop", lambda recorder: recorder.step >= 3
        )
        with pytest.raises(Interrupted, match="stopped at step 3"):
            pretrain(config)
    again = PretrainConfig(run_dir=config.run_dir)
    with monkeypatch.context() as patch:
        patch.setattr(
            "ahm_gym.pretraining.recorder.Recorder.has_to_stop", lambda recorder: recorder.step >= 5
        )
        with pytest.raises(Interrupted, match="stopped at step 5"):
            pretrain(dataclasses.replace(again, ray="auto"), resume=True, given={"ray"})
    assert ray.options["address"] == "auto"
    assert json.loads((config.run_dir / "config.json").read_text())["ray"] == "auto"
    pretrain(again, resume=True, given={"ray"})  # None: without Ray
    state = final_state(config.run_dir)
    assert state["pretrainer"]["updates"] == config.steps and state["env"] is not None
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    deaths = {row["step"]: row.get("agent/worker_deaths") for row in rows if "loss" in row}
    assert deaths == dict.fromkeys(range(1, 6), 0.0) | dict.fromkeys(range(6, 9))


def marked(mark):
    """Ids and command lines of the living processes whose environment holds a mark."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile, or belongs to another user
            continue
    return found


@pytest.fixture
def short_tmp(monkeypatch):
    """A new folder for temporary files, with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.mark.slow
def test_on_ray_a_worker_is_killed_the_run_stops_leaves_nothing_and_goes_on_without_ray(
    tmp_path, short_tmp, monkeypatch
):
    pytest.importorskip("ray")
    if not Path("/proc/self/environ").exists():
        pytest.skip("looks at /proc, which only Linux has")
    mark = f"AHM_TEST_{uuid.uuid4().hex}"
    monkeypatch.setenv(mark, "1")
    data, path = write_discs(tmp_path / "discs.npz"), tmp_path / "run"
    options = ["--data", data, "--image-size", 32, "--batch-size", 8, "--num-workers", 2, "--steps", 600]
    process = start("pretrain.py", *options, "--ray", "local", "--run-dir", path, cwd=tmp_path)
    metrics = path / "metrics.jsonl"

    def logged(text):
        return metrics.exists() and text in metrics.read_text()

    wait_for(lambda: logged('"agent/staleness": 1.0'), process)
    workers = [number for number, line in marked(mark.encode()).items() if b"RemoteWorker" in line]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: logged('"agent/worker_deaths": 1.0'), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "its gradient is lost" in err and "--resume" in err, err
    assert "Traceback" not in out + err
    deadline = time.monotonic() + 30
    while marked(mark.encode()).keys() - {os.getpid()} and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marked(mark.encode()).keys() - {os.getpid()}
    assert not [*short_tmp.glob("ahm-ray-*")] and not [*Path("/tmp/ray").glob(f"*_{process.pid}")]
    assert 0 < final_state(path)["pretrainer"]["updates"] < 600
    result = run("pretrain.py", "--resume", "--ray", "None", "--run-dir", path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert final_state(path)["pretrainer"]["updates"] == 600

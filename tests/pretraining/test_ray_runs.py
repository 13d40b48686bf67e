"""Pretraining runs whose workers are on a Ray cluster; the last tests start a real one on this machine."""

import dataclasses
import json
import sys

import pytest
from programs import final_state, run

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
        ({"agent_options": ("importance_clip=1",)}, "`importance_clip` needs weights in the memory"),
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
    pretrain(again, resume=True, given={"ray"})  # `ray=None`
    state = final_state(config.run_dir)
    assert state["pretrainer"]["updates"] == config.steps and state["env"] is not None
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    deaths = {row["step"]: row.get("agent/worker_deaths") for row in rows if "loss" in row}
    assert deaths == dict.fromkeys(range(1, 6), 0.0) | dict.fromkeys(range(6, 9))

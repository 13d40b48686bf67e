"""The names of the curves in TensorBoard."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ahm_gym.agents import make_agent
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.tracking import SB3_NAMES
from ahm_gym.testing import IdentityTask

OF_SB3 = {
    "train/explained_variance", "train/approx_kl", "train/clip_fraction", "train/entropy_loss",
    "train/policy_gradient_loss", "train/value_loss", "train/grad_norm", "train/n_updates",
    "rollout/ep_rew_mean", "time/fps",
}  # fmt: skip
DOCUMENT = Path(__file__).parents[2] / "docs" / "run-folder.md"


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "run", {"kind": "pretrain", "steps": 10})
    yield run
    run.close()


def curves(run):
    run.close()
    return set(EventAccumulator(str(run.path / "events")).Reload().Tags()["scalars"])


def reported(name, **options):
    agent, heard = make_agent(name, IdentityTask().single_observation_space.shape, **options), []
    agent.learn(IdentityTask, 1, seed=0, callback=lambda metrics: heard.append(metrics) or False)
    return heard[-1] | {"images_per_second": 1.0}


@pytest.mark.parametrize(
    ("name", "options", "absent"),
    [
        ("a3c", {"importance_clip": 1.0}, {"train/n_updates"}),
        ("patch_ppo", {"rollout_batches": 1}, set()),
        (
            "group",
            {},
            {
                "train/n_updates",
                "train/value_loss",
                "train/explained_variance",
                "train/approx_kl",
                "train/clip_fraction",
            },
        ),
    ],
)
def test_the_agents_of_this_project_have_the_curves_of_stable_baselines3(run, name, options, absent):
    metrics = reported(name, **options)
    run.log(1, metrics)
    assert curves(run) & OF_SB3 == OF_SB3 - absent
    assert run.metrics()[0].keys() == {"step", *metrics}  # the file keeps its names
    assert -3 < metrics["train/entropy_loss"] < 0


def test_curves_keep_their_names_when_a_run_resumes(run):
    for step in (1, 2):
        run.log(step, {"reward": 0.5, "loss": 1.0, "agent/grad_norm": float("nan")})
    run.save_checkpoint(1, {})
    run.load_checkpoint()
    assert curves(run) == {"rollout/ep_rew_mean", "loss"}


def test_every_name_that_changes_is_in_the_document():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", DOCUMENT.read_text(), re.M)
    assert SB3_NAMES.items() <= dict(rows).items()

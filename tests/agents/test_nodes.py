"""Workers on a Ray cluster: what they send, what the owner makes of it, and what happens when one dies."""

import copy

import numpy as np
import pytest
import torch
from fake_ray import FakeRay
from programs import assert_same

from ahm_gym.agents import make_agent, nodes
from ahm_gym.agents.learner import Learner
from ahm_gym.errors import InputError, RunError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.training import Training
from ahm_gym.testing import IdentityTask, solved

SHAPE = IdentityTask().single_observation_space.shape


@pytest.fixture
def fake(monkeypatch):
    """A function that lets this process use a fake Ray with these properties."""

    def use(**properties):
        ray = FakeRay(**properties)
        monkeypatch.setattr("ahm_gym.device.ray_cluster.ray_library", lambda: ray)
        monkeypatch.setattr("ahm_gym.pretraining.inputs.ray_library", lambda: ray)
        return ray

    return use


def learn(num_workers=2, steps=20, env=IdentityTask, callback=None, **options):
    agent = make_agent("a3c", SHAPE, num_workers=num_workers, ray="local", **options)
    heard = []

    def note(metrics):
        heard.append(metrics)
        return callback is not None and callback(metrics)

    agent.learn(env, steps, seed=0, callback=note)
    return agent, heard


@pytest.mark.parametrize("n_steps", [None, 1])
def test_one_worker_computes_exactly_what_one_process_does(discs, fake, n_steps):
    """Autoencoder, its average, agent, statistics and metrics, in episodes of two steps."""
    fake()
    options = ("anneal=true",) if n_steps is None else (f"n_steps={n_steps}",)
    config = PretrainConfig(
        data=str(discs), image_size=(32,), steps=8, batch_size=8, policy="a3c", reward="relative", masking_steps=2,
        guided_fraction=0.5, guided_ramp=(0.25, 0.3), average=0.9, agent_options=options, ray="local",
    )  # fmt: skip
    heard = {True: [], False: []}
    trained = {}
    for by_ray in (True, False):
        training = Training(config)
        note = lambda metrics, by_ray=by_ray: heard[by_ray].append(metrics) or False  # noqa: E731
        if by_ray:
            training.share()
            training.agent.learn(training.make_env, 8, seed=0, callback=note)
        else:
            agent = training.agent
            agent.last_episode = 8
            learner = Learner(agent, copy.deepcopy(agent.network), training.env, torch.Generator(), 1_000_003)
            for _ in range(8):
                note(learner.episode())
        trained[by_ray] = {"agent": training.agent.state_dict(), "pretrainer": training.pretrainer.state_dict()}
    assert trained[True]["agent"]["writes"] == sum("agent/staleness" in row for row in heard[True]) * (
        1 if n_steps is None else 2
    )
    assert 0 < trained[True]["agent"]["writes"] and any("agent/staleness" not in row for row in heard[True])
    if n_steps is None:
        assert_same(trained[True], trained[False])
        assert [row.pop("agent/worker_deaths") for row in heard[True]] == [0.0] * 8
        assert heard[True] == heard[False]

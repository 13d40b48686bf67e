"""Workers on a Ray cluster: what they send, what the owner makes of it, and what happens when one dies."""

import copy
from typing import ClassVar

import pytest
import torch
from programs import assert_same

from ahm_gym.agents import make_agent
from ahm_gym.agents.learner import Learner
from ahm_gym.agents.nodes import Owner
from ahm_gym.agents.workers import START, STUCK
from ahm_gym.errors import RunError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.training import Training
from ahm_gym.testing import IdentityTask

SHAPE = IdentityTask().single_observation_space.shape
STEPS = 8


def learn(num_workers=2, steps=20, env=IdentityTask, callback=lambda metrics: False, **options):
    agent = make_agent("a3c", SHAPE, num_workers=num_workers, ray="local", **options)
    heard = []
    agent.learn(env, steps, seed=0, callback=lambda metrics: heard.append(metrics) or callback(metrics))
    return agent, heard


def trained(discs, by_ray):
    """States of agent and pretrainer, and the metrics, after episodes of two steps, the first without a choice."""
    training = Training(
        PretrainConfig(
            data=str(discs), image_size=(32,), steps=STEPS, batch_size=8, policy="a3c", reward="relative",
            masking_steps=2, guided_fraction=0.5, guided_ramp=(0.25, 0.3), average=0.9,
            agent_options=("anneal=true",), ray="local",
        )
    )  # fmt: skip
    agent, heard = training.agent, []
    if by_ray:
        training.share()
        agent.learn(training.make_env, STEPS, seed=0, callback=lambda metrics: heard.append(metrics) or False)
    else:
        agent.last_episode = STEPS
        learner = Learner(agent, copy.deepcopy(agent.network), training.env, torch.Generator(), 1_000_003)
        heard = [learner.episode() for _ in range(STEPS)]
    return {"agent": agent.state_dict(), "pretrainer": training.pretrainer.state_dict()}, heard


def test_one_worker_on_ray_computes_exactly_what_a_worker_of_this_process_does(discs, use_fake_ray):
    use_fake_ray()
    by_ray, heard = trained(discs, True)
    here, expected = trained(discs, False)
    assert_same(by_ray, here)
    assert 0 < by_ray["agent"]["writes"] < STEPS == by_ray["pretrainer"]["updates"]
    assert [row.pop("agent/worker_deaths") for row in heard] == [0.0] * STEPS
    assert heard == expected


def test_staleness_counts_the_updates_of_others_and_statistics_cover_all_workers(use_fake_ray):
    ray = use_fake_ray()
    agent, heard = learn(steps=20)
    assert [row["agent/staleness"] for row in heard] == [0.0] + [1.0] * 19
    network = agent.network
    assert int(network.normalise.count) == int(network.reward_scale.count) == int(agent.writes) == 20
    assert int(agent.episodes) == 20
    assert ray.asked == {"num_cpus": 1, "max_restarts": 0}
    assert ray.events == ["init", "kill 1", "kill 2", "shutdown"]


class Seeded(IdentityTask):
    seeds: ClassVar[list] = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def test_workers_draw_differently_and_a_replaced_one_draws_anew(use_fake_ray):
    ray = use_fake_ray(dies=lambda actor, method: actor == 1 and method == "play")
    learn(steps=4, env=Seeded)
    assert len(set(Seeded.seeds)) == len(Seeded.seeds) == 3
    assert ray.events == ["init", "kill 1", "kill 2", "kill 3", "shutdown"]


def test_a_death_loses_one_gradient_is_counted_and_the_run_goes_on(use_fake_ray, capsys):
    use_fake_ray(dies=lambda actor, method: actor == 1 and method == "play")
    agent, heard = learn(steps=6)
    assert len(heard) == int(agent.writes) == 6
    assert [row["agent/worker_deaths"] for row in heard] == [1.0] * 6
    assert (
        "note: worker 1 died (The actor died unexpectedly): its gradient is lost" in capsys.readouterr().err
    )


def test_too_many_deaths_end_the_run(use_fake_ray):
    ray = use_fake_ray(dies=lambda actor, method: method == "start")
    with pytest.raises(RunError, match="worker 7 died .*, after 6 others that were replaced, .* `resume`"):
        learn()
    assert ray.events[-1] == "shutdown"


class Raising(IdentityTask):
    def step(self, actions):
        raise ValueError("the scanner is on fire")


def test_an_error_in_a_worker_ends_the_run_with_its_traceback(use_fake_ray):
    ray = use_fake_ray()
    with pytest.raises(RunError, match="(?s)worker 1 failed and ended the run; .*the scanner is on fire"):
        learn(env=Raising)
    assert ray.events[-1] == "shutdown"


def test_the_callback_stops_the_run_and_what_is_on_its_way_changes_nothing(use_fake_ray):
    use_fake_ray()
    agent, heard = learn(callback=lambda metrics: int(metrics["agent/staleness"]) == 1)
    assert len(heard) == int(agent.writes) == 2


def test_a_stop_needs_no_answer_of_a_worker(use_fake_ray):
    class Stopping:
        asked = 0

        def __call__(self, metrics):
            return False

        def has_to_stop(self):
            self.asked += 1
            return self.asked > 5

    use_fake_ray(hangs=lambda actor, method: method == "play")
    agent = make_agent("a3c", SHAPE, num_workers=2, ray="local")
    agent.learn(IdentityTask, 20, seed=0, callback=Stopping())
    assert int(agent.writes) == 0


def test_a_worker_that_hangs_is_replaced_and_a_cluster_that_starts_none_ends_the_run(use_fake_ray):
    ray = use_fake_ray()
    owner = Owner(ray, make_agent("a3c", SHAPE, ray="local"), IdentityTask, 6, 0, None)
    owner._start()
    owner._watch(START - 1)  # it waits for room in the cluster
    owner._take(next(iter(owner.calls)))
    owner._watch(STUCK - 1)
    assert owner.deaths == 0
    owner._watch(2.0)
    assert owner.deaths == 1 and ray.events == ["kill 1"] and len(owner.calls) == 1
    with pytest.raises(RunError, match="no machine of the Ray cluster has started a worker for .* `resume`"):
        owner._watch(START + 1)


def test_a_cluster_with_too_few_cpus_is_noted_and_its_address_is_passed_on(use_fake_ray, capsys):
    ray = use_fake_ray(cpus=1)
    agent = make_agent("a3c", SHAPE, num_workers=2, ray="auto")
    agent.learn(IdentityTask, 2, seed=0)
    assert "note: the cluster has 1 CPUs for 2 workers" in capsys.readouterr().err
    assert ray.options["address"] == "auto" and "num_cpus" not in ray.options
    learn(steps=1)
    assert ray.options["num_cpus"] == 2 and not ray.options["include_dashboard"]


def test_no_cluster_is_said_with_the_way_out(use_fake_ray, monkeypatch):
    ray = use_fake_ray()

    def init(**options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init, raising=False)
    with pytest.raises(RunError, match="`ray=local`: Ray does not start .*Could not find any.* `resume`"):
        learn()

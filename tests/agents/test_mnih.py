"""The optimiser of Mnih et al. (2016) by option: shared RMSProp, updates without a lock, annealing."""

import copy
import threading

import numpy as np
import pytest
import torch

from ahm_gym.agents import make_agent
from ahm_gym.agents.learner import Learner
from ahm_gym.agents.optimizers import rmsprop
from ahm_gym.errors import InputError
from ahm_gym.testing import IdentityTask, solved

SHAPE = IdentityTask().single_observation_space.shape


def learn(agent, steps, seed=0):
    heard = []
    env = IdentityTask()
    if seed is None:
        env.reset(seed=11)
    agent.learn(lambda: env, steps, seed=seed, callback=lambda metrics: heard.append(metrics) or False)
    return heard


def test_rmsprop_takes_the_steps_of_the_paper():
    gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = rmsprop([weight], 0.2, fused=False)
    mean, expected = torch.zeros(3), torch.ones(3)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.99 * mean + 0.01 * gradient.square()
        expected = expected - 0.2 * gradient / (mean + 0.1).sqrt()
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.slow
def test_a3c_solves_the_identity_task_with_the_optimiser_of_the_paper():
    agent = make_agent("a3c", SHAPE, optimizer="rmsprop", learning_rate=0.03, anneal=True)
    rewards = [metrics["reward"] for metrics in learn(agent, 200)]
    assert solved(IdentityTask(), float(np.mean(rewards[-50:]))) >= 0.95


def test_an_unknown_optimiser_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'rmsprop'"):
        make_agent("a3c", SHAPE, optimizer="rmsprob")


def test_an_annealed_learning_rate_falls_linearly_from_the_first_update_to_the_last():
    agent, rates = make_agent("a3c", SHAPE, anneal=True, learning_rate=0.08), []
    step = agent.optimizer.step
    agent.optimizer.step = lambda: (rates.append(agent.optimizer.param_groups[0]["lr"]), step())
    heard = learn(agent, 4)
    assert rates == pytest.approx([0.08, 0.06, 0.04, 0.02])
    assert [metrics["train/learning_rate"] for metrics in heard] == pytest.approx(rates)


def test_a_resumed_run_anneals_as_one_without_a_stop():
    whole = make_agent("a3c", SHAPE, anneal=True)
    rates = [metrics["train/learning_rate"] for metrics in learn(whole, 6)]
    first = make_agent("a3c", SHAPE, anneal=True)
    seen = []
    env = IdentityTask()
    first.learn(lambda: env, 6, seed=0, callback=lambda metrics: seen.append(metrics) or len(seen) == 2)
    second = make_agent("a3c", SHAPE, anneal=True, seed=3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [metrics["train/learning_rate"] for metrics in learn(second, 4, None)] == pytest.approx(rates[2:])


def test_the_state_of_an_agent_without_the_options_is_what_it_was():
    agent = make_agent("a3c", SHAPE)
    metrics = learn(agent, 2)[-1]
    assert agent.state_dict().keys() == {"network", "optimizer", "generator", "writes"}
    assert "train/learning_rate" not in metrics
    assert isinstance(agent.optimizer, torch.optim.Adam) and agent.optimizer.param_groups[0]["lr"] == 3e-3


@pytest.mark.parametrize("lock_free", [False, True])
def test_gradients_are_applied_under_the_lock_unless_it_is_lock_free_and_updates_are_always_counted(
    lock_free,
):
    agent = make_agent("a3c", SHAPE, lock_free=lock_free)
    agent.lock = threading.Lock()
    learner = Learner(agent, copy.deepcopy(agent.network), IdentityTask(), torch.Generator(), 0)
    locked, before = [], copy.deepcopy(agent.network.heads.bias)
    step, observe = agent.optimizer.step, agent.network.observe
    agent.optimizer.step = lambda: (locked.append(agent.lock.locked()), step())
    agent.network.observe = lambda seen: (locked.append(agent.lock.locked()), observe(seen))
    play = learner.play

    def while_others_write(n_steps):
        agent.writes += 3
        return play(n_steps)

    learner.play = while_others_write
    metrics = learner.episode()
    assert locked == [True, not lock_free]  # statistics, weights
    assert metrics["agent/staleness"] == 3 and int(agent.writes) == 4 and int(agent.episodes) == 1
    assert not torch.equal(agent.network.heads.bias, before) and not agent.lock.locked()


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_the_statistics_of_the_optimiser_are_in_shared_memory(optimizer):
    agent = make_agent("a3c", SHAPE, num_workers=2, optimizer=optimizer)
    agent.share_memory(threading.Lock())
    tensors = [value for state in agent.optimizer.state.values() for value in state.values()]
    assert len(tensors) > 10 and all(value.is_shared() for value in tensors)


@pytest.mark.slow
def test_workers_share_the_statistics_of_rmsprop_and_learn_without_a_lock():
    agent = make_agent(
        "a3c", SHAPE, num_workers=2, optimizer="rmsprop", learning_rate=0.03, lock_free=True, anneal=True
    )
    heard = []
    agent.learn(IdentityTask, 500, seed=0, callback=lambda metrics: heard.append(metrics) or False)
    assert int(agent.writes) == int(agent.episodes) == len(heard) == 500
    assert solved(IdentityTask(), float(np.mean([m["reward"] for m in heard[-50:]]))) >= 0.9
    assert agent.optimizer.state[agent.network.heads.weight]["square_avg"].any()
    assert max(metrics["agent/staleness"] for metrics in heard) >= 1
    assert heard[-1]["train/learning_rate"] < 0.01 < 0.02 < heard[0]["train/learning_rate"]

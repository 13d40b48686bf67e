"""The group-relative agent: its baseline and gradient by value, and what it needs of an environment."""

import itertools

import numpy as np
import pytest
import torch
from test_agents import play

from ahm_gym.agents import make_agent
from ahm_gym.agents.group import GroupPlayer, others_mean
from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError, RunError
from ahm_gym.testing import IdentityTask, solved


def env_of(**options):
    images = torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return MaskingVectorEnv(4, data=images, image_size=32, num_steps=50, **options)


def agent_of(env, **options):
    return make_agent("group", env.single_observation_space.shape, **options)


def test_the_value_of_a_patch_is_its_mean_in_the_other_masks_or_else_that_of_the_image():
    masked = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 1, 0]], [[1, 1, 0, 0]]]).bool()
    reward = torch.tensor([[[1.0, 2.0, 9.0, 9.0]], [[3.0, 9.0, 4.0, 9.0]], [[5.0, 6.0, 9.0, 9.0]]])
    found = others_mean(reward, masked)
    assert found[0, 0].tolist() == [4.0, 6.0, 4.0, 4.5]  # the last: nowhere masked, so the mean of 3, 4, 5, 6
    assert found[1, 0].tolist() == [3.0, 4.0, 3.5, 3.5]
    assert found[2, 0].tolist() == [2.0, 2.0, 4.0, 2.5]


def test_one_draw_an_image_has_the_gradient_of_the_expected_reward():
    """Every pair of draws of a group of two, with its probability: the baseline changes no expectation."""
    logits, rewards = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = logits.clone().requires_grad_()
    (z.softmax(dim=0) * rewards).sum().backward()
    agent = agent_of(IdentityTask(num_patches=4, num_targets=1), entropy_coef=0.0, logit_cost=0.0)
    found = torch.zeros(4, dtype=torch.float64)
    for pair in itertools.product(range(4), repeat=2):
        own = logits.clone().requires_grad_()
        agent.network.forward = lambda seen, own=own: ActorCriticOutput(own[None], None, None)
        orders = torch.tensor([[[patch, *(i for i in range(4) if i != patch)]] for patch in pair])
        masked = torch.tensor([[[i == patch for i in range(4)]] for patch in pair])
        paid = rewards * masked
        chosen = (torch.arange(4) < 1).expand(2, 1, 4)
        loss, _ = agent.loss(torch.ones(1, 4, 8), orders, chosen, paid, others_mean(paid, masked))
        loss.backward()
        found -= logits.softmax(dim=0)[list(pair)].prod() * own.grad
    torch.testing.assert_close(found, z.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("group_size", [2, 6])
def test_it_measures_its_masks_without_an_update_and_plays_one_of_them(group_size):
    env = env_of(reward="loss", guided_fraction=1.0)
    agent = agent_of(env, group_size=group_size)
    told, evaluate = [], env.evaluate

    def noted(masks, guided):
        told.append((masks.clone(), guided.clone(), env.pretrainer.updates))
        return evaluate(masks, guided)

    env.evaluate = noted
    player = GroupPlayer(agent, agent.network, env, agent.generator, 0)
    for update in range(3):
        step, seen = env.step, []
        env.step = lambda scores, step=step, seen=seen: seen.append(step(scores)) or seen[-1]
        metrics = player.episode()
        env.step = step
        masks, guided, before = told[-1]
        assert masks.shape == (group_size, 4, 16) and torch.equal(masks, guided) and before == update
        assert np.array_equal(seen[0][4]["mask"], masks[0].numpy())
    assert env.pretrainer.updates == 3 == agent.writes
    assert {"loss", "reward", "agent/policy_loss", "agent/draw_entropy", "agent/grad_norm"} <= metrics.keys()


def test_measured_masks_have_the_random_and_the_spread_patches_of_the_environment():
    env = env_of(guided_fraction=0.5, spread_fraction=lambda progress: 1.0)
    agent = agent_of(env)
    player = GroupPlayer(agent, agent.network, env, agent.generator, 0)
    masks = player._masks(torch.rand(400, 16, generator=torch.Generator().manual_seed(0)))
    assert (masks.masked.sum(dim=1) == 12).all() and (masks.guided.sum(dim=1) == 6).all()
    windows = (~masks.masked).reshape(-1, 2, 2, 2, 2).sum(dim=(2, 4))
    assert (windows == 1).all()  # every window of 2x2 patches keeps one of them visible


def test_the_critic_learns_nothing():
    env = IdentityTask()
    agent = agent_of(env)
    before = {name: value.clone() for name, value in agent.network.state_dict().items()}
    play(agent, env, 5)
    after = agent.network.state_dict()
    assert torch.equal(after["image_head.weight"], before["image_head.weight"])
    assert torch.equal(after["heads.weight"][1], before["heads.weight"][1])
    assert not torch.equal(after["heads.weight"][0], before["heads.weight"][0])


def test_it_learns_nothing_where_it_chooses_nothing():
    env = env_of(guided_fraction=0.0)
    agent = agent_of(env)
    agent.learn(lambda: env, 3, seed=0)
    assert agent.writes == 0 and env.pretrainer.updates == 3 and agent.network.normalise.count == 3


@pytest.mark.parametrize("reward", ["progress", "relative", "rank"])
def test_it_learns_with_every_kind_of_reward(reward):
    env = env_of(reward=reward)
    agent = agent_of(env)
    seen = []
    agent.learn(lambda: env, 4, seed=0, callback=lambda metrics: seen.append(metrics) or False)
    assert int(agent.writes) == 4 and all(np.isfinite(list(metrics.values())).all() for metrics in seen)


def test_it_solves_a_task_in_which_most_patches_are_masked():
    env = IdentityTask(num_patches=64, num_targets=48)
    rewards = play(agent_of(env, group_size=2), env, 100)
    assert solved(env, float(np.mean(rewards[-10:]))) >= 0.85


def test_it_needs_an_environment_that_measures_whole_masks():
    class Blind(IdentityTask):
        def __getattribute__(self, name):
            if name == "evaluate":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(InputError, match=r"has no evaluate\(\)"):
        agent_of(IdentityTask()).learn(Blind, 1, seed=0)
    env = env_of(masking_steps=2)
    with pytest.raises(InputError, match="`masking_steps` is 2: agent group compares whole masks"):
        agent_of(env).learn(lambda: env, 1, seed=0)


def test_a_reward_that_is_not_finite_ends_the_run_with_a_sentence():
    class Poisoned(IdentityTask):
        def evaluate(self, masks, guided=None):
            found = super().evaluate(masks, guided)
            found.patch_reward[:] = np.nan
            return found

    with pytest.raises(RunError, match="gradient is not finite"):
        agent_of(IdentityTask()).learn(Poisoned, 1, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "`group_size` is 1: choose 2 or more"),
        ({"group_size": 0}, "`group_size` is 0: choose a whole number"),
        ({"logit_cost": -1.0}, "`logit_cost` is -1.0: choose 0 or a positive number"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0: choose a positive number"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        agent_of(IdentityTask(), **options)

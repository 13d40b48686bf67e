"""PPO over patches: its loss by value, its epochs, and what it learns from."""

import copy

import numpy as np
import pytest
import torch
from test_agents import FallingRewards, MostlyUnpaid, OneMaskAStep, Poisoned, play

from ahm_gym.agents import make_agent
from ahm_gym.agents.losses import explained_variance, step_loss
from ahm_gym.agents.networks import ActorCriticOutput
from ahm_gym.agents.patch_ppo import normalised
from ahm_gym.agents.player import Player
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError, RunError
from ahm_gym.testing import IdentityTask, solved

NAMES = {
    "train/approx_kl", "train/clip_fraction", "train/policy_gradient_loss", "train/value_loss", "train/entropy_loss",
    "train/explained_variance", "train/grad_norm", "train/n_updates",
}  # fmt: skip


def agent_of(env=None, **options):
    return make_agent("patch_ppo", (env or IdentityTask()).single_observation_space.shape, **options)


def played(agent, env=None, seed=0):
    """One episode as `Player` returns it, with the bootstrap and the experience of it."""
    player = Player(agent, agent.network, env or IdentityTask(), agent.generator, seed)
    rollout, info, *_ = player.play()
    mask, bootstrap = torch.as_tensor(info["mask"]), player.bootstrap(rollout)
    return rollout, mask, agent._experience(rollout, mask, bootstrap)


def shaken(agent):
    """The same agent with logits that are not all 0."""
    generator = torch.Generator().manual_seed(1)
    torch.nn.init.normal_(agent.network.heads.weight, generator=generator)
    return agent


def gradient(agent, loss):
    found = torch.autograd.grad(loss, list(agent.network.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None])


@pytest.mark.parametrize("credit", ["own", "local", "image"])
def test_before_the_policy_has_moved_the_gradient_is_that_of_a3c(credit):
    agent = shaken(agent_of(credit=credit, normalise_advantage=False, logit_cost=0.0, entropy_coef=0.0))
    (step,), mask, experience = played(agent)
    loss, parts = agent.minibatch_loss(*experience)
    scale = agent.network.reward_scale.value()
    chosen = step.guided.gather(1, step.order)
    expected, _ = step_loss(
        agent.network(step.observation), step.order, step.available, chosen, mask, step.patch_reward / scale,
        step.image_reward / scale, credit,
    )  # fmt: skip
    torch.testing.assert_close(
        gradient(agent, loss),
        gradient(agent, expected.policy + agent.value_coef * expected.value),
        atol=1e-6,
        rtol=1e-3,
    )
    assert parts[:2].tolist() == [0.0, 0.0]  # nothing has moved, nothing is clipped
    torch.testing.assert_close(parts[4], expected.entropy.detach())


def test_every_draw_is_clipped_by_its_own_ratio():
    agent = agent_of(
        normalise_advantage=False, clip_range=0.2, entropy_coef=0.0, value_coef=0.0, logit_cost=0.0
    )
    _, _, experience = played(agent)
    moved = 0.5 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    free = moved.clone().requires_grad_()
    agent.network.forward = lambda seen: ActorCriticOutput(free, torch.zeros(32, 16), torch.zeros(32))
    loss, parts = agent.minibatch_loss(*experience)
    total, count, clipped, divergence = 0.0, 0, 0, 0.0
    for row in range(32):
        left = list(range(16))
        for j in range(4):
            patch = int(experience.order[row, j])
            now = float(moved[row, left].softmax(dim=0)[left.index(patch)])
            ratio = now / float(experience.log_prob[row, j].exp())
            advantage = float(experience.advantage[row, j])
            total -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            clipped += abs(ratio - 1) > 0.2
            divergence += ratio - 1 - np.log(ratio)
            count += 1
            left.remove(patch)
    assert float(loss.detach()) == pytest.approx(total / count, abs=1e-5)
    assert float(parts[0]) == pytest.approx(divergence / count, abs=1e-5)
    assert float(parts[1]) == pytest.approx(clipped / count, abs=1e-6) and 0 < clipped < count


def test_a_draw_that_has_moved_far_enough_in_its_own_direction_has_no_gradient():
    agent = agent_of(normalise_advantage=False, entropy_coef=0.0, value_coef=0.0, logit_cost=0.0)
    _, _, experience = played(agent)
    experience = experience._replace(
        drawn=experience.drawn & (torch.arange(16) == 0), advantage=torch.ones(32, 16)
    )
    logits = torch.zeros(32, 16).scatter(1, experience.order[:, :1], 1.0)
    for sign, moves in ((1.0, False), (-1.0, True)):
        free = logits.clone().requires_grad_()
        agent.network.forward = lambda seen, free=free: ActorCriticOutput(
            free, 0 * free.detach(), torch.zeros(32)
        )
        agent.minibatch_loss(*experience._replace(advantage=sign * experience.advantage))[0].backward()
        assert bool(free.grad.any()) is moves


def test_advantages_are_normalised_over_the_draws_alone():
    advantage = torch.tensor([[1.0, 3.0, 99.0], [5.0, 7.0, -99.0]])
    drawn = torch.tensor([[True, True, False], [True, True, False]])
    found = normalised(advantage, drawn)
    values = (torch.tensor([1.0, 3.0, 5.0, 7.0]) - 4) / 5**0.5
    torch.testing.assert_close(found[drawn], values)
    assert not found[~drawn].any()


def test_explained_variance_is_a_share_of_the_counted_returns():
    returns = torch.tensor([1.0, 2.0, 3.0, 50.0])
    counted = torch.tensor([True, True, True, False])
    for values, share in (
        ([1.0, 2.0, 3.0, 0.0], 1.0),
        ([0.0, 0.0, 0.0, 9.0], 0.0),
        ([3.0, 2.0, 1.0, 0.0], -3.0),
    ):
        assert float(explained_variance(torch.tensor(values), returns, counted)) == pytest.approx(share)
    assert float(explained_variance(returns, torch.ones(4), counted)) == 0.0


def heard(agent, env, steps, seed=0):
    seen = []
    agent.learn(lambda: env, steps, seed=seed, callback=lambda metrics: seen.append(metrics) or False)
    return seen


def test_it_learns_once_in_a_rollout_of_several_batches_and_reports_it_by_the_names_of_sb3():
    agent = agent_of(rollout_batches=3, num_epochs=2, num_minibatches=5)
    seen = heard(agent, IdentityTask(), 7)
    learned = [number for number, metrics in enumerate(seen, start=1) if NAMES <= metrics.keys()]
    assert learned == [3, 6] and len(agent.stored) == 1
    assert int(agent.writes) == 2 * 2 * 5 and seen[5]["train/n_updates"] == 20
    assert seen[5]["train/approx_kl"] >= 0 and 0 <= seen[5]["train/clip_fraction"] <= 1
    assert seen[5]["train/entropy_loss"] < 0 < seen[5]["train/grad_norm"]
    assert 0 < seen[5]["agent/draw_entropy"] <= 1


@pytest.mark.parametrize(("target_kl", "writes"), [(None, 40), (1e6, 40), (1e-9, 4)])
def test_epochs_end_once_the_policy_has_moved_far_enough(target_kl, writes):
    agent = agent_of(rollout_batches=2, num_epochs=10, target_kl=target_kl)
    heard(agent, IdentityTask(), 2)
    assert int(agent.writes) == writes


def test_a_resumed_agent_learns_from_the_batches_that_were_stored():
    env = IdentityTask()
    agent = agent_of(env)
    agent.learn(lambda: env, 2, seed=0)
    other = agent_of(env, seed=5)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert len(other.stored) == 2
    later = [heard(one, IdentityTask(), 3, seed=7) for one in (agent, other)]
    assert later[0] == later[1] and "train/approx_kl" in later[0][1]


def test_it_learns_nothing_from_masks_that_it_did_not_choose():
    env = MaskingVectorEnv(4, data=torch.rand(16, 1, 32, 32), image_size=32, guided_fraction=0.0, num_steps=9)
    agent = make_agent("patch_ppo", env.single_observation_space.shape)
    seen = heard(agent, env, 5)
    assert (
        agent.writes == 0
        and not agent.stored
        and [sorted(metrics) for metrics in seen] == [["guided", "loss"]] * 5
    )
    assert agent.network.normalise.count == 5


def test_steps_of_an_episode_have_the_returns_of_generalised_advantage_estimation():
    agent = shaken(agent_of(OneMaskAStep(), gamma=0.5, gae_lambda=0.25))
    (first, second), _, experience = played(agent, OneMaskAStep())
    scale = agent.network.reward_scale.value()
    last = second.patch_reward / scale
    torch.testing.assert_close(experience.patch_return[32:], last)
    # The first step pays nothing: a delta of gamma * V2 - V1, and gamma * lambda of the delta of the second.
    delta = 0.5 * second.values - first.values
    torch.testing.assert_close(
        experience.patch_return[:32], first.values + delta + 0.5 * 0.25 * (last - second.values)
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"gae_lambda": 0.9}, marks=pytest.mark.slow),
        pytest.param({"credit": "local"}, marks=pytest.mark.slow),
    ],
)
def test_it_learns_in_episodes_of_two_steps(options):
    env = OneMaskAStep()
    rewards = play(agent_of(env, **options), env, 300)
    assert solved(env, float(np.mean(rewards[-50:]))) >= 0.8


@pytest.mark.parametrize("task", [MostlyUnpaid, pytest.param(FallingRewards, marks=pytest.mark.slow)])
def test_it_learns_from_the_images_that_are_paid_and_while_rewards_fall(task):
    env = task()
    rewards = play(agent_of(env), env, 300)
    assert solved(env, float(np.mean(rewards[-50:]))) >= 0.9


def test_a_reward_that_is_not_finite_ends_the_run_with_a_sentence():
    with pytest.raises(RunError, match="the rewards are not finite"):
        agent_of().learn(Poisoned, 3, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"credit": "globl"}, "credit 'globl'"),
        ({"rollout_batches": 0}, "`rollout_batches` is 0: choose a whole number"),
        ({"num_minibatches": 0}, "`num_minibatches` is 0"),
        ({"clip_range": 0.0}, "`clip_range` is 0.0: choose a positive number"),
        ({"target_kl": -1.0}, "`target_kl` is -1.0: choose a positive number"),
        ({"gamma": 2.0}, "`gamma` is 2.0: choose a number from 0 to 1"),
        ({"value_coef": -1.0}, "`value_coef` is -1.0: choose 0 or a positive number"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        agent_of(**options)

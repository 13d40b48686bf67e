import gymnasium as gym
import numpy as np
import pytest
import torch

from ahm_gym.errors import InputError
from ahm_gym.mixing.bandit import ThompsonSampling


class Arms(gym.Env):
    """A step pays the mean of the arm plus noise; from step `turn` on the means are in reverse order."""

    def __init__(self, means, deviation, turn=10**9, scale=lambda step: 1.0):
        self.action_space = gym.spaces.Discrete(len(means))
        self.observation_space = gym.spaces.Discrete(1)
        self.means, self.deviation, self.turn, self.scale = means, deviation, turn, scale

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return 0, {}

    def step(self, action):
        means = self.means if self.step_number < self.turn else self.means[::-1]
        self.step_number += 1
        reward = self.scale(self.step_number) * (means[action] + self.deviation * self.np_random.normal())
        return 0, reward, self.step_number == 300, False, {}


def played(env, seeds=5, **options):
    """The arms of every step, for each seed."""
    rows = [
        ThompsonSampling(len(env.means), seed=seed, **options).play(env, seed=seed) for seed in range(seeds)
    ]
    return np.array([[row["action"] for row in one] for one in rows])


def test_every_arm_is_tried_once_in_an_order_of_the_seed():
    arms = played(Arms([0.0] * 4, 1.0))[:, :4]
    assert (np.sort(arms) == np.arange(4)).all() and len({tuple(order) for order in arms}) > 1


@pytest.mark.parametrize("scale", [lambda step: 1.0, lambda step: 1e-3, lambda step: 1.0 / step])
def test_the_better_arm_is_found_whatever_the_size_of_the_rewards(scale):
    arms = played(Arms([0.5, 0.5, 1.5], 0.5, scale=scale))
    assert (arms[:, 100:] == 2).mean() > 0.75


def test_only_a_bandit_that_forgets_follows_a_change_soon():
    env = Arms([0.0, 1.0], 0.3, turn=150)
    assert (played(env)[:, 170:190] == 0).mean() > 0.8
    assert (played(env, forgetting=1.0)[:, 170:190] == 0).mean() < 0.2


def test_equal_rewards_leave_all_arms_equal():
    arms = played(Arms([1.0, 1.0, 1.0], 0.0))
    assert np.abs(np.bincount(arms.ravel()) / arms.size - 1 / 3).max() < 0.05


def test_the_belief_about_an_arm_is_the_mean_of_its_rewards_and_one_mean_reward():
    bandit = ThompsonSampling(2, forgetting=1.0)
    for arm, reward in ((0, 2.0), (1, -2.0), (0, 2.0)):
        bandit.learn(arm, reward)  # all of size 2, so in units of it they are 1, -1 and 1
    mean, deviation = bandit.belief()
    torch.testing.assert_close(mean, torch.tensor([(2 + 1 / 3) / 3, (-1 + 1 / 3) / 2], dtype=torch.float64))
    variance = 1 - 1 / 9
    expected = torch.tensor([variance / 3, variance / 2], dtype=torch.float64).sqrt()
    torch.testing.assert_close(deviation, expected)


def test_a_bandit_continues_from_its_state():
    one, other = ThompsonSampling(3, seed=1), ThompsonSampling(3, seed=2)
    for reward in (1.0, 0.5, -0.2, 0.3):
        one.learn(one.choose(), reward)
    other.load_state_dict(one.state_dict())
    for reward in (0.1, 0.9, 0.4, 0.2, 0.8):
        arms = [bandit.choose() for bandit in (one, other)]
        assert arms[0] == arms[1]
        for bandit in (one, other):
            bandit.learn(arms[0], reward)


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="`num_arms` is 0"):
        ThompsonSampling(0)
    with pytest.raises(InputError, match="`forgetting` is 0"):
        ThompsonSampling(2, forgetting=0.0)
    with pytest.raises(InputError, match="reward of arm 1 is nan"):
        ThompsonSampling(2).learn(1, float("nan"))
    with pytest.raises(InputError, match=r"needs Discrete\(3\)"):
        ThompsonSampling(3).play(Arms([0.0, 1.0], 1.0))

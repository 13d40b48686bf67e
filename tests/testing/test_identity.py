import numpy as np
import pytest

from ahm_gym.testing import IdentityTask, SequentialIdentityTask, solved


def test_masking_the_targets_pays_one_and_a_random_choice_pays_their_share():
    env = IdentityTask(num_envs=500)
    env.reset(seed=0)
    _, reward, *_ = env.step(env.targets.astype(np.float32))
    assert (reward == 1).all()
    _, reward, *_ = env.step(np.random.default_rng(0).random((500, 16)))
    assert solved(env, 1.0) == 1.0
    assert solved(env, float(reward.mean())) == pytest.approx(0.0, abs=0.05)


def test_the_targets_show_only_in_the_observation_and_change_from_image_to_image():
    env = IdentityTask(num_envs=400)
    observation, _ = env.reset(seed=0)
    assert np.abs(env.targets.mean(axis=0) - 0.25).max() < 0.1
    marked = (observation - env.position) @ env.mark / (env.mark @ env.mark)
    assert marked[env.targets].mean() == pytest.approx(1.0, abs=0.05)
    assert marked[~env.targets].mean() == pytest.approx(0.0, abs=0.05)


def test_the_sequential_task_pays_what_the_one_step_task_pays():
    env = SequentialIdentityTask(num_envs=5)
    env.reset(seed=0)
    targets = env.targets.argsort(axis=1, kind="stable")[:, ::-1]
    for choice in range(4):
        assert env.action_masks().sum() == 5 * (16 - choice)
        observation, reward, ended, *_ = env.step(targets[:, choice])
        assert (observation == 0).all(axis=2).sum() == (0 if ended.all() else 5 * (choice + 1))
    assert ended.all() and (reward == 1).all()


def test_choosing_a_patch_twice_masks_another_one():
    env = SequentialIdentityTask(num_envs=5)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(5, dtype=np.int64))
    assert (env.mask.sum(axis=1) == 3).all()

import numpy as np
import pytest
from episodes import IMAGES, NUM_MASKED, SIZES, B, L, begin, make_env, patches_of, play

from ahm_gym.envs import (
    GroupMaskingEnv,
    GroupMaskingVectorEnv,
    SequentialMaskingEnv,
    SequentialMaskingVectorEnv,
)


def test_one_patch_a_step_lasts_as_long_as_the_guided_patches():
    env = begin(SequentialMaskingVectorEnv, guided_fraction=0.25)
    assert env.masking_steps == 3
    for step, patch in enumerate([5, 2, 9]):
        assert env.num_guided == 1
        *_, terminated, _, info = env.step(np.full(B, patch))
        assert terminated.all() == (step == 2)
    assert patches_of(info["guided"]) == [{2, 5, 9}] * B


def test_without_a_guided_share_one_patch_is_chosen():
    env = begin(SequentialMaskingVectorEnv, guided_fraction=0.0)
    *_, terminated, _, info = env.step(np.array([0, 1, 2, 3]))
    assert terminated.all()
    assert patches_of(info["guided"]) == [{0}, {1}, {2}, {3}]
    assert (info["mask"].sum(axis=1) == NUM_MASKED).all()


def test_the_length_of_an_episode_follows_the_guided_share_over_training():
    env = begin(SequentialMaskingVectorEnv, guided_fraction=lambda progress: progress, num_steps=4)
    lengths = [len(play(env))]
    for _ in range(2):
        env.reset()
        lengths.append(len(play(env)))
    assert lengths == [1, 3, 6]


def test_choosing_a_masked_patch_masks_another_one_and_reports_it():
    env = make_env(SequentialMaskingVectorEnv)
    _, info = env.reset(seed=0)
    assert info["action_mask"].all()
    *_, info = env.step(np.array([3, 3, 5, 5]))
    assert not info["repaired"].any()
    assert np.array_equal(info["action_mask"] == 0, info["mask"])
    *_, info = env.step(np.array([3, 4, 5, 6]))
    assert info["repaired"].tolist() == [True, False, True, False]
    assert (info["mask"].sum(axis=1) == 2).all()
    assert np.array_equal(env.action_masks(), ~info["mask"])


def test_a_group_of_different_visible_patches_is_masked_exactly():
    env = begin(GroupMaskingVectorEnv, group_size=3)
    groups = np.array([[0, 1, 2], [15, 3, 7], [4, 8, 12], [9, 6, 10]])
    *_, info = env.step(groups)
    assert patches_of(info["guided"]) == [set(group) for group in groups.tolist()]
    assert not info["repaired"].any()
    assert np.array_equal(info["action_mask"] == 0, info["mask"])


def test_repeated_and_masked_choices_of_a_group_are_repaired():
    env = begin(GroupMaskingVectorEnv, group_size=3)
    env.step(np.tile([0, 1, 2], (B, 1)))
    *_, info = env.step(np.array([[3, 3, 4], [0, 3, 4], [3, 4, 5], [0, 1, 2]]))
    assert info["repaired"].tolist() == [True, True, False, True]
    assert (info["guided"].sum(axis=1) == 6).all()
    assert all({0, 1, 2, 3, 4} <= chosen for chosen in patches_of(info["guided"])[:3])


def test_the_first_choices_count_if_fewer_than_a_group_are_left():
    env = begin(GroupMaskingVectorEnv, group_size=4, guided_fraction=0.5)
    env.step(np.tile([0, 1, 2, 3], (B, 1)))
    assert env.num_guided == 2
    *_, terminated, _, info = env.step(np.tile([1, 9, 8, 7], (B, 1)))
    assert terminated.all() and not info["repaired"].any()
    assert patches_of(info["guided"]) == [{0, 1, 2, 3, 8, 9}] * B


@pytest.mark.parametrize(("cls", "num_choices"), [(SequentialMaskingEnv, 1), (GroupMaskingEnv, 2)])
def test_action_masks_hold_one_row_of_patches_for_each_choice(cls, num_choices):
    options = {"group_size": 2} if cls is GroupMaskingEnv else {}
    env = cls(data=IMAGES, **SIZES, **options)
    env.reset(seed=0)
    *_, info = env.step([2, 5] if options else 2)
    assert env.action_masks().shape == (num_choices * L,)
    assert np.array_equal(env.action_masks(), np.tile(info["action_mask"] == 1, num_choices))
    assert info["action_mask"].sum() == L - num_choices

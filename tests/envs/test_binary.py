import numpy as np
import pytest
from episodes import B, begin, bits, patches_of

from ahm_gym.envs import MultiBinaryMaskingVectorEnv


@pytest.mark.parametrize("guided_fraction", [0.5, 1.0])
def test_the_right_number_of_ones_masks_exactly_those(guided_fraction):
    env = begin(MultiBinaryMaskingVectorEnv, guided_fraction=guided_fraction)
    action = bits(*range(3, 3 + env.num_guided))
    *_, info = env.step(action)
    assert env.pretrainer.updates == 1
    assert np.array_equal(info["guided"], action == 1)
    assert not info["repaired"].any()


def test_of_too_many_ones_a_random_subset_is_masked():
    env = begin(MultiBinaryMaskingVectorEnv, guided_fraction=0.5)
    *_, info = env.step(bits(*range(10)))
    assert info["repaired"].all()
    assert (info["guided"].sum(axis=1) == 6).all() and not info["guided"][:, 10:].any()
    assert len(set(map(frozenset, patches_of(info["guided"])))) > 1


def test_random_patches_are_added_to_too_few_ones():
    env = begin(MultiBinaryMaskingVectorEnv, guided_fraction=0.5)
    *_, info = env.step(bits(1, 7))
    assert info["repaired"].all()
    assert (info["guided"].sum(axis=1) == 6).all() and info["guided"][:, [1, 7]].all()
    assert len(set(map(frozenset, patches_of(info["guided"])))) > 1


def test_ones_at_masked_patches_count_for_nothing():
    env = begin(MultiBinaryMaskingVectorEnv, masking_steps=3)
    env.step(bits(0, 1, 2, 3))
    *_, info = env.step(bits(3, 4, 5, 6, 7))
    assert info["repaired"].all()
    assert patches_of(info["guided"]) == [set(range(8))] * B

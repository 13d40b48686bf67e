import numpy as np
import torch
from episodes import B, begin, patches_of, play

from ahm_gym.envs import RectangleMaskingVectorEnv
from ahm_gym.envs.rectangles import rectangle_distance


def test_a_rectangle_covers_its_patches_and_is_cut_at_the_edge():
    env = begin(RectangleMaskingVectorEnv, num_rectangles=3)
    rectangles = np.array([[0, 0, 1, 1], [1, 2, 3, 0], [3, 0, 0, 3], [2, 2, 3, 3]])
    expected = [{0, 1, 4, 5}, {6, 10, 14}, {12, 13, 14, 15}, {10, 11, 14, 15}]
    *_, info = env.step(rectangles)
    assert info["repaired"].tolist() == [False, True, False, False]
    guided = patches_of(info["guided"])
    assert [guided[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]
    assert expected[1] < guided[1] and len(guided[1]) == 4


def test_of_a_rectangle_that_is_too_large_a_random_subset_is_masked():
    env = begin(RectangleMaskingVectorEnv, num_rectangles=2)
    *_, info = env.step(np.tile([0, 0, 1, 3], (B, 1)))
    assert info["repaired"].all()
    assert (info["guided"].sum(axis=1) == 6).all() and not info["guided"][:, 8:].any()
    assert len(set(map(frozenset, patches_of(info["guided"])))) > 1


def test_the_nearest_visible_patches_are_added_to_a_rectangle_that_is_too_small():
    env = begin(RectangleMaskingVectorEnv, num_rectangles=3)
    *_, info = env.step(np.tile([0, 0, 0, 0], (B, 1)))
    assert patches_of(info["guided"]) == [{0, 1, 4, 5}] * B
    *_, info = env.step(np.tile([0, 0, 1, 1], (B, 1)))
    assert info["repaired"].all()
    assert all(chosen <= {0, 1, 4, 5, 2, 6, 10, 9, 8} for chosen in patches_of(info["guided"]))


def test_the_distance_from_a_rectangle_counts_rings_of_patches():
    distance = rectangle_distance(torch.tensor([[1, 1, 0, 1]]), (4, 6)).reshape(4, 6)
    assert distance.tolist() == [
        [1, 1, 1, 1, 2, 3],
        [1, 0, 0, 1, 2, 3],
        [1, 1, 1, 1, 2, 3],
        [2, 2, 2, 2, 2, 3],
    ]


def test_fewer_guided_patches_than_rectangles_take_one_step_each():
    env = begin(RectangleMaskingVectorEnv, num_rectangles=8, guided_fraction=0.25)
    assert [info["guided"].sum(axis=1).tolist() for info in play(env)] == [[1] * B, [2] * B, [3] * B]


def test_rectangles_in_an_image_that_is_not_square_follow_rows_and_columns():
    images = torch.randn(4, 1, 16, 32, generator=torch.Generator().manual_seed(0))
    env = RectangleMaskingVectorEnv(
        2, data=images, image_size=(16, 32), patch_size=8, num_rectangles=2, guided_fraction=1.0
    )
    assert env.single_action_space.nvec.tolist() == [2, 4, 2, 4]
    env.reset(seed=0)
    *_, info = env.step(np.array([[0, 3, 1, 0], [1, 0, 0, 2]]))
    assert {3, 7} <= patches_of(info["guided"])[0]
    assert patches_of(info["guided"])[1] == {4, 5, 6}

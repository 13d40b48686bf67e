import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from episodes import IMAGES, SIZES, B, L, begin, make_env, play
from hypothesis import given, settings
from hypothesis import strategies as st

from ahm_gym.envs import (
    GroupMaskingVectorEnv,
    MaskingVectorEnv,
    MultiBinaryMaskingVectorEnv,
    RectangleMaskingVectorEnv,
    SequentialMaskingVectorEnv,
)
from ahm_gym.errors import InputError
from ahm_gym.masking.schedules import Ramp, RisingMaskRatio
from ahm_gym.masking.selection import count_masked, select_patches
from ahm_gym.masking.spread import spread_over
from ahm_gym.testing import check_vector_env

FORMS = [
    MaskingVectorEnv, MultiBinaryMaskingVectorEnv, SequentialMaskingVectorEnv, GroupMaskingVectorEnv,
    RectangleMaskingVectorEnv,
]  # fmt: skip


def visible_of_windows(mask, side):
    """Visible patches (B, N) of the whole windows of a mask (B, rows, columns)."""
    rows, columns = (size // side * side for size in mask.shape[1:])
    windows = (~mask[:, :rows, :columns]).unflatten(1, (-1, side)).unflatten(3, (-1, side))
    return windows.sum(dim=(2, 4)).flatten(1)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(2, 9), columns=st.integers(2, 9), ratio=st.floats(0.3, 0.9), share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_every_whole_window_keeps_its_share_of_the_visible_patches(rows, columns, ratio, share, seed):
    num_masked = count_masked(rows * columns, ratio)
    visible = Fraction(2 * (rows * columns - num_masked) + 1, 2 * rows * columns)
    side = next(side for side in itertools.count(1) if side * side * visible >= 1)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (3, rows * columns), generator=generator).float()
    spread = spread_over((rows, columns), num_masked)
    mask, guided = select_patches(scores, num_masked, round(share * num_masked), generator, spread=spread)
    assert mask.sum(dim=1).tolist() == [num_masked] * 3
    assert guided.sum(dim=1).tolist() == [round(share * num_masked)] * 3
    assert (guided & ~mask).sum() == 0
    kept = visible_of_windows(mask.unflatten(1, (rows, columns)), side)
    assert (kept >= math.floor(side * side * visible)).all()


@pytest.mark.parametrize("side", [7, 8, 9, 14, 15, 28])
def test_at_three_quarters_one_patch_of_every_2x2_is_visible(side):
    count = count_masked(side * side, 0.75)
    generator = torch.Generator().manual_seed(0)
    spread = spread_over((side, side), count)
    mask, _ = select_patches(torch.rand(5, side * side), count, count // 2, generator, spread=spread)
    visible = visible_of_windows(mask.unflatten(1, (side, side)), 2)
    assert (visible == 1).all() if side % 2 == 0 else (visible >= 1).all()


def test_the_highest_scores_that_a_window_has_room_for_are_masked():
    scores = torch.tensor([[9.0, 8.0, 2.0, 1.0], [7.0, 6.0, 4.0, 3.0]]).flatten()[None]
    # Windows of 2x2 in a grid of 2x4: patches 0, 1, 4, 5 hold the four highest scores, and one of them stays.
    mask, guided = select_patches(
        scores, 6, 4, torch.Generator().manual_seed(0), spread=spread_over((2, 4), 6)
    )
    assert guided.nonzero()[:, 1].tolist() == [0, 1, 4, 6]
    assert mask[0, 5] == 0 and mask[0, [2, 3, 7]].sum() == 2


def test_patches_masked_in_earlier_steps_fill_their_windows():
    generator = torch.Generator().manual_seed(0)
    spread = spread_over((4, 4), 12)
    scores = torch.arange(16.0, 0.0, -1.0).expand(2, 16)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    for _ in range(6):
        new, _ = select_patches(scores, 2, 1, generator, masked, spread)
        assert not (new & masked).any() and not (new & spread.full(masked)).any()
        masked |= new
    assert (visible_of_windows(masked.unflatten(1, (4, 4)), 2) == 1).all()
    assert spread.full(masked).all()


def test_the_random_rest_is_uniform_within_a_window():
    generator = torch.Generator().manual_seed(0)
    mask, _ = select_patches(torch.rand(4000, 16), 12, 0, generator, spread=spread_over((4, 4), 12))
    assert torch.allclose(mask.float().mean(dim=0), torch.full((16,), 0.75), atol=0.03)


@pytest.mark.parametrize("cls", FORMS)
def test_every_form_of_the_action_spreads_and_passes_our_checker(cls):
    for guided_fraction in (0.4, 1.0):
        options = {"guided_fraction": guided_fraction, "spread_fraction": 1.0}
        check_vector_env(lambda options=options: make_env(cls, **options))
        env = begin(cls, **options)
        mask = torch.as_tensor(play(env)[-1]["mask"])
        assert (visible_of_windows(mask.unflatten(1, (4, 4)), 2) == 1).all()


def test_a_full_window_cannot_be_chosen_and_a_choice_in_it_is_repaired():
    env = begin(SequentialMaskingVectorEnv, spread_fraction=1.0)
    for patch in (0, 1, 4):
        *_, info = env.step(np.full(B, patch))
    assert not info["repaired"].any()
    unavailable = np.flatnonzero(info["action_mask"][0] == 0).tolist()
    assert unavailable == [0, 1, 4, 5] and env.action_masks().sum() == B * (L - 4)
    *_, info = env.step(np.full(B, 5))
    assert info["repaired"].all() and not info["mask"][:, 5].any()


def test_patches_of_full_windows_are_shown_as_zeros():
    env = begin(SequentialMaskingVectorEnv, spread_fraction=1.0)
    for patch in (0, 1, 4):
        observation, *_ = env.step(np.full(B, patch))
    assert np.flatnonzero((observation[0] == 0).all(axis=1)).tolist() == [0, 1, 4, 5]


@pytest.mark.filterwarnings("ignore:.*the schedule of 4 updates is over")
def test_masks_of_several_steps_are_spread_while_the_ratio_rises():
    env = MaskingVectorEnv(
        8, data=IMAGES, spread_fraction=1.0, guided_fraction=0.5, masking_steps=3, num_steps=4,
        mask_ratio=RisingMaskRatio(0.5, 0.75), **SIZES,
    )  # fmt: skip
    env.reset(seed=0)
    counts = []
    for _ in range(5):
        for _ in range(3):
            *_, info = env.step(env.action_space.sample())
        mask = torch.as_tensor(info["mask"])
        counts.append(int(mask[0].sum()))
        visible = visible_of_windows(mask.unflatten(1, (4, 4)), 2)
        assert (visible >= (2 if counts[-1] == 8 else 1)).all()
    assert counts == [8, 9, 10, 11, 12]


@pytest.mark.filterwarnings("ignore:.*the schedule of 2 updates is over")
def test_the_share_of_images_with_spread_masks_follows_training():
    env = MaskingVectorEnv(64, data=IMAGES, spread_fraction=Ramp(1.0, 0.0, 0.0, 1.0), num_steps=2, **SIZES)
    env.reset(seed=0)
    shares = []
    for _ in range(3):
        mask = torch.as_tensor(env.step(np.zeros((64, L)))[-1]["mask"]).unflatten(1, (4, 4))
        shares.append(float((visible_of_windows(mask, 2) == 1).all(dim=1).float().mean()))
    assert shares[0] == 1.0 and 0.4 < shares[1] < 0.8 and shares[2] < 0.4


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"spread fraction 1\.5 is out of range"):
        begin(MaskingVectorEnv, spread_fraction=1.5)

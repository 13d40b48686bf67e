import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahm_gym.errors import InputError
from ahm_gym.masking import RisingMaskRatio, count_masked, mask_top_k, ramp, select_patches


@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 4), num_patches=st.integers(2, 30), share=st.floats(0, 1), seed=st.integers(0, 1000),
    data=st.data(),
)  # fmt: skip
def test_every_image_gets_exactly_num_masked_patches(batch, num_patches, share, seed, data):
    num_masked = data.draw(st.integers(1, num_patches - 1))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(3, (batch, num_patches), generator=generator).float()
    mask = mask_top_k(scores, num_masked, guided_fraction=share, generator=generator)
    assert mask.sum(dim=1).tolist() == [num_masked] * batch


def test_the_highest_scored_patches_are_masked():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert mask_top_k(scores, 2).tolist() == [[False, True, False, True]]


def test_equal_scores_break_at_random_and_not_by_index():
    generator = torch.Generator().manual_seed(0)
    mask = mask_top_k(torch.zeros(4000, 4), 1, generator=generator)
    assert torch.allclose(mask.float().mean(dim=0), torch.full((4,), 0.25), atol=0.03)


def test_the_random_rest_is_uniform_over_the_patches_that_are_not_guided():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).expand(4000, 5)
    mask, guided = select_patches(scores, 3, 1, generator)
    assert guided.float().mean(dim=0).tolist() == [1, 0, 0, 0, 0]
    assert torch.allclose(mask.float().mean(dim=0)[1:], torch.full((4,), 0.5), atol=0.03)


def test_patches_that_are_masked_already_are_not_chosen_again():
    generator = torch.Generator().manual_seed(0)
    masked = torch.tensor([[True, False, True, False]]).expand(100, 4)
    mask, guided = select_patches(torch.rand(100, 4), 2, 1, generator, masked)
    assert not (mask & masked).any()
    assert (mask.sum(dim=1) == 2).all() and (guided & mask).sum() == 100


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_score_that_is_not_finite_raises(value):
    scores = torch.tensor([[0.0, float(value), 1.0]])
    with pytest.raises(InputError, match="NaN"):
        mask_top_k(scores, 1)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_mask_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(InputError, match=r"mask ratio .* out of range"):
        count_masked(64, ratio)


def test_at_least_one_patch_is_masked_and_one_is_visible():
    assert count_masked(4, 0.01) == 1
    assert count_masked(4, 0.99) == 3
    assert count_masked(64, 0.75) == 48


@settings(deadline=None, max_examples=200)
@given(
    ratios=st.tuples(st.floats(1e-6, 1, exclude_max=True), st.floats(1e-6, 1, exclude_max=True)),
    progress=st.lists(st.floats(0, 1), min_size=1, max_size=8), num_patches=st.integers(2, 300),
)  # fmt: skip
def test_a_rising_mask_ratio_never_falls_and_stays_between_its_ends(ratios, progress, num_patches):
    initial, final = sorted(ratios)
    ratio = RisingMaskRatio(initial, final)
    assert ratio(1.0) == final and ratio(0.0) == pytest.approx(initial)
    assert ratio(0.5) == pytest.approx((initial + final) / 2)
    counts = [count_masked(num_patches, ratio(at)) for at in (0.0, *sorted(progress), 1.0)]
    assert counts == sorted(counts)
    assert counts[-1] == count_masked(num_patches, final)


@settings(deadline=None, max_examples=50)
@given(ratio=st.floats(1e-6, 1, exclude_max=True), progress=st.floats(0, 1))
def test_a_mask_ratio_that_rises_by_nothing_is_the_constant_one(ratio, progress):
    assert RisingMaskRatio(ratio, ratio)(progress) == ratio


@pytest.mark.parametrize(
    ("initial", "final", "message"),
    [(0.0, 0.75, "initial mask ratio 0.0"), (1.0, 0.75, "initial mask ratio 1.0"),
     (float("nan"), 0.75, "initial mask ratio nan"), (0.5, 1.0, "^mask ratio 1.0"),
     (0.5, float("nan"), "^mask ratio nan"), (0.8, 0.75, "0.8 is above the final mask ratio 0.75")],
)  # fmt: skip
def test_a_rising_mask_ratio_that_cannot_be_or_falls_is_refused(initial, final, message):
    with pytest.raises(InputError, match=message):
        RisingMaskRatio(initial, final)


@pytest.mark.parametrize("num_masked", [0, 4])
def test_masking_none_or_all_is_refused(num_masked):
    with pytest.raises(InputError, match="num_masked"):
        mask_top_k(torch.rand(1, 4), num_masked)


def test_a_guided_fraction_out_of_range_is_refused():
    with pytest.raises(InputError, match="guided fraction"):
        mask_top_k(torch.rand(1, 4), 2, guided_fraction=1.2)


def test_the_ramp_is_flat_then_linear_then_flat():
    assert [ramp(p, 0.2, 0.6, 0.5) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx(
        [0, 0, 0.25, 0.5, 0.5]
    )

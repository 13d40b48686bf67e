import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import choose_targets, count_masked, mask_top_k, select_patches


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


def test_ties_are_broken_at_random_and_not_by_index():
    generator = torch.Generator().manual_seed(0)
    mask = mask_top_k(torch.zeros(4000, 4), 1, generator=generator)
    assert torch.allclose(mask.float().mean(dim=0), torch.full((4,), 0.25), atol=0.03)


def test_the_random_rest_is_uniform_over_the_patches_that_are_not_guided():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).expand(4000, 5)
    mask, guided = select_patches(scores, 3, 1, generator)
    assert guided.float().mean(dim=0).tolist() == [1, 0, 0, 0, 0]
    assert torch.allclose(mask.float().mean(dim=0)[1:], torch.full((4,), 0.5), atol=0.03)


def test_targets_are_the_masked_patches_with_the_highest_scores_and_ties_are_random():
    generator = torch.Generator().manual_seed(0)
    masks = Masks.of(torch.tensor([[True, True, False, True, True]]).expand(4000, 5))
    scores = torch.tensor([1.0, 2.0, 9.0, 1.0, 1.0]).expand(4000, 5)
    chosen = choose_targets(masks, scores, 0.5, generator)
    assert torch.equal(chosen.masked, masks.masked) and (chosen.weight.sum(dim=1) == 2).all()
    expected = torch.tensor([1 / 3, 1.0, 0.0, 1 / 3, 1 / 3])
    torch.testing.assert_close(chosen.weight.mean(dim=0), expected, atol=0.03, rtol=0)
    assert (choose_targets(masks, scores, 0.01, generator).weight.sum(dim=1) == 1).all()
    assert torch.equal(choose_targets(masks, scores, 1.0, generator).weight, masks.weight)


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


@pytest.mark.parametrize("num_masked", [0, 4])
def test_masking_none_or_all_is_refused(num_masked):
    with pytest.raises(InputError, match="num_masked"):
        mask_top_k(torch.rand(1, 4), num_masked)


def test_a_guided_fraction_out_of_range_is_refused():
    with pytest.raises(InputError, match="guided fraction"):
        mask_top_k(torch.rand(1, 4), 2, guided_fraction=1.2)

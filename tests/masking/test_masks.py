import pytest
import torch

from ahm_gym.errors import InputError
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks, as_masks
from ahm_gym.masking.selection import select_patches
from ahm_gym.masking.spread import draw_spread

MASKED = torch.tensor([[True, True, False, False], [False, True, True, False]])


def test_every_masked_patch_has_weight_one_by_default():
    masks = as_masks(MASKED)
    assert torch.equal(masks.weight, MASKED.float()) and not masks.guided.any()
    assert as_masks(masks) is masks
    weighted = Masks.of(MASKED, MASKED).weighted(2 * MASKED.double())
    assert weighted.weight.dtype == torch.float32 and torch.equal(weighted.weight, 2 * MASKED.float())
    assert weighted.guided is MASKED


def test_one_masked_patch_needs_a_weight_unless_none_is_masked():
    weight = torch.zeros(2, 4)
    weight[1, 2] = 0.5
    Masks.of(MASKED).weighted(weight)
    Masks.of(torch.zeros_like(MASKED))


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ((0, 0), -0.5, "weight -0.5: choose 0 or a positive number"),
        ((0, 0), float("nan"), "NaN or infinity"),
        ((0, 0), float("inf"), "NaN or infinity"),
        ((0, 2), 1.0, "a visible patch has a weight"),
        (slice(None), 0.0, "every masked patch has weight 0"),
    ],
)
def test_invalid_weights_are_refused(place, value, sentence):
    weight = MASKED.float()
    weight[place] = value
    with pytest.raises(InputError, match=sentence):
        Masks.of(MASKED).weighted(weight)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"weights have shape \(1, 4\): expected one per patch, \(2, 4\)"):
        Masks.of(MASKED).weighted(torch.ones(1, 4))


@pytest.mark.parametrize("spread_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("guided_fraction", [0.0, 0.5, 1.0])
def test_drawing_masks_equals_its_single_steps(guided_fraction, spread_fraction):
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(1))
    first, second = (torch.Generator().manual_seed(0) for _ in range(2))
    shares = {"guided_fraction": guided_fraction, "spread_fraction": spread_fraction}
    masks = draw_masks(scores, (4, 4), 12, first, **shares)
    spread = draw_spread(spread_fraction, (4, 4), 12, 6, second)
    masked, guided = select_patches(scores, 12, round(12 * guided_fraction), second, spread=spread)
    assert torch.equal(masks.masked, masked) and torch.equal(masks.guided, guided)
    assert torch.equal(masks.weight, masked.float())
    assert torch.equal(first.get_state(), second.get_state())


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match="guided fraction 1.5"):
        draw_masks(torch.rand(2, 4), (2, 2), 2, torch.Generator(), guided_fraction=1.5)


def test_weights_whose_sum_is_not_finite_are_refused():
    masks = Masks.of(torch.tensor([[True, False, True, False]]))
    with pytest.raises(InputError, match="the sum of the weights is not finite"):
        masks.weighted(masks.masked * 3e38)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahm_gym.agents.base import GUIDED_FALL, Agent
from ahm_gym.errors import InputError
from ahm_gym.masking.schedules import (
    MixedMaskRatio,
    Ramp,
    RisingMaskRatio,
    chosen_share,
    ramp,
    typical_mask_ratio,
)
from ahm_gym.masking.selection import count_masked
from ahm_gym.masking.spread import SPREAD_FALL


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
def test_a_mask_ratio_with_equal_ends_is_constant(ratio, progress):
    assert RisingMaskRatio(ratio, ratio)(progress) == ratio


@pytest.mark.parametrize(
    ("initial", "final", "message"),
    [(0.0, 0.75, "initial mask ratio 0.0"), (1.0, 0.75, "initial mask ratio 1.0"),
     (float("nan"), 0.75, "initial mask ratio nan"), (0.5, 1.0, "^mask ratio 1.0"),
     (0.5, float("nan"), "^mask ratio nan"), (0.8, 0.75, "0.8 is above the final mask ratio 0.75")],
)  # fmt: skip
def test_a_rising_mask_ratio_that_is_out_of_range_or_falls_is_refused(initial, final, message):
    with pytest.raises(InputError, match=message):
        RisingMaskRatio(initial, final)


def test_the_ramp_is_flat_then_linear_then_flat():
    assert [ramp(p, 0.2, 0.6, 0.5) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx(
        [0, 0, 0.25, 0.5, 0.5]
    )


def test_a_ramp_goes_up_or_down_between_its_ends():
    up, down = Ramp(0.0, 0.5, 0.2, 0.6), Ramp(1.0, 0.0, 0.0, 0.5)
    assert [up(p) for p in (0.1, 0.4, 0.6, 1.0)] == pytest.approx([0, 0.25, 0.5, 0.5])
    assert [down(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1, 0.5, 0, 0])


def test_an_agent_guides_half_of_the_patches_of_spread_masks_by_default():
    assert (Agent.guided_fraction, Agent.spread_fraction) == (0.5, 1.0)


def test_a3c_starts_with_half_guided_in_spread_masks_and_ends_with_random_masks():
    assert [GUIDED_FALL(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.5, 0.25, 0, 0])
    assert [SPREAD_FALL(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1, 0.5, 0, 0])


def test_a_given_share_is_used_and_otherwise_that_of_the_policy():
    assert chosen_share("guided", None, None, 0.3, falls=False) == 0.3
    assert chosen_share("guided", 0.2, None, 0.3, falls=False) == 0.2
    rises = chosen_share("guided", 0.2, (0.0, 0.5), 0.3, falls=False)
    falls = chosen_share("spread", 0.2, (0.0, 0.5), 0.3, falls=True)
    assert [rises(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([0.0, 0.1, 0.2])
    assert [falls(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([0.2, 0.1, 0.0])


def test_mixed_ratios_are_drawn_evenly_by_the_progress_alone():
    ratio = MixedMaskRatio((0.25, 0.5, 0.9))
    drawn = [ratio(update / 900) for update in range(900)]
    assert drawn == [MixedMaskRatio((0.25, 0.5, 0.9))(update / 900) for update in range(900)]
    assert {value: 250 < drawn.count(value) < 350 for value in ratio.ratios} == dict.fromkeys(
        ratio.ratios, True
    )


def test_masks_are_measured_at_the_mean_of_mixed_ratios():
    assert typical_mask_ratio(0.75) == 0.75 and typical_mask_ratio((0.5, 0.75)) == 0.625

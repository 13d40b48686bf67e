import pytest

from ahm_gym.envs.plans import (
    equal_parts,
    guided_plan,
    least_masked_count,
    masked_count,
    proportional_plan,
)
from ahm_gym.errors import InputError
from ahm_gym.masking.schedules import MixedMaskRatio, RisingMaskRatio


@pytest.mark.parametrize("num_masked", [1, 7, 12])
@pytest.mark.parametrize("num_parts", [1, 3, 20])
def test_equal_parts_differ_by_at_most_one_and_are_never_empty(num_masked, num_parts):
    parts = equal_parts(num_masked, num_parts)
    assert sum(parts) == num_masked and len(parts) == min(num_parts, num_masked)
    assert min(parts) >= 1 and max(parts) - min(parts) <= 1


def test_plans_name_the_new_and_the_guided_patches_of_every_step():
    assert proportional_plan(12, 6, 4) == [(3, 2), (3, 1), (3, 2), (3, 1)]
    assert proportional_plan(12, 12, 1) == [(12, 12)]
    assert guided_plan(12, [2, 2, 1]) == [(2, 2), (2, 2), (8, 1)]
    assert guided_plan(12, [1] * 12) == [(1, 1)] * 12


def test_the_fewest_masked_patches_are_those_of_the_lowest_ratio_wherever_it_lies():
    assert least_masked_count(0.75, 16) == masked_count(0.75, 16, 0.3) == 12
    assert least_masked_count(RisingMaskRatio(0.25, 0.75), 16) == 4
    assert least_masked_count(MixedMaskRatio((0.75, 0.25, 0.9)), 16) == 4
    assert least_masked_count(lambda progress: 0.1 + abs(progress - 0.4), 100) == 10


@pytest.mark.parametrize("ratio", [lambda progress: progress, lambda progress: float("nan")])
def test_a_mask_ratio_that_leaves_its_range_during_training_is_refused_before_it_begins(ratio):
    with pytest.raises(InputError, match=r"mask ratio (0.0|nan) is out of range"):
        least_masked_count(ratio, 16)

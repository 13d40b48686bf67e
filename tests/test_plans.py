import pytest

from ahm_gym.envs.plans import equal_parts, guided_plan, proportional_plan


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

"""Comparisons against simulation and against values computed by hand."""

import numpy as np
import pytest

from ahm_gym.benchmark.statistics import (
    NO_DIFFERENCE,
    ONE_PATIENT,
    ONE_SEED,
    compare,
    corrected,
    interquartile_mean,
    mean_ranks,
    paired_differences,
    verdict,
)


def scores(matrix):
    """Seeds x cases (x classes) as the scores of a policy."""
    return {
        seed: {f"case-{i:03}": np.atleast_1d(values).tolist() for i, values in enumerate(cases)}
        for seed, cases in enumerate(np.asarray(matrix))
    }


def zeros(num_seeds, num_cases):
    return scores(np.zeros((num_seeds, num_cases)))


def crossed(rng, num_seeds, num_cases, seed_effect, case_effect, noise, mean=0.0):
    return (
        mean
        + rng.normal(0, seed_effect, (num_seeds, 1))
        + rng.normal(0, case_effect, (1, num_cases))
        + rng.normal(0, noise, (num_seeds, num_cases))
    )


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("seed_effect", [0.0, 0.3, 1.0])
def test_the_interval_covers_the_true_difference(num_seeds, seed_effect):
    rng = np.random.default_rng(num_seeds)
    found = [
        compare(scores(crossed(rng, num_seeds, 40, seed_effect, 1.0, 1.0)), zeros(num_seeds, 40))
        for _ in range(120)
    ]
    covered = np.mean([one.interval[0] <= 0 <= one.interval[1] for one in found])
    # 0.95 to 0.99 in longer simulations; three deviations of 120 trials below 0.95 are 0.89.
    assert covered >= 0.89
    assert np.mean([one.p < 0.05 for one in found]) == pytest.approx(1 - covered, abs=1e-9)


def test_intervals_over_cases_alone_miss_what_intervals_over_seeds_see():
    rng = np.random.default_rng(0)
    matrix = crossed(rng, 3, 200, 1.0, 0.1, 0.1)
    both, one = compare(scores(matrix), zeros(3, 200)), compare(scores(matrix[:1]), zeros(1, 200))
    width = both.interval[1] - both.interval[0]
    assert width > 10 * (one.interval[1] - one.interval[0])
    seeds_alone = both.seed_interval[1] - both.seed_interval[0]
    assert width == pytest.approx(seeds_alone, rel=0.35)


def test_a_clear_difference_is_found_with_three_seeds():
    rng = np.random.default_rng(0)
    found = compare(scores(crossed(rng, 3, 100, 0.01, 0.05, 0.05, mean=0.1)), zeros(3, 100))
    assert found.interval[0] < 0.1 < found.interval[1]
    assert found.interval[0] > 0 and found.p < 0.05
    assert (found.num_seeds, found.num_cases) == (3, 100)


def test_the_same_comparison_gives_the_same_numbers():
    matrix = crossed(np.random.default_rng(0), 3, 20, 1, 1, 1)
    assert compare(scores(matrix), zeros(3, 20)) == compare(scores(matrix), zeros(3, 20))


def test_equal_scores_have_no_difference_and_p_one():
    same = scores([[0.5, 0.7], [0.6, 0.8]])
    found = compare(same, same)
    assert (found.difference, found.interval, found.p, found.win_probability) == (0, (0, 0), 1, 0.5)


def test_the_difference_and_its_interval_over_seeds_are_those_computed_by_hand():
    found = compare(scores([[0.2, 0.4], [0.4, 0.6], [0.3, 0.8]]), zeros(3, 2))
    means = np.array([0.3, 0.5, 0.55])
    half = 4.30265 * means.std(ddof=1) / 3**0.5
    assert found.difference == pytest.approx(0.45)
    assert found.seed_interval == pytest.approx((0.45 - half, 0.45 + half), abs=1e-5)


def test_a_win_is_a_larger_score_or_a_smaller_distance_and_a_tie_counts_half():
    found = scores([[0.2, 0.5, 0.9], [0.1, 0.5, 0.4]])
    other = scores([[0.1, 0.5, 0.4], [0.3, 0.6, 0.3]])
    assert compare(found, other).win_probability == pytest.approx(3.5 / 6)
    assert compare(found, other, larger_is_better=False).win_probability == pytest.approx(2.5 / 6)


def test_seeds_and_cases_that_only_one_side_has_are_left_out():
    policy = {0: {"a": [0.5], "b": [0.7]}, 1: {"a": [0.6], "b": [0.8]}, 7: {"a": [0.0]}}
    reference = {0: {"a": [0.4], "b": [0.4], "c": [1.0]}, 1: {"a": [0.4], "c": [1.0]}, 2: {"a": [0.9]}}
    np.testing.assert_allclose(paired_differences(policy, reference), [[[0.1]], [[0.2]]])
    found = compare(policy, reference)
    assert (found.num_seeds, found.num_cases, found.difference) == (2, 1, pytest.approx(0.15))


def test_without_shared_scores_there_is_no_comparison():
    assert compare({0: {"a": [0.5]}}, {1: {"a": [0.5]}}) is None
    assert compare({0: {"a": [0.5]}}, {0: {"b": [0.5]}}) is None
    assert compare({0: {"a": [None]}}, {0: {"a": [0.5]}}, larger_is_better=False) is None
    assert compare({}, {}) is None


def test_the_difference_is_the_mean_of_the_means_of_the_classes():
    # Class 1 is defined in three pairs of four, class 2 in one, class 3 in none.
    policy = {
        0: {"a": [0.4, None, None], "b": [0.6, 0.9, None]},
        1: {"a": [0.8, None, 0.5], "b": [None, 0.9, None]},
    }
    reference = {seed: {case: [0.0, 0.0, None] for case in "ab"} for seed in (0, 1)}
    reference[1]["b"] = [0.0, None, None]
    found = compare(policy, reference, larger_is_better=False)
    assert found.difference == pytest.approx((0.6 + 0.9) / 2)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert found.seed_interval is not None


def test_an_interval_with_undefined_values_is_near_one_without():
    rng = np.random.default_rng(0)
    matrix = np.stack([crossed(rng, 5, 300, 0.2, 1, 1) for _ in range(2)], axis=2)
    holes = np.where(rng.random((1, 300, 2)) < 0.1, np.nan, matrix)
    policy = {
        seed: {case: [None if np.isnan(v) else v for v in values] for case, values in cases.items()}
        for seed, cases in scores(holes).items()
    }
    reference = scores(np.zeros((5, 300, 2)))
    whole, found = (compare(one, reference, larger_is_better=False) for one in (scores(matrix), policy))
    widths = [one.interval[1] - one.interval[0] for one in (whole, found)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_a_seed_without_a_defined_value_does_not_count():
    policy = scores([[0.5, 0.6], [0.7, 0.9]]) | {2: {"case-000": [None], "case-001": [None]}}
    found = compare(policy, zeros(3, 2), larger_is_better=False)
    assert found == compare(scores([[0.5, 0.6], [0.7, 0.9]]), zeros(2, 2), larger_is_better=False)


def test_cases_of_one_patient_are_resampled_together():
    rng = np.random.default_rng(0)
    matrix = crossed(rng, 4, 30, 0.02, 0.1, 0.05, mean=0.03)
    alone = compare(scores(matrix), zeros(4, 30))
    twice = compare(
        scores(np.repeat(matrix, 2, axis=1)),
        zeros(4, 60),
        patients={f"case-{i:03d}": f"patient-{i // 2:03d}" for i in range(60)},
    )
    assert (twice.difference, twice.p) == (pytest.approx(alone.difference), pytest.approx(alone.p))
    assert twice.interval == pytest.approx(alone.interval)
    blind = compare(scores(np.repeat(matrix, 2, axis=1)), zeros(4, 60))
    assert blind.interval[0] > twice.interval[0] and blind.interval[1] < twice.interval[1]


def test_patients_count_by_their_number_of_cases():
    policy = {0: {"a": [0.9], "b": [0.1], "c": [0.2]}, 1: {"a": [0.9], "b": [0.1], "c": [0.2]}}
    reference = {seed: {case: [0.0] for case in "abc"} for seed in (0, 1)}
    found = compare(policy, reference, patients={"b": "twin", "c": "twin"})
    assert found.difference == pytest.approx(0.4) and found.interval[0] < 0.4 < found.interval[1]


def test_scores_of_other_classes_cannot_be_compared():
    with pytest.raises(ValueError, match="of 2 and of 1 classes"):
        compare({0: {"a": [0.5, 0.5]}}, {0: {"a": [0.5]}})


def test_one_seed_gives_an_interval_over_cases_and_no_verdict():
    rng = np.random.default_rng(0)
    found = compare(scores(crossed(rng, 1, 50, 0, 0.01, 0, mean=1)), zeros(1, 50))
    assert found.interval[0] > 0.9 and found.p < 0.01 and found.seed_interval is None
    assert corrected([found]) == [None]
    assert verdict(found, None, "random") == ONE_SEED


@pytest.mark.parametrize("patients", [{"case 0": "p", "case 1": "p"}, {}])
def test_one_patient_gives_an_interval_over_seeds_and_no_verdict(patients: dict[str, str]):
    cases = {"case 0": [0.6], "case 1": [0.6]} if patients else {"case 0": [0.6]}
    policy = {seed: {case: [0.6 + 0.01 * seed] for case in cases} for seed in range(5)}
    reference = {seed: {case: [0.5] for case in cases} for seed in range(5)}
    found = compare(policy, reference, patients=patients)
    assert (found.num_patients, found.num_cases) == (1, len(cases))
    assert found.interval[0] > 0 and corrected([found]) == [None]
    assert verdict(found, None, "random") == ONE_PATIENT


def test_one_seed_and_one_case_give_a_difference_alone():
    found = compare({0: {"a": [0.5]}}, {0: {"a": [0.4]}})
    assert (found.difference, found.interval, found.p) == (pytest.approx(0.1), None, None)


def test_p_values_are_corrected_within_the_family():
    rng = np.random.default_rng(0)
    family = [
        compare(scores(crossed(rng, 4, 60, 0.01, 0.05, 0.05, mean=mean)), zeros(4, 60))
        for mean in (0.2, 0.04, 0.0, -0.1)
    ]
    family.append(compare(scores([[1.0, 1.0]]), zeros(1, 2)))
    values = [one.p for one in family[:4]]
    # Benjamini and Hochberg by hand: p * m / rank, made monotone from the largest down.
    order = np.argsort(values)
    by_hand = np.array(values)[order] * 4 / np.arange(1, 5)
    by_hand = np.minimum.accumulate(by_hand[::-1])[::-1]
    expected = np.empty(4)
    expected[order] = by_hand
    found = corrected(family)
    assert found[:4] == pytest.approx(expected.tolist()) and found[4] is None
    assert corrected([]) == []


def test_verdicts_follow_the_corrected_p_and_the_direction_of_the_metric():
    better = compare(scores([[0.9, 0.8], [0.9, 0.7]]), zeros(2, 2))
    assert verdict(better, 0.01, "random") == "better than random"
    assert verdict(better, 0.01, "random", larger_is_better=False) == "worse than random"
    assert verdict(better, 0.05, "random") == NO_DIFFERENCE


def test_the_interquartile_mean_is_that_of_the_middle_half():
    assert interquartile_mean(scores([[0.0, 0.1, 0.3, 9.0], [0.2, 0.4, 0.5, -9.0]])) == pytest.approx(0.25)
    assert interquartile_mean({0: {"a": [0.2, None, 0.4], "b": [None, None, None]}}) == pytest.approx(0.3)
    assert interquartile_mean({0: {"a": [None]}}) is None


def test_mean_ranks_share_ties_and_count_the_data_sets_that_have_a_policy():
    values = {
        "one": {"random": 0.8, "block": 0.9, "a3c": 0.8},
        "two": {"random": 0.7, "block": 0.6},
    }
    assert mean_ranks(values) == {"random": 1.75, "block": 1.5, "a3c": 2.5}
    assert mean_ranks({"one": values["one"]}, larger_is_better=False) == {
        "random": 1.5,
        "block": 3,
        "a3c": 1.5,
    }


def test_a_false_positive_in_a_case_without_the_class_counts_against_it():
    right = {0: {"full": [0.8], "empty": [None]}, 1: {"full": [0.8], "empty": [None]}}
    wrong = {0: {"full": [0.8], "empty": [0.0]}, 1: {"full": [0.8], "empty": [0.0]}}
    found = compare(wrong, right, empty_is_perfect=True)
    assert found is not None and found.difference == pytest.approx(-0.5)
    distances = compare(wrong, right, larger_is_better=False)
    assert distances is not None and distances.difference == pytest.approx(0.0)


def test_cases_without_the_class_count_as_many_times_as_they_are():
    empty = {f"empty-{i}": [None] for i in range(8)}
    right = {seed: {"full": [0.8], "other": [0.8], **empty} for seed in (0, 1)}
    wrong = {0: right[0] | {"empty-3": [0.0]}, 1: right[1]}
    assert compare(wrong, right, empty_is_perfect=True).difference == pytest.approx(-1 / 20)


def test_a_false_positive_of_a_class_that_no_case_has_changes_nothing():
    rng = np.random.default_rng(0)
    matrix = crossed(rng, 5, 50, 0.001, 0.01, 0.01, mean=0.5)
    policy, reference = scores(matrix), zeros(5, 50)
    two = [
        {seed: {case: [*values, None] for case, values in cases.items()} for seed, cases in side.items()}
        for side in (policy, reference)
    ]
    expected = compare(policy, reference, empty_is_perfect=True)
    assert compare(*two, empty_is_perfect=True) == expected
    two[0][3]["case-007"][1] = 0.0
    assert compare(*two, empty_is_perfect=True) == expected

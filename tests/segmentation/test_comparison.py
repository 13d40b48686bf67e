"""Differences of two segmenters on the same cases, and what may not be compared."""

import copy
import json
import math

import numpy as np
import pytest
from scipy.stats import norm, t

from ahm_gym.errors import InputError
from ahm_gym.segmentation.comparison import check_comparable, compare_results, read_results
from ahm_gym.segmentation.intervals import difference_interval, mean_interval


def results_of(dice, *, patients=None, draw=("a", "b"), hd95=None, **changes):
    """Results of cases c0, c1, ... with these scores of each class."""
    hd95 = hd95 or [[None if value is None else 10 * (1 - value) for value in row] for row in dice]
    cases = [
        {"case": f"c{place}", "images": 1, "dice": row, "iou": row, "hd95": far, "nsd": row}
        for place, (row, far) in enumerate(zip(dice, hd95, strict=True))
    ]
    return {
        "split": "test",
        "hd95_unit": "mm",
        "surface_tolerance": 1.0,
        "missed_distance": "diagonal",
        "cases": cases,
        "num_cases": len(cases),
        "patients": patients or {},
        "per_class": {str(index): {} for index in range(1, len(dice[0]) + 1)},
        "draw": {"images": list(draw)},
        "config": {"seed": 0, "steps": 10, "data_digest": "abc", "image_size": [32, 32]},
    } | changes


def test_the_differences_are_those_of_numpy():
    rng = np.random.default_rng(0)
    one, two = rng.random((30, 2)), rng.random((30, 2))
    found = compare_results(results_of(one.tolist()), results_of(two.tolist()), "other", "runs/other")
    assert found.scores["dice"].mean == pytest.approx((one - two).mean())
    assert found.scores["hd95"].mean == pytest.approx(-10 * (one - two).mean())
    assert found.per_class["2"]["iou"].mean == pytest.approx((one - two)[:, 1].mean())
    assert found.scores["dice"].num_patients == 30
    assert [pair.this for pair in found.pairs] == pytest.approx(
        one.mean(axis=1)[np.argsort(two.mean(axis=1) - one.mean(axis=1))]
    )


def test_cases_of_one_patient_are_one_pair_and_are_resampled_together():
    one, two = [[0.9], [0.7], [0.5]], [[0.5], [0.5], [0.6]]
    patients = {"c0": "anna", "c1": "anna"}
    found = compare_results(results_of(one, patients=patients), results_of(two), "other", "other")
    assert [(pair.patient, pair.this, pair.other) for pair in found.pairs] == [
        ("anna", pytest.approx(0.8), 0.5),
        ("c2", 0.5, 0.6),
    ]
    assert found.scores["dice"].num_patients == 2
    assert found.scores["dice"].mean == pytest.approx((0.4 + 0.2 - 0.1) / 3)


def test_who_rightly_finds_nothing_is_better_than_a_false_alarm():
    one, two = [[None], [0.5], [None]], [[0.0], [0.5], [None]]
    far = [[50.0], [5.0], [None]]
    found = compare_results(results_of(one), results_of(two, hd95=far), "other", "other")
    assert found.scores["dice"].mean == pytest.approx((1.0 + 0.0) / 2)
    assert found.scores["hd95"].mean == pytest.approx((-50.0 + 0.0) / 2)
    assert [pair.patient for pair in found.pairs] == ["c0", "c1"]
    left_out = {"missed_distance": "leave-out"}
    found = compare_results(results_of(one, **left_out), results_of(two, hd95=far, **left_out), "o", "o")
    assert found.scores["hd95"].mean == 0.0


def test_the_interval_of_a_difference_is_that_of_the_mean_widened_for_few_patients():
    rng = np.random.default_rng(1)
    values, owners = rng.normal(size=(6, 1)), list("abcdef")
    low, high = mean_interval(values, owners)
    factor = math.sqrt(6 / 5) * t.ppf(0.975, 5) / norm.ppf(0.975)
    centre = values.mean()
    expected = [centre + factor * (low - centre), centre + factor * (high - centre)]
    assert difference_interval(values, owners) == pytest.approx(expected)
    assert difference_interval(values[:2], ["a", "a"]) is None
    values[1:] = np.nan
    assert difference_interval(values, owners) is None, "one patient with a difference"


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("was scored on other cases, 2 of them in one of the two alone, such as 'c1'", {"cases": 1}),
        (
            "was trained with other labelled images, 2 of them .* such as 'b'",
            {"draw": {"images": ["a", "c"]}},
        ),
        ("has another split, val, and this run test", {"split": "val"}),
        ("has another surface tolerance, 2.0, and this run 1.0", {"surface_tolerance": 2.0}),
        ("has 3 classes and this run 1", {"per_class": {"1": {}, "2": {}, "3": {}}}),
        ("same names that are not the same", {"config": {"data_digest": "other", "image_size": [32, 32]}}),
    ],
)
def test_other_cases_labels_or_images_are_refused(message, change):
    this = results_of([[0.5], [0.6]])
    other = copy.deepcopy(this) | change
    if change == {"cases": 1}:
        other["cases"] = [this["cases"][0], this["cases"][1] | {"case": "c9"}]
    with pytest.raises(InputError, match=f"`compare=runs/b` {message}|{message}"):
        check_comparable(this, other, "runs/b")


def test_what_differs_is_told_and_what_cannot_be_checked_is_a_doubt():
    this = results_of([[0.5], [0.6]])
    other = results_of([[0.5], [0.6]])
    other["config"] = this["config"] | {
        "steps": 20, "seed": 1, "image_size": [64, 64], "data_digest": "def", "run_dir": "/x", "device": "cpu",
    }  # fmt: skip
    del other["draw"]
    found = compare_results(this, other, "b", "runs/b")
    assert found.settings == {"seed": (0, 1), "steps": (10, 20), "image_size": ([32, 32], [64, 64])}
    assert [doubt.split(",")[0] for doubt in found.doubts] == [
        "which labelled images both were trained with is not recorded",
        "the two runs have different seeds",
        "that both saw the same images is known from their names alone",
    ]
    assert compare_results(this, this, "b", "runs/b").doubts == ()


def test_a_place_without_scores_of_a_segmenter_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`compare=.*nowhere` holds no results.json"):
        read_results(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text(json.dumps({"cases": {"a": {"dice": [1.0]}}}))
    with pytest.raises(InputError, match="not a probe"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"cases": [{"case": "a", "dice": [1.0]}]}))
    assert read_results(tmp_path) == read_results(tmp_path / "results.json")

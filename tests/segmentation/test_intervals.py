import numpy as np
import pytest

from ahm_gym.segmentation.intervals import NUM_RESAMPLES, mean_interval, patient_intervals
from ahm_gym.segmentation.metrics import METRICS, CaseScores


def written_out(values, owners):
    """The percentile bootstrap as a loop, with another generator."""
    rng, names = np.random.default_rng(7), sorted(set(owners))
    means = []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.choice(names, len(names))
        rows = np.concatenate([values[[owner == name for owner in owners]] for name in drawn])
        means.append(np.nanmean(np.nanmean(rows, axis=0)))
    return np.quantile(means, (0.025, 0.975))


def test_the_interval_is_that_of_the_bootstrap_over_patients():
    rng = np.random.default_rng(0)
    owners = [f"p{number // 3}" for number in range(60)]
    values = np.repeat(rng.normal(0.7, 0.1, (20, 2)), 3, axis=0) + rng.normal(0, 0.01, (60, 2))
    values[rng.random((60, 2)) < 0.1] = np.nan
    interval = mean_interval(values, owners)
    assert interval == pytest.approx(written_out(values, owners), abs=0.004)
    assert interval == mean_interval(values, owners), "seeded"
    low, high = mean_interval(values, [str(number) for number in range(60)])
    assert high - low < 0.75 * (interval[1] - interval[0]), "images of a patient are not independent"


def test_every_metric_has_an_interval_over_the_patients_of_its_cases():
    cases = [
        CaseScores(name, 1, [dice], [dice / 2], [None], [dice], [0], [0])
        for name, dice in (("a", 0.2), ("b", 0.4), ("c", 0.9))
    ]
    found = patient_intervals(cases, {})
    assert found.keys() == set(METRICS) and found["hd95"] is None
    assert found["dice"] == [pytest.approx(0.2), pytest.approx(0.9)]
    assert found["iou"] == [pytest.approx(0.1), pytest.approx(0.45)]
    together = patient_intervals(cases, {"a": "p", "b": "p"})
    assert together["dice"] == [pytest.approx(0.3), pytest.approx(0.9)]
    assert patient_intervals(cases[:2], {"a": "p", "b": "p"})["dice"] is None, "one patient"

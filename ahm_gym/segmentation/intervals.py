"""Intervals of mean scores over patients, by the bootstrap."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer
from scipy.stats import DegenerateDataWarning, bootstrap, norm, t

from ahm_gym.segmentation.metrics import METRICS, CaseScores

LEVEL: float = 0.95
NUM_RESAMPLES: int = 2000
SEED: int = 0

Interval = list[float]
"""The lower and the upper bound."""


def patient_intervals(cases: Sequence[CaseScores], patients: Mapping[str, str]) -> dict[str, Interval | None]:
    """The 95 % interval of the mean of each metric for new patients of the same kind; None with one patient.

    Patients are resampled with all their cases (percentile bootstrap, Efron 1979), and the mean is that of
    `summarise`: over cases, then over classes. With few patients such intervals are too narrow. They say nothing about
    another draw of labels or another seed.

    Args:
        cases: scores of every case.
        patients: case -> patient; a case that is not listed is its own patient.
    """
    owners = [patients.get(case.case, case.case) for case in cases]
    return {
        metric: mean_interval(np.array([getattr(case, metric) for case in cases], dtype=float), owners)
        for metric in METRICS
    }


def mean_interval(values: Float[np.ndarray, "N K"], owners: Sequence[str]) -> Interval | None:
    """The interval of the mean over classes of the mean over cases, NaN left out; see `patient_intervals`.

    Args:
        values: one value for each case and class, NaN if it is undefined.
        owners: the patient of each case.
    """
    names, places = np.unique(owners, return_inverse=True)
    if len(names) < 2 or not np.isfinite(values).any():
        return None
    known = np.isfinite(values)
    sums, counts = np.zeros((2, len(names), values.shape[1]))
    np.add.at(sums, places, np.where(known, values, 0.0))
    np.add.at(counts, places, known)

    def means(drawn: Integer[np.ndarray, "*R n"], axis: int) -> Float[np.ndarray, "*R"]:
        total, number = sums[drawn].sum(axis=-2), counts[drawn].sum(axis=-2)  # *R K
        classes = number > 0
        of_class = np.where(classes, total / np.maximum(number, 1), 0.0)
        with np.errstate(invalid="ignore"):  # a resample may define nothing
            return of_class.sum(axis=-1) / classes.sum(axis=-1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of scipy's own interval, which is not used
        resampled = bootstrap(
            (np.arange(len(names)),),
            means,
            n_resamples=NUM_RESAMPLES,
            batch=100,
            vectorized=True,
            method="percentile",
            # scipy 1.15 renamed it to rng and accepts both names; 1.11 has only this one.
            random_state=np.random.default_rng(SEED),  # pyright: ignore[reportCallIssue]
        ).bootstrap_distribution
    return [float(bound) for bound in np.nanquantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))]


def difference_interval(differences: Float[np.ndarray, "N K"], owners: Sequence[str]) -> Interval | None:
    """The 95 % interval of a mean difference for new patients; None if fewer than two patients have a difference.

    That of `mean_interval`, widened about the mean for few patients, as the tails of a percentile bootstrap are too
    short: by sqrt(n / (n - 1)) and by the ratio of the quantiles of t and normal (Hesterberg 2015, American
    Statistician 69:371).

    Args:
        differences: one for each case and class, NaN if it is undefined.
        owners: the patient of each case.
    """
    kept = [place for place, row in enumerate(np.isfinite(differences)) if row.any()]
    values, owners = differences[kept], [owners[place] for place in kept]
    num = len(set(owners))
    bounds = mean_interval(values, owners)
    if bounds is None:
        return None
    tail = (1 + LEVEL) / 2
    wider = (num / (num - 1)) ** 0.5 * t.ppf(tail, num - 1) / norm.ppf(tail)
    centre = mean_over_classes(values)
    return [float(centre + wider * (bound - centre)) for bound in bounds]


def mean_over_classes(values: Float[np.ndarray, "N K"]) -> float:
    """The mean over classes of the mean over cases, NaN left out; NaN if no value is defined."""
    classes = values[:, np.isfinite(values).any(axis=0)]
    return float(np.nanmean(classes, axis=0).mean()) if classes.size else math.nan

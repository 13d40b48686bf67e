"""Means with intervals over seeds, and the probability that one policy beats another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ahm_gym.benchmark.statistics import LEVEL, Interval, t_interval
from ahm_gym.mask_benchmark.rows import MaskRow

NUM_RESAMPLES: int = 2000

Task = tuple[str, int]
"""A data set and the percentage of pretraining of its autoencoder."""


@dataclass(frozen=True)
class Mean:
    """A score over seeds."""

    mean: float
    interval: Interval | None
    """95 % t interval for new seeds of the policy, on these autoencoders and images; None with one seed."""
    num_seeds: int


@dataclass(frozen=True)
class Improvement:
    """How probably one policy scores higher than another on the same autoencoder, each with a seed of its own."""

    probability: float
    interval: Interval | None
    """95 % bootstrap interval; None if every task has one seed."""


def by_task(rows: Sequence[MaskRow], reward: str, policy: str) -> dict[Task, dict[int, MaskRow]]:
    """The rows of a policy with one reward: task -> seed -> row."""
    found: dict[Task, dict[int, MaskRow]] = {}
    for row in rows:
        if (row.reward, row.policy) == (reward, policy):
            found.setdefault((row.data, row.percent), {})[row.seed] = row
    return dict(sorted(found.items()))


def mean_score(tasks: dict[Task, dict[int, MaskRow]]) -> Mean | None:
    """The mean over tasks and over the seeds that have them all; None if no seed has."""
    seeds = sorted(set.intersection(*(set(seeds) for seeds in tasks.values()))) if tasks else []
    if not seeds:
        return None
    return mean_of([float(np.mean([rows[seed].score for rows in tasks.values()])) for seed in seeds])


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of one value for each seed."""
    found = np.array(values, dtype=float)
    return Mean(float(found.mean()), t_interval(found), len(found))


def improvement(
    first: dict[Task, dict[int, MaskRow]], second: dict[Task, dict[int, MaskRow]]
) -> Improvement | None:
    """The probability that the first policy scores higher than the second, over the tasks that both have.

    It is the share of the pairs of a seed of one and a seed of the other in which the first is higher, a tie counting
    as half, averaged over tasks: the probability of improvement of rliable (Agarwal et al., NeurIPS 2021). The
    interval resamples the seeds of each policy in each task. With three seeds it is coarse.
    """
    shared = [task for task in first if task in second]
    if not shared:
        return None
    scores = [
        tuple(np.array([row.score for row in side[task].values()]) for side in (first, second))
        for task in shared
    ]
    probability = float(np.mean([_share_above(own, other) for own, other in scores]))
    if all(len(side) == 1 for pair in scores for side in pair):
        return Improvement(probability, None)
    generator = np.random.default_rng(0)
    resampled = np.zeros(NUM_RESAMPLES)
    for own, other in scores:
        drawn = [
            side[generator.integers(len(side), size=(NUM_RESAMPLES, len(side)))] for side in (own, other)
        ]
        resampled += _share_above(*drawn) / len(scores)
    low, high = np.quantile(resampled, (LEVEL / 2, 1 - LEVEL / 2))
    return Improvement(probability, (float(low), float(high)))


def _share_above(
    own: Float[np.ndarray, "*N S"], other: Float[np.ndarray, "*N R"]
) -> Float[np.ndarray, "*N"] | np.floating:
    """Share of the pairs in which the first value is larger; a tie counts as half."""
    return ((np.sign(own[..., :, None] - other[..., None, :]) + 1) / 2).mean(axis=(-2, -1))

"""Compares the results of two segmenters on the same cases, patient by patient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ahm_gym.errors import InputError
from ahm_gym.runs.schema import read_object
from ahm_gym.segmentation.intervals import Interval, difference_interval, mean_over_classes
from ahm_gym.segmentation.metrics import METRICS

NONE: str = "none"
"""The comparison with the same network from scratch, which fine-tuning trains itself."""
PERFECT: dict[str, float] = {"dice": 1.0, "iou": 1.0, "hd95": 0.0, "nsd": 1.0}
"""The score of a case without a structure in which none was found, where the other segmenter found one."""
PROPERTIES: dict[str, str] = {
    "split": "another split",
    "hd95_unit": "distances in another unit",
    "surface_tolerance": "another surface tolerance",
    "missed_distance": "another distance of missed structures",
}
"""What two results must have in common, and what a message calls a difference."""
IRRELEVANT: frozenset[str] = frozenset(
    ("kind", "run_dir", "run", "out", "compare", "device", "data", "data_root", "scans", "checkpoint_every", "mean",
     "std", "versions", "threads", "data_digest", "processing")
)  # fmt: skip
"""Settings that are not told where they differ, because they do not change what is compared."""


@dataclass(frozen=True)
class Difference:
    """The mean difference of a score between two segmenters."""

    mean: float
    """This one minus the other: the mean over classes of the mean over the cases that both define."""
    interval: Interval | None
    """95 % for new patients, see `difference_interval`; None with one patient."""
    num_patients: int
    """Patients with a difference."""

    @property
    def may_be_chance(self) -> bool:
        """Whether the interval contains 0, or there is none."""
        return self.interval is None or self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Pair:
    """The Dice of one patient by both segmenters: the mean over cases and classes, 0 to 1."""

    patient: str
    this: float
    other: float


@dataclass(frozen=True)
class Comparison:
    """Two segmenters on the same cases."""

    name: str
    """What the other one is called."""
    other: dict[str, Any]
    """Its results."""
    scores: dict[str, Difference]
    """Differences of the means, by metric; those that no case defines are left out."""
    per_class: dict[str, dict[str, Difference]]
    """The same for every class, by its index and the metric."""
    pairs: tuple[Pair, ...]
    """The patients, those with the largest gain first."""
    settings: dict[str, tuple[Any, Any]]
    """Settings that differ: of this one and the other one."""
    doubts: tuple[str, ...]
    """What could not be checked, in sentences without a full stop."""


def read_results(place: Path) -> dict[str, Any]:
    """The results of a fine-tuning run or an evaluation, from its folder or its `results.json`.

    Raises:
        InputError: if there are none, or they are not those of a segmenter.
    """
    file = place if place.is_file() else place / "results.json"
    if not file.is_file():
        raise InputError(
            f"`compare={place}` holds no results.json: give a finished fine-tuning run, an evaluation, or none."
        )
    results = read_object(file)
    entries = results.get("cases")
    if not isinstance(entries, list) or not all(isinstance(one, dict) and "dice" in one for one in entries):
        raise InputError(
            f"`compare={place}` holds no scores of a segmenter: give a fine-tuning run or an evaluation, not a probe."
        )
    return results


def check_comparable(this: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Checks that both were scored on the same cases and trained with the same labels.

    Args:
        this: results, or those of their entries that are known before a run.
        other: results.
        name: how the other was named, for the message.

    Raises:
        InputError: if they differ in one of these.
    """
    for key, difference in PROPERTIES.items():
        if key in this and key in other and this[key] != other[key]:
            raise InputError(
                f"`compare={name}` has {difference}, {other[key]}, and this run {this[key]}: compare runs that were "
                "scored in the same way."
            )
    cases, others = ({entry["case"] for entry in one["cases"]} for one in (this, other))
    if cases != others:
        apart = sorted(cases ^ others)
        raise InputError(
            f"`compare={name}` was scored on other cases, {len(apart)} of them in one of the two alone, such as "
            f"{apart[0]!r}: compare runs with the same data, splits and fold."
        )
    if len(this["per_class"]) != len(other["per_class"]):
        raise InputError(
            f"`compare={name}` has {len(other['per_class'])} classes and this run {len(this['per_class'])}: compare "
            "runs with the same labels."
        )
    if "draw" in this and "draw" in other:
        drawn, others = (set(one["draw"]["images"]) for one in (this, other))
        if drawn != others:
            apart = sorted(drawn ^ others)
            raise InputError(
                f"`compare={name}` was trained with other labelled images, {len(apart)} of them in one of the two "
                f"alone, such as {apart[0]!r}: give both the same `labels` or `labelled_patients`, and `seed`."
            )
    settings, own = (one.get("config", {}) for one in (other, this))
    alike = all(settings.get(key) == own.get(key) for key in ("image_size", "native_resolution"))
    if alike and len({one["data_digest"] for one in (settings, own) if "data_digest" in one}) > 1:
        raise InputError(
            f"`compare={name}` was scored on images of the same names that are not the same: compare runs with the "
            "same data."
        )


def compare_results(this: dict[str, Any], other: dict[str, Any], name: str, given: str) -> Comparison:
    """The differences of two results on the same cases.

    Args:
        this: results of a segmenter.
        other: results of the other one.
        name: what the other one is called.
        given: how the other was named, for a message.

    Raises:
        InputError: see `check_comparable`.
    """
    check_comparable(this, other, given)
    known = {entry["case"]: entry for entry in other["cases"]}
    both = [(entry, known[entry["case"]]) for entry in this["cases"]]
    patients = this.get("patients", {})
    owners = [patients.get(entry["case"], entry["case"]) for entry, _ in both]
    scores: dict[str, Difference] = {}
    per_class: dict[str, dict[str, Difference]] = {index: {} for index in this["per_class"]}
    for metric in METRICS:
        if any(metric not in entry for pair in both for entry in pair):
            continue  # of an earlier version
        first, second = filled(this, both, metric)
        if (mean := difference_of(first - second, owners)) is not None:
            scores[metric] = mean
        for index in per_class:
            column = (first - second)[:, [int(index) - 1]]
            if (mean := difference_of(column, owners)) is not None:
                per_class[index][metric] = mean
    settings = settings_that_differ(this, other)
    return Comparison(
        name, other, scores, per_class, pairs_of(*filled(this, both, "dice"), owners), settings,
        tuple(doubts_about(this, other)),
    )  # fmt: skip


def filled(
    results: dict[str, Any], both: list[tuple[dict[str, Any], dict[str, Any]]], metric: str
) -> tuple[Float[np.ndarray, "N K"], Float[np.ndarray, "N K"]]:
    """The scores of both on every case and class, NaN where there is nothing to compare.

    A score is undefined where label and prediction are empty. If both are, it stays so; if one is, the other segmenter
    found what is not there, and the one that rightly found nothing has the perfect score. A distance that is left out
    for what is missed stays undefined.
    """
    first, second = (
        np.array([entry[metric] for entry in side], dtype=float) for side in zip(*both, strict=True)
    )
    if metric == "hd95" and results.get("missed_distance") != "diagonal":
        undefined = np.isnan(first) | np.isnan(second)
        return np.where(undefined, np.nan, first), np.where(undefined, np.nan, second)
    undefined = np.isnan(first) & np.isnan(second)
    return tuple(
        np.where(undefined, np.nan, np.nan_to_num(one, nan=PERFECT[metric])) for one in (first, second)
    )  # pyright: ignore[reportReturnType]


def difference_of(differences: Float[np.ndarray, "N K"], owners: list[str]) -> Difference | None:
    """The mean difference with its interval; None if none is defined."""
    defined = np.isfinite(differences)
    if not defined.any():
        return None
    patients = {owner for owner, row in zip(owners, defined, strict=True) if row.any()}
    return Difference(mean_over_classes(differences), difference_interval(differences, owners), len(patients))


def pairs_of(
    first: Float[np.ndarray, "N K"], second: Float[np.ndarray, "N K"], owners: list[str]
) -> tuple[Pair, ...]:
    """The Dice of every patient by both, those with the largest gain first; patients without any are left out."""
    pairs = []
    for patient in dict.fromkeys(owners):
        own = [place for place, owner in enumerate(owners) if owner == patient]
        if np.isfinite(first[own]).any():
            pairs.append(Pair(patient, mean_over_classes(first[own]), mean_over_classes(second[own])))
    return tuple(sorted(pairs, key=lambda pair: pair.other - pair.this))


def settings_that_differ(this: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that both have and that differ, except those of `IRRELEVANT`."""
    own, others = this.get("config", {}), other.get("config", {})
    return {
        key: (own[key], others[key])
        for key in own
        if key in others and key not in IRRELEVANT and json.dumps(own[key]) != json.dumps(others[key])
    }


def doubts_about(this: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What could not be checked about two results, in sentences without a full stop."""
    doubts = []
    own, others = this.get("config", {}), other.get("config", {})
    if "draw" not in this or "draw" not in other:
        doubts.append("which labelled images both were trained with is not recorded, so they may be others")
    if own.get("seed") != others.get("seed"):
        doubts.append("the two runs have different seeds, which alone can make a difference")
    if own.get("data_digest") is None or own.get("data_digest") != others.get("data_digest"):
        doubts.append(
            "that both saw the same images is known from their names alone, because they were stored in other sizes or "
            "not recorded"
        )
    return doubts

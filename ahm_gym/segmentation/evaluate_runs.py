"""Scores fine-tuned runs on other labelled images, with the statistics of the runs' own training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from ahm_gym.data import ImageDataset
from ahm_gym.data.sample import SPLITS, OneSplit, Split
from ahm_gym.data.sources import (
    absolute,
    as_trained,
    find_source,
    names_test_images,
    open_source,
    warnings_about,
)
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, say, unknown_name
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.settings import to_json
from ahm_gym.runs.storage import make_folder, write_atomically
from ahm_gym.segmentation.case_pictures import write_case_pictures
from ahm_gym.segmentation.config import EvaluateConfig
from ahm_gym.segmentation.evaluation import draw_cases, evaluate
from ahm_gym.segmentation.predictor import Ensemble
from ahm_gym.segmentation.report import write_provenance, write_report

ALL: str = "all"
"""The split of all labelled images."""


def run_evaluate(config: EvaluateConfig, command: str | None = None) -> dict[str, Any]:
    """Writes `results.json`, `overlays.png` and `report.html`; returns the content of the first.

    `command` is the command line, for the report.

    Raises:
        InputError: if the runs or the images cannot be used, or do not fit each other; nothing is written.
    """
    if config.split not in (None, ALL, *SPLITS):
        raise unknown_name("split", config.split, (ALL, *SPLITS))
    if (config.out / "results.json").exists():
        raise InputError(f"{config.out} holds results already: choose another `out`.")
    ensemble = Ensemble.of_runs(config.runs, config.device, config.select)
    split = _choose_split(config, ensemble)
    dataset = _fitting(_open(config, ensemble, one_split=split == ALL), ensemble)
    part: Split = "train" if split == ALL else cast(Split, split)
    if not dataset.indices(part, labelled=True):
        raise InputError(
            f"{dataset.name} has no labelled images to score in `split={split}`: choose another, or all."
        )
    say(dataset)
    scores = evaluate(ensemble.classes, dataset, part)
    found = dataset.describe_patients() | {
        "files": warnings_about(config.scans, config.data_root, _size(ensemble))
    }
    results = {"split": split, "data": dataset.name, "found": found, **scores, "config": to_json(config)}
    make_folder(config.out, "`out`")
    write_atomically(config.out / "results.json", json.dumps(results, indent=2) + "\n")
    figure = draw_cases(ensemble.classes, dataset, {**results, "split": part})
    figure.suptitle(
        f"{dataset.name}, {split} images: from the worst to the best of {len(scores['cases'])} cases"
    )
    figure.savefig(config.out / "overlays.png")
    write_case_pictures(ensemble.classes, dataset, {**results, "split": part}, config.out)
    write_provenance(config.out, command, pick_device(config.device))
    write_report(config.out)
    return results


def _open(config: EvaluateConfig, ensemble: Ensemble, *, one_split: bool) -> ImageDataset:
    """The images, at the largest size that one of the runs needs: that of its own images if there is one run.

    They are scaled, resampled and sliced as the images of the runs were.
    """
    source = as_trained(find_source(config.scans, config.data_root, _size(ensemble)), ensemble.processing)
    return open_source(
        OneSplit(source) if one_split else source,
        image_size=_size(ensemble),
        native_resolution=any(member.native_resolution for member in ensemble.members),
    )


def _size(ensemble: Ensemble) -> tuple[int, ...]:
    return max((member.segmenter.image_size for member in ensemble.members), key=min)


def _choose_split(config: EvaluateConfig, ensemble: Ensemble) -> str:
    """The split to score; what was not asked for, and scores that are too high, are said."""
    own = [run for run in config.runs if _is_own(run, config)]
    named = names_test_images(config.scans, config.data_root, _size(ensemble))
    split = config.split or ("test" if own or named else ALL)
    if config.split is None:
        why = {
            True: "this is the data of the run",
            False: "the data names its test images" if named else "the data names no test images",
        }[bool(own)]
        which = "all labelled" if split == ALL else f"the {split}"
        say(f"note: {which} images are scored, because {why}; `split` chooses others.")
    if own and split != "test":
        say(
            f"note: {own[0]} was trained on this data, and {split} may hold its training or val images: scores on "
            "them are too high.",
        )
    return split


def _is_own(run: Path, config: EvaluateConfig) -> bool:
    """Whether a run was trained on the data, as far as their paths say."""
    own = RunFolder.open(run, "finetune").config.get("data")
    return own is not None and own == absolute(config.scans, config.data_root)[0]


def _fitting(dataset: ImageDataset, ensemble: Ensemble) -> ImageDataset:
    """The data with the classes of the runs; classes that its labels lack are said.

    Raises:
        InputError: if it has more classes than the runs, or another number of channels.
    """
    if dataset.channels != ensemble.channels:
        raise InputError(
            f"{dataset.name} has images of {dataset.channels} channels and the run was trained on "
            f"{ensemble.channels}: convert them, or choose another `run`."
        )
    if dataset.num_classes == 0:
        raise InputError(f"{dataset.name} has no labels to score: add some, or segment it with predict.")
    if dataset.num_classes > ensemble.num_classes:
        raise InputError(
            f"the labels of {dataset.name} have {dataset.num_classes} classes and the run knows "
            f"{ensemble.num_classes}: renumber them as in the training data, or choose another `run`."
        )
    if dataset.num_classes < ensemble.num_classes:
        say(
            f"note: {dataset.name}: the labels go up to class {dataset.num_classes - 1} and the run to "
            f"{ensemble.num_classes - 1}; check that the numbers mean the same.",
        )
        dataset.num_classes = ensemble.num_classes
    return dataset

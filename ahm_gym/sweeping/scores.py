"""Runs one seed of a trial: pretrains, and measures the score on val."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ahm_gym.data.draws import EmptyDraw
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, RunError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.run import pretrain
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.settings import to_json
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.finetune import finetune
from ahm_gym.segmentation.inputs import open_labelled, resolve, starting_encoder
from ahm_gym.segmentation.probe import Probe

NUM_DRAWS, DRAWS_APART = 5, 1000
"""Number of draws of labelled images that a probe is averaged over, and the distance between their seeds."""
DONE: str = "done.json"
"""File in the folder of a pretraining that has finished, whose checkpoints are deleted."""
WITHOUT_EFFECT: tuple[str, ...] = ("run_dir", "device", "data_workers", "checkpoint_every")
"""Settings of pretraining that do not affect results."""


def folder_of(config: PretrainConfig, runs: Path) -> Path:
    """The folder of a pretraining in `runs`, by its settings: trials with the same pretraining share it."""
    settings = {name: value for name, value in to_json(config).items() if name not in WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return runs / f"{digest}-{config.seed}"


def trained(config: PretrainConfig, interrupt: Interrupt) -> Path:
    """The folder of a pretraining, which is run, continued, or taken as it is if it has finished.

    Raises:
        InputError, RunError: as `pretrain` does.
        Interrupted: after a request to stop, with the state saved.
    """
    folder = config.run_dir
    assert folder is not None, "the trial names it"
    if not (folder / DONE).is_file():
        begun = (folder / "config.json").is_file()
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)  # left by a crash before the run began
        # It resumes with the settings in its folder, even if this session has others, such as another device.
        pretrain(PretrainConfig(run_dir=folder) if begun else config, resume=begun, interrupt=interrupt)
        write_atomically(folder / DONE, "{}\n")
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return folder


def score_of(
    objective: str, pretraining: PretrainConfig, finetuning: FinetuneConfig, interrupt: Interrupt
) -> float:
    """The score of an encoder; more is better. No test image is read.

    Args:
        objective: one of `OBJECTIVES`.
        pretraining: settings of its finished run.
        finetuning: settings of the evaluation, with its data, labels and a run folder.
        interrupt: what can stop fine-tuning.

    Raises:
        InputError: if settings or data cannot be used.
        RunError: if there is no finite score.
    """
    if objective == "reward":
        score = mean_reward(pretraining)
    elif objective == "probe":
        score = probe_on_val(finetuning)
    else:
        score = finetuned_on_val(finetuning, interrupt)
    if score is None or not math.isfinite(score):
        raise RunError(f"the score of `objective={objective}` is {score}, which is no finite number.")
    return score


def mean_reward(config: PretrainConfig) -> float:
    """The mean reward of a run over the lines of its log that have one.

    Not only the last ones: an agent's guided share may fall to 0 during the run, after which nothing is paid.

    Raises:
        RunError: if nothing was ever paid.
    """
    assert config.run_dir is not None, "the trial names it"
    rows = RunFolder.open(config.run_dir, "pretrain").metrics()
    found = [row["reward"] for row in rows if row.get("reward") is not None]
    if not found:
        raise RunError("no mask was paid a reward: choose more `steps`, or a `guided_fraction` above 0.")
    return sum(found) / len(found)


def probe_on_val(config: FinetuneConfig) -> float:
    """The patch Dice on val of a linear probe, the mean over several draws if not all labels are used.

    Raises:
        EmptyDraw: if no draw has any foreground.
    """
    config = resolve(config)
    dataset = open_labelled(config)
    probe = Probe(starting_encoder(config, dataset).to(pick_device(config.device)), dataset, tested=False)
    drawn = config.labels is not None or config.labelled_patients is not None
    scores: list[float] = []
    empty: list[EmptyDraw] = []
    for draw in range(NUM_DRAWS if drawn else 1):
        given: dict[str, Any] = {"labels": config.labels, "patients": config.labelled_patients}
        try:
            scores.append(probe.val_dice(seed=config.seed + DRAWS_APART * draw, **given))
        except EmptyDraw as error:
            empty.append(error)
    if not scores:
        raise empty[0]
    return sum(scores) / len(scores)


def finetuned_on_val(config: FinetuneConfig, interrupt: Interrupt) -> float | None:
    """The Dice on val of the last segmenter of a run, which is continued if it was begun.

    Raises:
        Interrupted: after a request to stop, with the state saved.
    """
    folder = config.run_dir
    assert folder is not None, "the trial names it"
    config = replace(config, split="val", select="last", validate_every=0, compare=None)
    begun = (folder / "config.json").is_file()
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    results = finetune(FinetuneConfig(run_dir=folder) if begun else config, resume=begun, interrupt=interrupt)
    if results["split"] != "val":
        raise InputError(f"{folder} was scored on {results['split']}: delete it, and run the sweep again.")
    return results["dice"]

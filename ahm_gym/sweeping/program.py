"""Runs a sweep: opens the study, runs the trials that are missing, and writes the report."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ahm_gym.data import ImageDataset
from ahm_gym.data.sources import absolute
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, Interrupted, RunError, reason_of, say
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.inputs import open_images
from ahm_gym.pretraining.mask_source import canonical
from ahm_gym.pretraining.training import Training
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.provenance import commit, hardware, versions
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.settings import flattened, to_json
from ahm_gym.runs.storage import locked, make_folder, write_atomically
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.sweeping.config import SET_BY_THE_SWEEP, SweepConfig, check
from ahm_gym.sweeping.report import write_report
from ahm_gym.sweeping.scores import folder_of, score_of, trained
from ahm_gym.sweeping.space import Dimension, parse_space, settings_of_trial
from ahm_gym.sweeping.study import (
    DONE,
    FAILED,
    PRUNED,
    Study,
    Trial,
    ended_trials,
    next_trial,
    open_study,
    report_once,
)

OPEN: tuple[str, ...] = ("data", "data_root", "trials", "device", "time_budget", "out")
"""Settings that may change between sessions of a sweep; of the data a digest is compared."""


def run_sweep(config: SweepConfig, *, command: str = "") -> Path:
    """Runs the trials that are missing, writes the report, and returns its folder.

    After a stop, the same call continues: a trial that was not finished goes on with the settings that it had, from
    its last checkpoint, and no finished one is run again.

    Raises:
        InputError: if settings or data cannot be used, or the folder holds another sweep; nothing is written.
        RunError: if no trial has a score.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved and reported.
    """
    interrupt = Interrupt(math.inf if config.time_budget is None else time.time() + 60 * config.time_budget)
    check(config)
    config = replace(config, policy=canonical(config.policy))
    if config.data is not None:
        data, root = absolute(config.data, config.data_root)
        config = replace(config, data=data, data_root=root)
    space = parse_space(config)
    pick_device(config.device)
    dataset = open_searched(config)
    Training(replace(config.pretrain, **shared(config, 0), policy=config.policy))  # finds bad settings
    check_same(config, dataset)
    make_folder(config.out, "`out`")
    with locked(config.out):
        write_settings(config, dataset, command)
        study = open_study(config.out)
        with interrupt:
            run_trials(study, config, space, interrupt)
        if ended_trials(study):
            write_report(config.out)
    return concluded(study, config, interrupt)


def concluded(study: Study, config: SweepConfig, interrupt: Interrupt) -> Path:
    """Says how a sweep has ended, and returns its folder; raises as `run_sweep` does."""
    finished = ended_trials(study)
    num_left = max(config.trials - len(finished), 0)
    left = f"{num_left} of {config.trials} trials are left; run the same command again to continue"
    if interrupt.signal is not None:
        raise Interrupted(f"stopped: {left}.", interrupt.signal)
    if len(finished) < config.trials:
        say(f"The time is up: {left}.")
    elif all(trial.state == FAILED for trial in finished):
        raise RunError(f"no trial has a score; the first one failed: {finished[0].user_attrs['error']}")
    return config.out


def best_of(out: Path) -> tuple[float | None, dict[str, Any]]:
    """The score and the searched settings of the best trial of a sweep; None and nothing without a score."""
    scored = [trial for trial in ended_trials(open_study(out)) if trial.state == DONE]
    if not scored:
        return None, {}
    best = max(scored, key=lambda trial: trial.values[0])
    return best.value, dict(best.params)


def run_trials(study: Study, config: SweepConfig, space: tuple[Dimension, ...], interrupt: Interrupt) -> None:
    """Runs trials until there are enough, or a stop is requested."""
    while not interrupt.requested:
        trial = next_trial(study, config.trials, config.seed)
        if trial is None:
            return
        try:
            run_trial(study, trial, config, space, interrupt)
        except Interrupted:
            return


def run_trial(
    study: Study, trial: Trial, config: SweepConfig, space: tuple[Dimension, ...], interrupt: Interrupt
) -> None:
    """Runs the seeds of a trial and tells the study its score, that it was pruned, or why it failed.

    Raises:
        Interrupted: after a request to stop; the trial is not finished then.
        OSError: if the disk is full or cannot be read; the trial is not finished then.
    """
    began = time.monotonic()
    values = {one.name: one.suggest(trial) for one in space}
    say(f"trial {trial.number}: {' '.join(f'{name}={value}' for name, value in values.items())}")
    folder = config.out / "runs" / f"trial-{trial.number}"
    value, state = None, FAILED
    try:
        settings = settings_of_trial(config, space, values)
        value, pruned = scored(study, trial, config, settings, folder, interrupt)
        state = PRUNED if pruned else DONE
    except (Interrupted, OSError):  # a full disk is no fault of the trial, which goes on when there is room
        raise
    except Exception as error:
        trial.set_user_attr("error", reason_of(error))
        say(f"trial {trial.number} failed: {reason_of(error)}")
    spent = trial.user_attrs.get("seconds", 0.0) + time.monotonic() - began
    trial.set_user_attr("seconds", round(spent, 1))
    study.tell(trial, value if state == DONE else None, state=state)
    shutil.rmtree(folder, ignore_errors=True)
    if value is not None:
        say(f"trial {trial.number}: {config.objective} {value:.4f}{' (pruned)' if state == PRUNED else ''}")


def scored(
    study: Study,
    trial: Trial,
    config: SweepConfig,
    settings: tuple[PretrainConfig, FinetuneConfig],
    folder: Path,
    interrupt: Interrupt,
) -> tuple[float, bool]:
    """The mean score over the seeds, and whether the trial was ended before the last of them."""
    scores: list[float] = []
    for seed in range(config.seeds):
        pretraining = replace(settings[0], **shared(config, seed))
        pretraining = replace(pretraining, run_dir=folder_of(pretraining, config.out / "runs"))
        run = trained(pretraining, interrupt)
        evaluation = replace(
            settings[1],
            **shared(config, seed),
            patient_regex=pretraining.patient_regex,
            encoder=str(run),
            labels=config.labels,
            run_dir=folder / f"finetune-{seed}",
        )
        scores.append(score_of(config.objective, pretraining, evaluation, interrupt))
        trial.set_user_attr("scores", scores)
        trial.set_user_attr("runs", [*trial.user_attrs.get("runs", [])[:seed], run.name])
        mean = sum(scores) / len(scores)
        if config.prune and seed < config.seeds - 1:
            report_once(study, trial, mean, seed)
            if trial.should_prune():
                return mean, True
    return sum(scores) / len(scores), False


def shared(config: SweepConfig, seed: int) -> dict[str, Any]:
    """The settings that pretraining and fine-tuning of a seed share."""
    return {"data": config.data, "data_root": config.data_root, "device": config.device, "seed": seed}


def open_searched(config: SweepConfig) -> ImageDataset:
    """Opens, and if necessary prepares, the data.

    Raises:
        InputError: if it cannot be used, or has no val labels that the objective needs.
    """
    needs_labels = config.objective != "reward"
    pretraining = replace(config.pretrain, data=config.data, data_root=config.data_root)
    dataset = open_images(pretraining, need_labels=needs_labels)
    if needs_labels and not dataset.indices("val", labelled=True):
        raise InputError(
            f"{dataset.name} has no labelled val images, by which a sweep with `objective={config.objective}` scores "
            "its trials (never by test images): add some, or choose `objective=reward`."
        )
    return dataset


def settings_of(config: SweepConfig) -> dict[str, Any]:
    """The settings that all trials of a folder share."""
    values = {name: value for name, value in to_json(config).items() if name not in OPEN}
    for program, names in SET_BY_THE_SWEEP.items():
        values[program] = {name: value for name, value in values[program].items() if name not in names}
    return values


def check_same(config: SweepConfig, dataset: ImageDataset) -> None:
    """Checks that the trials in the folder come from the same settings and data.

    Raises:
        InputError: if the folder is not of a sweep, or has trials of other settings or data.
    """
    path = config.out / "config.json"
    other = InputError(f"{config.out} is not the folder of a sweep: choose another `out`.")
    if not path.exists():
        if config.out.exists() and (
            not config.out.is_dir() or any(item.name[0] != "." for item in config.out.iterdir())
        ):
            raise other
        return
    saved = read_object(path)
    if saved.get("kind") != "sweep":
        raise other
    kept, now = flattened(saved, SET_BY_THE_SWEEP), flattened(settings_of(config), SET_BY_THE_SWEEP)
    # A setting that is newer than the folder had its default there.
    usual = flattened(settings_of(SweepConfig()), SET_BY_THE_SWEEP)
    for name, value in now.items():
        if (found := kept.get(name, usual[name])) != value:
            raise InputError(
                f"`{name}={value}` differs from the {found} of the sweep in {config.out}: use the same value, or "
                "choose another `out`."
            )
    if saved.get("data_digest") != dataset.content_digest():
        raise InputError(
            f"`data={config.data}` is not what the sweep in {config.out} was started with: restore that, or choose "
            "another `out`."
        )


def write_settings(config: SweepConfig, dataset: ImageDataset, command: str) -> None:
    """Writes the settings, the data, the machine and all commands so far."""
    path = config.out / "config.json"
    earlier = read_object(path).get("command", "") if path.exists() else ""
    commands = dict.fromkeys([*earlier.splitlines(), command])
    described = {
        "kind": "sweep",
        **to_json(config),
        "data_name": dataset.name,
        "data_digest": dataset.content_digest(),
        "command": "\n".join(filter(None, commands)),
        "commit": commit(),
        "hardware": hardware(pick_device(config.device)),
        "versions": versions(),
    }
    write_atomically(path, json.dumps(described, indent=2) + "\n")

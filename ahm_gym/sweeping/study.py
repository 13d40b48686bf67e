"""The study of a sweep: Optuna's record of the trials, in a file of the folder, and what it proposes next.

This is the only module that imports Optuna, which comes with the extra `sweep`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ahm_gym.errors import InputError

if importlib.util.find_spec("optuna") is None:
    raise InputError('a sweep needs Optuna, which is not installed: pip install "ahm-gym[sweep]".')

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

DONE, PRUNED, FAILED = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
NAME: str = "sweep"
JOURNAL: str = "trials.log"
"""File of the trials; a line for every change, so that a kill loses at most the last one."""
NUM_RANDOM: int = 10
"""Number of trials at the start whose settings are drawn at random: TPE needs some scores to begin with."""
NUM_UNPRUNED: int = 5
"""Number of finished trials before which none is pruned."""


def open_study(out: Path) -> Study:
    """The study in a folder, new or with the trials so far; higher scores are better."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
        study_name=NAME,
        direction="maximize",
        load_if_exists=True,
    )


def ended_trials(study: Study) -> list[FrozenTrial]:
    """The trials that have a score, were pruned or failed, in their order."""
    return study.get_trials(deepcopy=False, states=(DONE, PRUNED, FAILED))


def next_trial(study: Study, num_trials: int, seed: int) -> Trial | None:
    """The trial that an earlier session did not finish, or else a new one; None if there are enough.

    The sampler has a seed of its own for every trial, so a sweep that was stopped proposes what it would have proposed.
    """
    unfinished = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    number = unfinished[0].number if unfinished else len(study.get_trials(deepcopy=False))
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=own, n_startup_trials=NUM_RANDOM)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=NUM_UNPRUNED)
    if unfinished:
        return Trial(study, unfinished[0]._trial_id)  # it keeps the settings that are in the storage
    return study.ask() if number < num_trials else None


def report_once(study: Study, trial: Trial, value: float, step: int) -> None:
    """Reports a value of a trial, unless an earlier session did."""
    if step not in study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        trial.report(value, step)


def importances(study: Study) -> dict[str, float]:
    """How much each setting matters for a good score (PED-ANOVA, Watanabe et al., IJCAI 2023), 0 to 1, sum 1.

    Empty if there are too few scores, or all are equal.
    """
    scored = study.get_trials(deepcopy=False, states=(DONE,))
    if len(scored) < NUM_RANDOM or len({trial.value for trial in scored}) < 2:
        return {}
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(share) for name, share in found.items()}

"""A fine-tuning run with all that belongs to it: the segmenter from scratch to compare with, and the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from ahm_gym.device import ranks
from ahm_gym.device.choice import pick_device
from ahm_gym.device.launch import check_restarts
from ahm_gym.errors import Interrupted
from ahm_gym.runs.folder import RunFolder, resume_flags
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.settings import from_json
from ahm_gym.segmentation.comparison import NONE
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.finetune import finetune, is_finished
from ahm_gym.segmentation.report import SCRATCH, write_provenance, write_report


def run_finetune(
    config: FinetuneConfig, *, resume: bool = False, given: Container[str] = (), command: str | None = None
) -> dict[str, Any]:
    """Fine-tunes, trains what it is compared with if that is from scratch, and writes `report.html`.

    The scores of each are written before anything is drawn. A run that was interrupted in either, or in the report,
    goes on there with `resume`.

    Args:
        config: settings of the run, with a `run_dir`.
        resume: as for `finetune`.
        given: as for `finetune`.
        command: the command line, for the report; None if it was called from Python.

    Returns:
        The content of `results.json` of the run.

    Raises:
        InputError, RunError, Interrupted: as `finetune` does.
    """
    check_restarts(resume)
    with ranks.started():
        return _finetune_all(config, resume, given, command)


def _finetune_all(
    config: FinetuneConfig, resume: bool, given: Container[str], command: str | None
) -> dict[str, Any]:
    began, interrupt = time.time(), Interrupt()
    config = ranks.from_first(lambda: config)  # with the folder that rank 0 chose
    path = config.run_dir
    was_finished = ranks.from_first(lambda: is_finished(path))
    results = finetune(config, resume=resume, given=given, interrupt=interrupt)
    assert path is not None, "chosen before"
    run = ranks.from_first(lambda: RunFolder.open(path, "finetune"))
    if not was_finished and ranks.is_first():
        seconds = None if resume else time.time() - began
        write_provenance(run.path, command, pick_device(config.device), seconds)
    if run.config.get("compare", config.compare) == NONE:
        train_from_scratch(run, interrupt)
    ranks.from_first(lambda: write_report(path, config.compare))
    return results


def train_from_scratch(run: RunFolder, interrupt: Interrupt) -> dict[str, Any]:
    """The results of the same network without the encoder's weights, with all else as in the run.

    It is a run of its own in the folder `from-scratch`, which is resumed if it is there.

    Raises:
        Interrupted: with the way to continue the whole run.
    """
    settings = from_json(FinetuneConfig, run.config, f"the settings of {run.path}")
    folder = run.path / SCRATCH
    config = dataclasses.replace(settings, encoder="none", compare=None, run_dir=folder)
    try:
        begun = ranks.from_first((folder / "config.json").is_file)
        return finetune(config, resume=begun, interrupt=interrupt)
    except Interrupted as error:
        raise Interrupted(
            f"stopped in the run from scratch to compare with; continue with: {resume_flags(run.path)}",
            error.exit_code - 128,
        ) from error


def is_complete(run_dir: Path | None) -> bool:
    """Whether the run in this folder has written all its results and its report."""
    if run_dir is None or not is_finished(run_dir):
        return False
    compare = RunFolder.open(run_dir, "finetune").config.get("compare")
    return (compare != NONE or is_finished(run_dir / SCRATCH)) and (run_dir / "report.html").is_file()

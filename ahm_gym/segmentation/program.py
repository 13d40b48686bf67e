"""A fine-tuning run with all that belongs to it: the segmenter from scratch to compare with, and the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from ahm_gym.device.choice import pick_device
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
    began, interrupt = time.time(), Interrupt()
    was_finished = is_finished(config.run_dir)
    results = finetune(config, resume=resume, given=given, interrupt=interrupt)
    assert config.run_dir is not None, "chosen before"
    run = RunFolder.open(config.run_dir, "finetune")
    if not was_finished:
        seconds = None if resume else time.time() - began
        write_provenance(run.path, command, pick_device(config.device), seconds)
    if run.config.get("compare", config.compare) == NONE:
        train_from_scratch(run, interrupt)
    write_report(run.path, config.compare)
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
        return finetune(config, resume=(folder / "config.json").is_file(), interrupt=interrupt)
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

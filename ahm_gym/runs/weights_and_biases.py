"""Metrics of a run on Weights & Biases (extra `wandb`), beside the files of its folder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ahm_gym.errors import InputError, Interrupted, RunError, load_package
from ahm_gym.runs.schema import Schema, checked, read_json
from ahm_gym.runs.storage import write_atomically
from ahm_gym.runs.tracking import shown

FILE: str = "wandb.json"
"""File in the run folder with the project and the id, by which a resumed run continues the same one."""


class SavedId(Schema):
    """The content of `FILE`."""

    project: str
    id: str


def project_of(run_dir: Path | None, asked: str | None) -> str | None:
    """The project to which a run is logged: the one that was asked for, or that of the run to resume; None for none.

    Args:
        run_dir: folder of the run to resume; None for a new one.
        asked: value of the setting `wandb`.

    Raises:
        InputError: if the two differ, wandb is not installed, or the name is empty.
    """
    if asked == "":
        raise InputError("`wandb` is empty: name a project, or leave it out.")
    saved = None if run_dir is None else _saved(run_dir)
    if saved is not None and asked not in (None, saved.project):
        raise InputError(
            f"`wandb={asked}` differs from the {saved.project} that this run logs to: leave it out, or start a new run "
            "in another `run_dir`."
        )
    project = asked if saved is None else saved.project
    if project is not None:
        _library()
    return project


class WandbRun:
    """A run on Weights & Biases, while its context is entered.

    The id is kept in the run folder before anything is sent. Settings of the library, such as `WANDB_MODE=offline`,
    `WANDB_ENTITY` or `WANDB_DIR`, are its environment variables. Curves have the names of TensorBoard's and the number
    of updates as their axis: after a resume, what was logged since the last checkpoint is there twice.

    Args:
        run_dir: the run folder, in which the library keeps its own files.
        project: name of the project.
        settings: settings of the run.

    Raises:
        InputError: if wandb is not installed.
        RunError: if the library refuses to start, because nobody is logged in.
    """

    def __init__(self, run_dir: Path, project: str, settings: Mapping[str, Any]) -> None:
        saved = _saved(run_dir) or SavedId(project=project, id=uuid.uuid4().hex[:12])
        write_atomically(run_dir / FILE, json.dumps(saved.model_dump(), indent=2) + "\n")
        library = _library()
        try:
            self._run: Any = library.init(
                project=saved.project,
                id=saved.id,
                resume="allow",
                name=run_dir.name,
                dir=str(run_dir),
                config=dict(settings),
            )
        except library.Error as error:
            raise RunError(
                f"Weights & Biases does not start ({error}): run `wandb login`, or set WANDB_MODE=offline, then "
                "continue with `resume`."
            ) from error
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, row: Mapping[str, float | None]) -> None:
        """Logs the metrics of a step."""
        self._run.log({**shown(row), "step": step})

    def __enter__(self) -> WandbRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the run: as failed after an error, but not if it was only asked to stop."""
        self._run.finish(exit_code=0 if kind is None or issubclass(kind, Interrupted) else 1)


def _saved(run_dir: Path) -> SavedId | None:
    path = run_dir / FILE
    return checked(SavedId, read_json(path), path) if path.exists() else None


def _library() -> Any:
    """The package wandb.

    Raises:
        InputError: if it is not installed.
    """
    return load_package("wandb", "`wandb` needs Weights & Biases", "wandb")

"""`RunFolder`: the settings, metrics and checkpoints of a run. They survive a crash or a kill."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, SupportsFloat

from pydantic import TypeAdapter, ValidationError
from torch.utils.tensorboard.writer import SummaryWriter

from ahm_gym.errors import InputError, say
from ahm_gym.runs.lines import complete_lines
from ahm_gym.runs.schema import read_json
from ahm_gym.runs.storage import (
    LOCK,
    load_state,
    locked,
    make_folder,
    recover_all,
    replace_folder,
    save_state,
    write_atomically,
)
from ahm_gym.runs.tracking import add_scalars, write_events

KEPT: int = 2
"""Number of checkpoints that are kept: the newest, and one to fall back to if its files are damaged."""


ROW: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, float | int | None])
"""A line of `metrics.jsonl`; one of the numbers is `step`."""


def resume_flags(path: Path) -> str:
    """The settings that resume the run in a folder, quoted for a shell."""
    return f"`resume` `run_dir={shlex.quote(str(path))}`"


class RunFolder:
    """A folder with `config.json`, `metrics.jsonl`, TensorBoard events and checkpoints.

    Only one training program writes to it at a time. Files are created when they are first needed, so opening a
    folder to read it changes nothing.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path: Path = path
        self.config: dict[str, Any] = config
        self._lines: IO[str] | None = None
        self._events: SummaryWriter | None = None
        self.also: Callable[[int, Mapping[str, float | None]], None] | None = None
        """What is also called with every logged row."""
        self._noted = False

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """Creates a run folder with these settings; `config["kind"]` is the kind of run.

        Raises:
            InputError: if the folder is not empty or cannot be created.
        """
        if path.exists() and not _is_free(path):
            raise _taken(path)
        content = json.dumps(config, indent=2) + "\n"
        made = not path.exists()
        make_folder(path, "`run_dir`")
        with locked(path):  # of programs that found the folder free at the same time, one gets it
            if not _is_free(path):
                raise _taken(path)
            try:
                recover_all(path)
                write_atomically(path / "config.json", content)
            except BaseException:
                if made:
                    shutil.rmtree(path, ignore_errors=True)
                raise
        return cls(path, json.loads(content))

    @classmethod
    def open(cls, path: Path | None, kind: str) -> RunFolder:
        """Opens an existing run folder.

        Args:
            path: None if a program should resume but no folder was given.
            kind: pretrain, recipe or finetune.

        Raises:
            InputError: if the folder is missing or holds no run of that kind.
        """
        if path is None:
            raise InputError("`resume` needs `run_dir`: give the folder of the run to continue.")
        if not path.is_dir():
            raise InputError(f"there is no folder {path}: give the folder of a {kind} run.")
        file = path / "config.json"
        if not file.is_file():
            raise InputError(
                f"{path} is not a run folder, it has no config.json: give the folder of a {kind} run."
            )
        config = read_json(file)
        found = config.get("kind") if isinstance(config, dict) else None
        if found != kind:
            what = f"a {found} run" if isinstance(found, str) else "not a run folder"
            raise InputError(f"{path} is {what}: give the folder of a {kind} run.")
        return cls(path, config)

    def follow(self, settings: Mapping[str, Any]) -> None:
        """Writes settings that have changed, such as the place of the data, to `config.json`."""
        changed = self.config | {name: value for name, value in settings.items() if name in self.config}
        if changed != self.config:
            write_atomically(self.path / "config.json", json.dumps(changed, indent=2) + "\n")
            self.config = changed

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Logs the metrics of a step; a number that is not finite is written as null."""
        numbers = {name: float(value) for name, value in metrics.items()}
        row = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if self._lines is None:
            self._lines = self._metrics_path.open("a")
        if self._events is None:
            self._events = SummaryWriter(str(self.path / "events"))
        self._lines.write(json.dumps({"step": step, **row}) + "\n")
        self._lines.flush()
        add_scalars(self._events, step, row)
        if self.also is not None:
            self.also(step, row)

    def metrics(self) -> list[dict[str, Any]]:
        """The logged rows, oldest first, with None for null.

        An incomplete last line is left out, and so are lines that are no rows; the first call says so.
        """
        rows, damaged = [], 0
        for line in complete_lines(self._metrics_path, errors="replace"):
            try:
                row = ROW.validate_json(line, strict=True)
            except ValidationError:
                row = {}
            if isinstance(row.get("step"), int):
                rows.append(row)
            else:
                damaged += 1
        if damaged and not self._noted:
            say(f"note: {damaged} damaged lines of {self._metrics_path} are left out.")
            self._noted = True
        return rows

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Saves the state of a step, then deletes all checkpoints but this one and the one before it.

        Raises:
            OSError: if the state cannot be written; the older checkpoints are kept.
        """
        path = self._checkpoints / f"step-{step}"
        replace_folder(path, lambda folder: save_state(folder, {"step": step, **state}))
        kept = sorted(older for older in self._steps() if older <= step)[-KEPT:]
        for other in set(self._steps()) - set(kept):
            shutil.rmtree(self._checkpoints / f"step-{other}")

    def load_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """The step and state of the newest sound checkpoint, to resume from; None if there is none.

        Removes metrics that were logged after it, and unfinished files that a crash left.

        Raises:
            InputError: if all of them are damaged.
        """
        recover_all(self.path)
        recover_all(self._checkpoints)
        found = self.read_checkpoint()
        self._cut_metrics(-1 if found is None else found[0])
        return found

    def read_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """The step and state of the newest sound checkpoint; None if there is none. Changes nothing.

        If the newest is damaged, a note says so, and the one before it is read.

        Raises:
            InputError: if all of them are damaged.
        """
        newest: InputError | None = None
        for step in sorted(self._steps(), reverse=True):
            try:
                state = self._read(step)
            except InputError as error:
                newest = newest or error
                continue
            if newest is not None:
                say(f"note: {newest} Step {step} is used instead.")
            return step, state
        if newest is not None:
            raise newest
        return None

    def _read(self, step: int) -> dict[str, Any]:
        path = self._checkpoints / f"step-{step}"
        state = load_state(path)
        saved, steps = state.pop("step", step), self.config.get("steps")
        if saved != step:
            raise InputError(f"{path} holds step {saved}: rename it to step-{saved}, or restore it.")
        if isinstance(steps, int) and step > steps:
            raise InputError(
                f"{path} is beyond the {steps} steps of this run: restore {self.path / 'config.json'}."
            )
        return state

    def has_finished(self) -> bool:
        """Whether there is a complete checkpoint of the last step."""
        step = self.checkpoint_step()
        if step is None or step != self.config.get("steps"):
            return False
        saved = read_json(self._checkpoints / f"step-{step}" / "state.json")
        kept = saved.get("dict") if isinstance(saved, dict) else None
        return isinstance(kept, dict) and kept.get("step", step) == step

    def checkpoint_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max(self._steps(), default=None)

    def replace(self, name: str, write: Callable[[Path], None]) -> None:
        """Replaces the subfolder `name` by a new one; `write` gets the empty folder and fills it."""
        replace_folder(self.path / name, write)

    def close(self) -> None:
        """Flushes and closes the files; logging opens them again."""
        lines, events = self._lines, self._events
        self._lines = self._events = None
        if lines is not None:
            lines.close()
        if events is not None:
            events.close()

    @property
    def _metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoint"

    def _steps(self) -> list[int]:
        """The steps of the complete checkpoints; `save_state` writes `state.json` last."""
        names = [item.parent.name for item in self._checkpoints.glob("step-*/state.json")]
        return [int(name[5:]) for name in names if re.fullmatch(r"step-\d{1,18}", name)]

    def _cut_metrics(self, last_step: int) -> None:
        """Removes everything logged after `last_step` from the metrics and the events."""
        self.close()
        if not self._metrics_path.exists():
            return
        rows = [row for row in self.metrics() if row["step"] <= last_step]
        write_atomically(self._metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
        self.replace("events", lambda folder: write_events(folder, rows))


def _is_free(path: Path) -> bool:
    """Whether a folder holds nothing but a lock, or what a program left that was killed before its run began."""
    return path.is_dir() and all(item.name in (LOCK, ".config.json.tmp") for item in path.iterdir())


def _taken(path: Path) -> InputError:
    return InputError(
        f"{path} exists already: choose another `run_dir`, or continue a run in it with `resume`."
    )


def free_run_dir(stem: str) -> Path:
    """The first free `runs/STEM-N`."""
    number = 1
    while (path := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return path

"""The report of a sweep: `report.html`, `trials.csv` and `trials.md`, from the files of its folder."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ahm_gym.errors import InputError
from ahm_gym.pages.page import Section, Table, render
from ahm_gym.pages.text import NOTHING, decimals, duration, markdown_line, plural
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.settings import from_json
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.sweeping.charts import history, importance, slices
from ahm_gym.sweeping.config import SweepConfig
from ahm_gym.sweeping.space import Dimension, parse_space, settings_of_trial
from ahm_gym.sweeping.study import (
    DONE,
    FAILED,
    JOURNAL,
    FrozenTrial,
    Study,
    ended_trials,
    importances,
    open_study,
)

STATES: dict[Any, str] = {DONE: "done", FAILED: "failed"}
"""What a state is called; any other is pruned."""
MEASURED: dict[str, str] = {
    "probe": "patch Dice of the probe on val",
    "finetune": "Dice on val after fine-tuning",
    "reward": "mean reward over pretraining",
}


def write_report(out: Path) -> Path:
    """Writes the report of the trials so far, and returns the page.

    Raises:
        InputError: if the folder is not of a sweep, or no trial has ended.
    """
    path = out / "config.json"
    if not path.is_file() or read_object(path).get("kind") != "sweep" or not (out / JOURNAL).is_file():
        raise InputError(f"{out} is not the folder of a sweep that has begun: give another.")
    described = read_object(path)
    config = from_json(SweepConfig, described, f"the settings of {out}")
    study = open_study(out)
    trials = ended_trials(study)
    if not trials:
        raise InputError(f"no trial of the sweep in {out} has ended yet: run it again to continue.")
    space = parse_space(config)
    table = trial_table(trials, space, config)
    write_atomically(out / "trials.csv", as_csv(table))
    write_atomically(out / "trials.md", as_markdown(table))
    sections = [
        Section("best", "The best trial", _best(study, config, space, out)),
        Section("history", "Over the trials", _history(trials, config)),
        Section("importance", "What matters", _importance(study)),
        Section("slices", "Setting by setting", _slices(trials, space)),
        Section("trials", "All trials", table),
        Section("settings", "How it was made", _settings(described)),
    ]
    page = out / "report.html"
    what = f"{config.policy} on {described.get('data_name')}"
    lead = f"{plural(len(trials), 'trial')} · {what} · {MEASURED[config.objective]}"
    write_atomically(page, render("ahm_gym.sweeping", f"Sweep: {out.resolve().name}", lead, sections))
    return page


def score(trial: FrozenTrial) -> float | None:
    """The score of a trial; of a pruned one, the mean of its finished seeds; None if it failed."""
    if trial.state == DONE:
        return trial.value
    values = trial.intermediate_values
    return None if trial.state == FAILED or not values else values[max(values)]


def scores_of(trials: list[FrozenTrial]) -> dict[int, float]:
    """The scores of the trials that were not ended early, by their numbers."""
    return {trial.number: trial.value for trial in trials if trial.state == DONE and trial.value is not None}


def trial_table(trials: list[FrozenTrial], space: tuple[Dimension, ...], config: SweepConfig) -> Table:
    """A row for every trial: number, state, score, the score of each seed, settings, time, and why it failed."""
    several = config.seeds > 1
    columns = [
        "trial",
        "state",
        config.objective,
        *(["seeds"] if several else []),
        *(one.name for one in space),
    ]
    rows = []
    for trial in trials:
        seeds = " ".join(decimals(value, 4) for value in trial.user_attrs.get("scores", []))
        rows.append(
            [
                str(trial.number),
                STATES.get(trial.state, "pruned"),
                decimals(score(trial), 4),
                *([seeds] if several else []),
                *(shown(trial.params.get(one.name)) for one in space),
                duration(trial.user_attrs.get("seconds")),
                trial.user_attrs.get("error", ""),
            ]
        )
    return Table(f"{plural(len(rows), 'trial')}, in their order", [*columns, "time", "note"], rows)


def shown(value: Any) -> str:
    """A value of a setting with four significant digits; a dash for None."""
    return NOTHING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def as_csv(table: Table) -> str:
    """The table with a comma between the columns; a text that a spreadsheet would execute gets an apostrophe."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    for row in [table.columns, *table.rows]:
        entries = [re.sub(r"[\r\n]+", " ", entry).replace("\u2212", "-") for entry in row]
        writer.writerow(
            [
                f"'{e}" if e.lstrip().startswith(("=", "+", "-", "@")) and not is_number(e) else e
                for e in entries
            ]
        )
    return content.getvalue()


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_markdown(table: Table) -> str:
    """The table in Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(markdown_line(e).replace("|", "\\|") for e in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def commands(config: SweepConfig, pretraining: PretrainConfig, finetuning: FinetuneConfig) -> list[str]:
    """The commands that repeat a trial as runs of their own; fine-tuning then scores the test images."""
    data = {"data": config.data, "data_root": config.data_root}
    first = flags_of(replace(pretraining, **data), PretrainConfig())
    lines = [shlex.join(["ahm-gym", "pretrain", *first, "--run-dir", "runs/best"])]
    if config.objective == "finetune":
        own = replace(finetuning, labels=config.labels, validate_every=None)
        given = ["--encoder", "runs/best", *flags_of(own, FinetuneConfig())]
        lines.append(shlex.join(["ahm-gym", "finetune", *given]))
    return lines


def flags_of(config: Any, usual: Any) -> list[str]:
    """The flags of the settings that differ from the usual ones."""
    flags: list[str] = []
    for item in fields(config):
        value = getattr(config, item.name)
        if value == getattr(usual, item.name):
            continue
        name = item.name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def _best(study: Study, config: SweepConfig, space: tuple[Dimension, ...], out: Path) -> dict[str, Any]:
    found = scores_of(ended_trials(study))
    if not found:
        return {
            "headline": "No trial has a score; the table says why.",
            "commands": [],
            "table": None,
            "runs": "",
        }
    number = max(found, key=lambda key: found[key])
    trial = study.get_trials(deepcopy=False)[number]
    runs = ", ".join(str(out / "runs" / name) for name in trial.user_attrs.get("runs", []))
    return {
        "headline": f"Trial {number} is the best of {len(found)}: {found[number]:.4f} ({MEASURED[config.objective]}).",
        "table": Table("Its settings", ["setting", "value"], [[n, str(v)] for n, v in trial.params.items()]),
        "commands": commands(config, *settings_of_trial(config, space, trial.params)),
        "runs": runs,
        "seeds": config.seeds,
        "reward": config.objective == "reward",
    }


def _history(trials: list[FrozenTrial], config: SweepConfig) -> dict[str, Any] | None:
    found = scores_of(trials)
    if not found:
        return None
    counts = [
        sum(STATES.get(trial.state, "pruned") == state for trial in trials) for state in ("failed", "pruned")
    ]
    return {
        "chart": history(found, MEASURED[config.objective]),
        "failed": counts[0],
        "pruned": counts[1],
    }


def _importance(study: Study) -> dict[str, Any] | None:
    shares = importances(study)
    return {"chart": importance(shares)} if shares else None


def _slices(trials: list[FrozenTrial], space: tuple[Dimension, ...]) -> dict[str, Any]:
    charts = {}
    for one in space:
        points = [
            (
                trial.params[one.name],
                trial.value,
                f"trial {trial.number}: {shown(trial.params[one.name])}, {trial.value:.4f}",
            )
            for trial in trials
            if trial.state == DONE and trial.value is not None
        ]
        if points:
            charts[one.name] = slices(one.name, points, log=one.log, choices=one.choices)
    return charts


def _settings(described: dict[str, Any]) -> dict[str, Any]:
    left_out = ("kind", "command")
    rows = []
    for name, value in described.items():
        if name in left_out:
            continue
        nested = value if name in ("pretrain", "finetune") and isinstance(value, dict) else {"": value}
        rows += [
            [f"{name}.{key}" if key else name, value if isinstance(value, str) else json.dumps(value)]
            for key, value in nested.items()
            if value is not None
        ]
    return {
        "command": described.get("command") or "called from Python",
        "table": Table("All settings", ["setting", "value"], rows),
    }

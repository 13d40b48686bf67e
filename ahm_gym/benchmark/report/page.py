"""The report as one HTML page, with style, script, charts and pictures inside.

The markup is in `templates/`; this file prepares their content. Jinja escapes every text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ahm_gym.benchmark.report import charts, findings, tables
from ahm_gym.benchmark.report.galleries import mask_galleries, segmentation_choosers
from ahm_gym.benchmark.report.leaderboard import Cell, Pretraining
from ahm_gym.benchmark.report.markdown import METHOD, PRETRAINING, RANKING
from ahm_gym.benchmark.report.pictures import Pictures
from ahm_gym.benchmark.report.tables import Table
from ahm_gym.benchmark.rows import Rows, Task
from ahm_gym.pages.page import Section, render
from ahm_gym.pages.text import plural


@dataclass(frozen=True)
class TaskScores:
    """Everything about one task: tables, differences, and the score against labels and seconds."""

    name: str
    metric: str
    overview: Table
    numbers: list[Table]
    differences: dict[str, Markup]
    """Forest plots by data set."""
    by_labels: dict[str, Markup]
    """Charts of the score against labels, by data set."""
    by_seconds: dict[str, Markup]
    """Charts of the score against seconds, by data set."""


def page(
    rows: Rows,
    scores: list[Cell],
    pretraining: list[Pretraining],
    pictures: dict[tuple[str, str], Pictures],
) -> str:
    """Renders the page; sections without content are left out."""
    sections = [
        Section("findings", "What was found", _findings(rows, scores)),
        Section("scores", "Against random masking", _scores(rows, scores, pretraining)),
        Section("masks", "Masks during training", mask_galleries(rows, pictures)),
        Section("segmentations", "Segmentations", segmentation_choosers(rows, scores, pictures)),
        Section("pretraining", "Pretraining", _pretraining(rows, pretraining)),
        Section("settings", "Settings", _settings(rows)),
    ]
    return render(
        "ahm_gym.benchmark.report",
        "Mask policies compared",
        _lead(rows),
        sections,
        tone=tables.tone,
        script="page.js",
    )


def _lead(rows: Rows) -> str:
    seeds = rows.seeds
    said = [plural(len(rows.policies), "policy").replace("policys", "policies")]
    said.append(f"{plural(len(rows.data), 'data set')} ({', '.join(rows.data)})")
    said.append(f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}")
    if steps := rows.config.get("pretrain", {}).get("steps"):
        said.append(f"{steps} steps of pretraining")
    return " · ".join(said)


def _findings(rows: Rows, scores: list[Cell]) -> dict[str, Any]:
    tasks = []
    for task in rows.tasks:
        cells = [cell for cell in scores if cell.task == task]
        tasks.append(
            {
                "tally": findings.tally(task, cells),
                "doubts": findings.doubts(task, cells),
                "by_data": findings.by_data(cells),
                "comparisons": findings.sentences(cells),
            }
        )
    missing = findings.missing(rows)
    title = f"{findings.MISSING}: {plural(len(missing), 'line')}"
    return {"tasks": tasks, "missing": missing, "missing_title": title}


def _scores(rows: Rows, scores: list[Cell], pretraining: list[Pretraining]) -> dict[str, Any] | None:
    if not scores:
        return None
    return {
        "tasks": [_task(rows, task, scores, pretraining) for task in rows.tasks],
        "markers": {policy: charts.marker(policy, rows.policies, 7, 7) for policy in rows.policies},
        "ranking": RANKING,
        "method": METHOD,
    }


def _task(rows: Rows, task: Task, scores: list[Cell], pretraining: list[Pretraining]) -> TaskScores:
    cells = [cell for cell in scores if cell.task == task]
    per_data = {data: [cell for cell in cells if cell.data == data] for data in rows.data}
    of_kind = [cell for cell in scores if cell.task.kind == task.kind and cell.main]
    return TaskScores(
        name=task.name,
        metric=task.metric,
        overview=tables.overview(task, cells),
        numbers=[tables.scores(data, task, own) for data, own in per_data.items() if own],
        differences=_present((data, charts.forest(data, own)) for data, own in per_data.items()),
        by_labels=_present(
            (data, charts.by_labels(data, [c for c in of_kind if c.data == data], rows.policies))
            for data in rows.data
        ),
        by_seconds=_present(
            (data, charts.by_seconds(data, own, _seconds(data, pretraining), rows.policies))
            for data, own in per_data.items()
        ),
    )


def _seconds(data: str, pretraining: list[Pretraining]) -> dict[str, float]:
    return {p.policy: p.values["seconds"] for p in pretraining if p.data == data and "seconds" in p.values}


def _present(charts_by_data: Iterable[tuple[str, Markup]]) -> dict[str, Markup]:
    return {data: chart for data, chart in charts_by_data if chart}


def _pretraining(rows: Rows, cells: list[Pretraining]) -> dict[str, Any] | None:
    found = [tables.pretraining(data, cells) for data in rows.data]
    shown = [table for table in found if table.rows]
    return {"note": PRETRAINING, "tables": shown} if shown else None


def _settings(rows: Rows) -> dict[str, Any] | None:
    """The command, the settings, and the machine and commits that the rows come from."""
    left_out = ("kind", "machine", "command", "patients")
    settings = {name: value for name, value in rows.config.items() if name not in left_out}
    machine = {name: value for name, value in (rows.config.get("machine") or {}).items() if value is not None}
    every = [*rows.pretraining.values(), *rows.scores.values()]
    for name in ("commit", "hardware"):
        if found := sorted({value for row in every if (value := getattr(row, name))}):
            machine[name] = "; ".join(found)
    command = rows.config.get("command")
    if not (command or settings or machine):
        return None
    return {"command": command, "settings": _texts(settings), "machine": _texts(machine)}


def _texts(entries: dict[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in entries.items()}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)

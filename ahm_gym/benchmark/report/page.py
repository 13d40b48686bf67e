"""The report as one HTML page: style, script, charts and pictures stand inside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from ahm_gym.benchmark.report import charts, findings, tables
from ahm_gym.benchmark.report.galleries import mask_galleries, segmentation_galleries
from ahm_gym.benchmark.report.leaderboard import Cell, Pretraining
from ahm_gym.benchmark.report.markdown import METHOD, PRETRAINING, RANKING
from ahm_gym.benchmark.report.pictures import Pictures
from ahm_gym.benchmark.report.text import plural
from ahm_gym.benchmark.rows import Rows, Task


def page(
    rows: Rows,
    scores: list[Cell],
    pretraining: list[Pretraining],
    pictures: dict[tuple[str, str], Pictures],
) -> str:
    """The whole page; parts without anything to show are left out."""
    sections = {
        "findings": ("What was found", _findings(rows, scores)),
        "scores": ("Against random masking", _scores(rows, scores, pretraining)),
        "masks": ("Masks during training", mask_galleries(rows, pictures)),
        "segmentations": ("Segmentations", segmentation_galleries(rows, scores, pictures)),
        "pretraining": ("Pretraining", _pretraining(rows, pretraining)),
        "settings": ("Settings", _settings(rows)),
    }
    shown = {name: part for name, part in sections.items() if part[1]}
    here = files("ahm_gym.benchmark.report")
    return Template((here / "page.html").read_text("utf-8")).substitute(
        style=(here / "page.css").read_text("utf-8"),
        script=(here / "page.js").read_text("utf-8"),
        lead=escape(_lead(rows)),
        links="".join(
            f'<li><a href="#{name}">{escape(title)}</a></li>' for name, (title, _) in shown.items()
        ),
        sections="\n".join(
            f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>'
            f"\n{content}\n</section>"
            for name, (title, content) in shown.items()
        ),
    )


def _lead(rows: Rows) -> str:
    seeds = rows.seeds
    said = [plural(len(rows.policies), "policy").replace("policys", "policies")]
    said.append(f"{plural(len(rows.data), 'data set')} ({', '.join(rows.data)})")
    said.append(f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}")
    if steps := rows.config.get("pretrain_steps"):
        said.append(f"{steps} steps of pretraining")
    return " · ".join(said)


def _findings(rows: Rows, scores: list[Cell]) -> str:
    parts = []
    for i, task in enumerate(rows.tasks):
        cells = [cell for cell in scores if cell.task == task]
        every = _details("Each comparison with its interval", _list(findings.sentences(cells)))
        parts.append(
            _details(findings.tally(task, cells), _list(findings.by_data(cells)) + every, opened=i == 0)
        )
    if gaps := findings.missing(rows):
        parts.append(_details(f"{findings.MISSING}: {plural(len(gaps), 'line')}", _list(gaps)))
    return f'<div class="findings">{"".join(parts)}</div>'


def _scores(rows: Rows, scores: list[Cell], pretraining: list[Pretraining]) -> str:
    if not scores:
        return ""
    options = "".join(
        f'<option value="{i}">{escape(task.name)}</option>' for i, task in enumerate(rows.tasks)
    )
    blocks = [
        f'<div class="toolbar"><label for="view">Scores of</label> <select id="view">{options}</select></div>'
    ]
    for i, task in enumerate(rows.tasks):
        cells = [cell for cell in scores if cell.task == task]
        content = _task(
            rows, task, cells, [cell for cell in scores if cell.task.kind == task.kind], pretraining
        )
        blocks.append(f'<div class="view" data-view="{i}">{content}</div>')
    return "\n".join(blocks)


def _task(
    rows: Rows, task: Task, cells: list[Cell], of_kind: list[Cell], pretraining: list[Pretraining]
) -> str:
    """Everything about one task: tables, differences, and Dice against labels and seconds."""
    per_data = {data: [cell for cell in cells if cell.data == data] for data in rows.data}
    parts = [tables.overview(task, cells).html()]
    parts.append(f'<p class="note">{RANKING}</p>')
    differences = _panels((data, charts.forest(data, own)) for data, own in per_data.items())
    if differences:
        parts.append(
            f"<h3>Difference to random in {task.metric}</h3>"
            '<p class="note">Mean over the same seeds and cases, with a 95 % interval for new seeds and new cases. '
            "Filled: a difference was seen. Each panel has its own scale; an arrow points beyond it. "
            f"Hollow and dashed: one seed or one patient, and no verdict.</p>{differences}"
        )
    numbers = "".join(tables.scores(data, task, own).html() for data, own in per_data.items() if own)
    parts.append(_details("All numbers", f'<p class="note">{escape(METHOD)}</p>{numbers}'))
    key = charts.legend(rows.policies)
    labels = _panels((data, _by_labels(data, of_kind, rows.policies)) for data in rows.data)
    if labels:
        parts.append(f"<h3>{_title(task)} against the number of labels</h3>{key}{labels}")
    seconds = _panels(
        (data, charts.by_seconds(data, own, _seconds(data, pretraining), rows.policies))
        for data, own in per_data.items()
    )
    if seconds:
        parts.append(
            f"<h3>{_title(task)} against the seconds of pretraining</h3>"
            f'<p class="note">The line through a point is ± a standard deviation over seeds.</p>{key}{seconds}'
        )
    return "\n".join(parts)


def _by_labels(data: str, cells: list[Cell], policies: list[str]) -> str:
    return charts.by_labels(data, [c for c in cells if c.data == data and "dice" in c.measures], policies)


def _title(task: Task) -> str:
    return task.metric[0].upper() + task.metric[1:]


def _seconds(data: str, pretraining: list[Pretraining]) -> dict[str, float]:
    return {p.policy: p.values["seconds"] for p in pretraining if p.data == data and "seconds" in p.values}


def _panels(charts_by_data: Iterable[tuple[str, str]]) -> str:
    panels = [
        f"<figure><figcaption>{escape(data)}</figcaption>{svg}</figure>"
        for data, svg in charts_by_data
        if svg
    ]
    return f'<div class="panels">{"".join(panels)}</div>' if panels else ""


def _pretraining(rows: Rows, cells: list[Pretraining]) -> str:
    found = [tables.pretraining(data, cells) for data in rows.data]
    shown = [table.html() for table in found if table.rows]
    return "\n".join([f'<p class="note">{escape(PRETRAINING)}</p>', *shown]) if shown else ""


def _settings(rows: Rows) -> str:
    """The command, the settings, and which machine and which commit the rows come from."""
    left_out = ("kind", "machine", "command", "patients")
    settings = {name: value for name, value in rows.config.items() if name not in left_out}
    machine = {name: value for name, value in (rows.config.get("machine") or {}).items() if value is not None}
    every = [*rows.pretraining.values(), *rows.scores.values()]
    for name in ("commit", "hardware"):
        if found := sorted({value for row in every if (value := getattr(row, name))}):
            machine[name] = "; ".join(found)
    blocks = []
    if command := rows.config.get("command"):
        blocks.append(f'<h3>Command</h3><pre tabindex="0">{escape(str(command))}</pre>')
    for title, entries in (("Settings", settings), ("Machine", machine)):
        if entries:
            blocks.append(f"<h3>{title}</h3><dl>{''.join(_entry(*entry) for entry in entries.items())}</dl>")
    return "".join(blocks)


def _entry(name: str, value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{key} {item}" for key, item in value.items())
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text)}</dd></div>"


def _list(lines: list[str]) -> str:
    return f'<ul class="sentences">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def _details(summary: str, content: str, *, opened: bool = False) -> str:
    return f"<details{' open' * opened}><summary>{escape(summary)}</summary>{content}</details>"

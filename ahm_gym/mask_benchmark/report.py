"""The report of MaskBench: tables as Markdown and CSV, and an HTML page that needs no network."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from markupsafe import Markup

from ahm_gym.benchmark.report.charts import marker
from ahm_gym.benchmark.report.leaderboard import csv_field
from ahm_gym.benchmark.report.tables import Table
from ahm_gym.errors import InputError
from ahm_gym.mask_benchmark.curves import learning_curves
from ahm_gym.mask_benchmark.rows import MaskRow, read_mask_rows
from ahm_gym.mask_benchmark.statistics import (
    Improvement,
    Mean,
    Task,
    by_task,
    improvement,
    mean_of,
    mean_score,
)
from ahm_gym.pages.page import Section, render
from ahm_gym.pages.text import NOTHING, decimals, duration, markdown_line, plural
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.storage import write_atomically

METHOD: str = (
    "Score 0 is random masks, 1 an oracle that measures what each patch pays under many masks of the same image, first "
    "random and then near its best guess. A policy can beat it a little, because its search has an end. All are "
    "scored on the same held-out images with the same random numbers, without exploration. The interval is a 95 % t "
    "interval for new seeds of the policy, on these autoencoders and images; a fixed rule has the same score with "
    "every seed. P is the probability of improvement: the share of pairs of seeds in which the row scores "
    "higher, averaged over autoencoders, with a 95 % bootstrap interval over seeds."
)
"""How to read the tables."""


@dataclass(frozen=True)
class Standing:
    """One policy with one reward."""

    policy: str
    tasks: dict[Task, dict[int, MaskRow]]
    mean: Mean | None
    """Over all tasks; None if no seed has them all."""

    @property
    def rank(self) -> tuple[bool, float]:
        return self.mean is None, -(self.mean.mean if self.mean else 0.0)

    @property
    def learns(self) -> bool:
        return any(row.learns for rows in self.tasks.values() for row in rows.values())

    @property
    def seconds(self) -> float:
        found = [row.seconds for rows in self.tasks.values() for row in rows.values()]
        return sum(found) / len(found)


def write_mask_report(out: Path, failed: Sequence[str] = ()) -> Path:
    """Writes report.html, maskbench.md, maskbench.csv and improvement.csv; returns the page.

    Args:
        out: folder with `rows.jsonl` and `config.json`.
        failed: jobs that failed in this session, with the reason.

    Raises:
        InputError: if the folder holds no finished row, or a line is not a row.
    """
    rows = read_mask_rows(out)
    if not rows:
        raise InputError(
            f"{out / 'rows.jsonl'} holds no finished row: run maskbench first, or give its folder."
        )
    config = read_object(out / "config.json") if (out / "config.json").exists() else {}
    standings = {reward: standings_of(rows, reward) for reward in sorted({row.reward for row in rows})}
    write_atomically(out / "maskbench.csv", scores_csv(standings))
    write_atomically(out / "improvement.csv", improvement_csv(standings))
    write_atomically(out / "maskbench.md", markdown(standings, config, failed))
    write_atomically(out / "report.html", page(rows, standings, config, failed))
    return out / "report.html"


def standings_of(rows: Sequence[MaskRow], reward: str) -> list[Standing]:
    """The policies with one reward, the best mean score first."""
    names = dict.fromkeys(row.policy for row in rows if row.reward == reward)
    found = [(name, by_task(rows, reward, name)) for name in names]
    most = max(len(tasks) for _, tasks in found)
    # A mean over fewer tasks cannot be compared with the others.
    return sorted(
        (Standing(name, tasks, mean_score(tasks) if len(tasks) == most else None) for name, tasks in found),
        key=lambda one: (*one.rank, one.policy),
    )


def read_scores(out: Path) -> dict[str, dict[str, float]]:
    """Reward -> policy -> mean score, the best policy first, of those that have been scored on every autoencoder."""
    rows = read_mask_rows(out)
    return {
        reward: {one.policy: one.mean.mean for one in standings_of(rows, reward) if one.mean}
        for reward in sorted({row.reward for row in rows})
    }


def scores_table(reward: str, standings: Sequence[Standing]) -> Table:
    """Every policy: its mean score, that on each autoencoder, and the probability that it beats random masks."""
    tasks = sorted({task for one in standings for task in one.tasks})
    several = len({data for data, _ in tasks}) > 1
    names = [f"{data} {percent} %" if several else f"{percent} %" for data, percent in tasks]
    reference = next((one for one in standings if one.policy == "random"), None)
    columns = ["policy", "score", *names, "P(> random)", "P(> next)", "seeds", "time per run"]
    lines = []
    for i, one in enumerate(standings):
        after = standings[i + 1] if i + 1 < len(standings) else None
        per_task = [_mean_of_task(one, task) for task in tasks]
        versus = [
            shown_improvement(improvement(one.tasks, other.tasks)) if other and other is not one else NOTHING
            for other in (reference, after)
        ]
        seeds = str(one.mean.num_seeds) if one.mean else NOTHING
        learner = one.policy if one.learns else f"{one.policy} (fixed)"
        lines.append(
            [
                learner,
                shown(one.mean),
                *(decimals(mean, 2) for mean in per_task),
                *versus,
                seeds,
                duration(one.seconds),
            ]
        )
    return Table(f"Score with reward {reward}", columns, lines)


def pairs_table(reward: str, standings: Sequence[Standing]) -> Table:
    """The probability that the policy of the row scores higher than that of the column."""
    lines = [[one.policy, *(_pair(one, other) for other in standings)] for one in standings]
    caption = f"Probability that the row scores higher than the column, reward {reward}"
    return Table(caption, ["policy", *(one.policy for one in standings)], lines)


def _pair(one: Standing, other: Standing) -> str:
    return NOTHING if one is other else shown_improvement(improvement(one.tasks, other.tasks))


def _mean_of_task(one: Standing, task: Task) -> float | None:
    rows = one.tasks.get(task)
    return mean_of([row.score for row in rows.values()]).mean if rows else None


def shown(mean: Mean | None) -> str:
    """A mean with its interval."""
    return NOTHING if mean is None else _with_interval(mean.mean, mean.interval)


def shown_improvement(found: Improvement | None) -> str:
    """A probability with its interval."""
    return NOTHING if found is None else _with_interval(found.probability, found.interval)


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    bounds = "" if interval is None else f" [{', '.join(decimals(bound, 2) for bound in interval)}]"
    return decimals(value, 2) + bounds


def scores_csv(standings: dict[str, list[Standing]]) -> str:
    """One line for each reward, data set, percentage and policy: the mean over seeds, its interval and the payment."""
    lines = []
    for reward, found in standings.items():
        for one in found:
            for (data, percent), rows in one.tasks.items():
                mean = mean_of([row.score for row in rows.values()])
                low, high = mean.interval or (None, None)
                last = next(reversed(rows.values()))
                lines.append(
                    {
                        "reward": reward, "data": data, "percent": percent, "policy": one.policy, "learns": one.learns,
                        "seeds": mean.num_seeds, "score": mean.mean, "low": low, "high": high,
                        "paid_random": last.paid_random, "paid_oracle": last.paid_oracle, "seconds": one.seconds,
                    }
                )  # fmt: skip
    return _csv(lines)


def improvement_csv(standings: dict[str, list[Standing]]) -> str:
    """One line for each reward and ordered pair of policies."""
    lines = []
    for reward, found in standings.items():
        for one in found:
            for other in found:
                pair = None if one is other else improvement(one.tasks, other.tasks)
                if pair is not None:
                    low, high = pair.interval or (None, None)
                    lines.append(
                        {
                            "reward": reward, "policy": one.policy, "than": other.policy,
                            "probability": pair.probability, "low": low, "high": high,
                        }
                    )  # fmt: skip
    return _csv(lines)


def _csv(lines: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: csv_field(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def markdown(standings: dict[str, list[Standing]], config: dict[str, Any], failed: Sequence[str]) -> str:
    """The tables, how to read them, what failed, and the command."""
    blocks = ["# MaskBench", METHOD]
    blocks += [scores_table(reward, found).markdown() for reward, found in standings.items()]
    if failed:
        blocks += ["## Failed", "\n".join(f"- {markdown_line(line)}" for line in failed)]
    if command := config.get("command"):
        blocks += ["## Command", indent(str(command), "    ")]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def page(
    rows: Sequence[MaskRow],
    standings: dict[str, list[Standing]],
    config: dict[str, Any],
    failed: Sequence[str],
) -> str:
    """The page with tables, learning curves and settings."""
    policies = sorted({row.policy for row in rows}, key=lambda name: (name != "random", name))
    tables = [scores_table(reward, found) for reward, found in standings.items()]
    sections = [
        Section("scores", "Scores", {"tables": tables, "method": METHOD, "failed": list(failed)}),
        Section("curves", "Learning curves", {
            "legend": {name: Markup(marker(name, policies, 7, 7)) for name in policies},
            "charts": {reward: learning_curves(rows, reward, policies) for reward in standings},
        }),
        Section("improvement", "Every pair", [pairs_table(*item) for item in standings.items()]),
        Section("settings", "Settings", _settings(rows, config)),
    ]  # fmt: skip
    data = sorted({row.data for row in rows})
    said = [
        f"{len(policies)} {'policy' if len(policies) == 1 else 'policies'}",
        f"{plural(len(data), 'data set')} ({', '.join(data)})",
        plural(len({row.seed for row in rows}), "seed"),
    ]
    if steps := config.get("steps"):
        said.append(f"{steps} updates of an agent")
    return render("ahm_gym.mask_benchmark", "MaskBench", " · ".join(said), sections)


def _settings(rows: Sequence[MaskRow], config: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in config.items() if name not in ("kind", "machine", "command")}
    machine = dict(config.get("machine") or {})
    for name in ("commit", "hardware"):
        machine[name] = "; ".join(sorted({getattr(row, name) for row in rows}))
    return {"command": config.get("command"), "settings": _texts(settings), "machine": _texts(machine)}


def _texts(entries: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in entries.items()}

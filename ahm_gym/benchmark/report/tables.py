"""Tables of the report, for both Markdown and HTML."""

from __future__ import annotations

from ahm_gym.benchmark.report.leaderboard import HEALTH, Cell, Measure, Pretraining
from ahm_gym.benchmark.rows import Task
from ahm_gym.benchmark.statistics import Interval
from ahm_gym.pages import page
from ahm_gym.pages.text import (
    NOTHING,
    decimals,
    duration,
    markdown_line,
    p_value,
    percent,
    plural,
    signed,
)

MARKS: dict[str, str] = {"better": "▲", "worse": "▼"}
"""Signs by the first word of a verdict."""


class Table(page.Table):
    """A table that can also be written in Markdown."""

    def markdown(self) -> str:
        """The table in Markdown, with the caption above."""
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        cells = (
            "| " + " | ".join(markdown_line(entry).replace("|", "\\|") for entry in line) + " |"
            for line in lines
        )
        return f"**{markdown_line(self.caption)}**\n\n" + "\n".join(cells) + "\n"


def overview(task: Task, cells: list[Cell]) -> Table:
    """Mean score of every policy on every data set, in the order of `cells`, which are those of the task."""
    data = sorted({cell.data for cell in cells})
    most = max((len(cell.seeds) for cell in cells), default=0)
    rows = []
    for policy in dict.fromkeys(cell.policy for cell in cells):
        own = {cell.data: cell for cell in cells if cell.policy == policy}
        scores = [_overview_entry(own[name], most) if name in own else NOTHING for name in data]
        rank = decimals(next(iter(own.values())).mean_rank, 2)
        rows.append(
            [policy, *scores, rank if len(own) == len(data) else f"{rank} ({len(own)} of {len(data)})"]
        )
    return Table(f"Mean {task.metric}, {task.name}", ["policy", *data, "mean rank"], rows)


def scores(data: str, task: Task, cells: list[Cell]) -> Table:
    """The policies on one data set in one task, the best first, with differences to the reference."""
    found = [(cell.main.mean, cell) for cell in cells if cell.data == data and cell.main]
    own = [cell for _, cell in sorted(found, key=lambda pair: -pair[0])]
    unit = next((cell.hd95_unit for cell in own if cell.hd95_unit), None)
    titles = {
        "dice": "Dice",
        "iou": "IoU",
        "hd95": f"HD95 ({unit})" if unit else "HD95",
        "log_loss": "log-loss",
    }
    optional = [name for name in titles if name != task.score and any(name in cell.measures for cell in own)]
    columns = ["policy", task.metric, "seeds", "difference", "95 % interval", "t interval over seeds"]
    columns += ["wins", "corrected p", "verdict", "IQM"]
    for name in optional:
        columns += [titles[name], f"{titles[name].split()[0]} difference"]
    rows = [_scores_row(cell, optional) for cell in own]
    split, num_cases = (own[0].split, max(cell.num_cases for cell in own)) if own else ("", 0)
    return Table(f"{data}, {task.name}: {split} split, {plural(num_cases, 'case')}", columns, rows)


def pretraining(data: str, cells: list[Pretraining]) -> Table:
    """The cost of pretraining on one data set, and the health of the masks."""
    rows = []
    for cell in cells:
        if cell.data == data:
            value = cell.values.get
            ratio = NOTHING if cell.seconds_ratio is None else f"{cell.seconds_ratio:.2f} \u00d7"
            costs = [duration(value("seconds")), ratio, decimals(value("images_per_second"), 0)]
            costs += [percent(value("limit_share")), decimals(value("peak_memory_mib"), 0)]
            health = [decimals(value(name), 1 if name == "psnr" else 3) for name in HEALTH]
            seeds = ", ".join(map(str, cell.seeds))
            rows.append([cell.policy, seeds, *costs, *health])
    costs = ["time", "to random", "images/s", "of the limit", "peak MiB"]
    health = ["PSNR (dB)", *(name.replace("_", " ") for name in HEALTH[1:])]
    return Table(
        f"{data}: pretraining and the health of the masks", ["policy", "seeds", *costs, *health], rows
    )


def interval_text(interval: Interval | None, places: int = 3) -> str:
    """The interval in brackets; a dash for None."""
    return f"[{signed(interval[0], places)}, {signed(interval[1], places)}]" if interval else NOTHING


def _overview_entry(cell: Cell, most_seeds: int) -> str:
    measure = cell.main
    if measure is None:
        return NOTHING
    mark = MARKS.get(measure.verdict.split(" ")[0], "")
    seeds = "" if len(cell.seeds) == most_seeds else f"({len(cell.seeds)} of {most_seeds} seeds)"
    return " ".join(part for part in (decimals(measure.mean), mark, seeds) if part)


def _scores_row(cell: Cell, optional: list[str]) -> list[str]:
    main = cell.main
    assert main is not None, "only cells with a score have a row"
    one = main.comparison
    spread = "" if main.deviation is None else f" ± {decimals(main.deviation)}"
    row = [
        cell.policy,
        decimals(main.mean) + spread,
        ", ".join(map(str, cell.seeds)),
        _difference(main, 4),
        interval_text(one and one.interval, 4),
        interval_text(one and one.seed_interval, 4),
        percent(one and one.win_probability),
        p_value(main.corrected_p),
        main.verdict or NOTHING,
        decimals(main.iqm),
    ]
    for name in optional:
        measure = cell.measures.get(name)
        places = 2 if name == "hd95" else 3
        row += [decimals(measure and measure.mean, places), _difference(measure, places)]
    return row


def _difference(measure: Measure | None, places: int) -> str:
    return signed(measure.comparison.difference if measure and measure.comparison else None, places)


def tone(entry: str) -> str:
    """The CSS class of an entry that shows a verdict, `better` or `worse`; empty for any other entry."""
    for word, mark in MARKS.items():
        if entry.startswith(f"{word} than") or entry.endswith(mark):
            return word
    return ""

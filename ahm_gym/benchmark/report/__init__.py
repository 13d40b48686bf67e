"""The report of a benchmark: a leaderboard as CSV and Markdown, and an HTML page that needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ahm_gym.benchmark.rows import read_rows
from ahm_gym.runs.storage import write_atomically

__all__ = ["Report", "write_report"]


@dataclass(frozen=True)
class Report:
    """The files of a report."""

    html: Path
    markdown: Path
    csv: Path


def write_report(out: Path) -> Report:
    """Writes report.html, leaderboard.md and leaderboard.csv into the folder of a benchmark.

    The report of a running benchmark has all finished rows and lists what is missing.

    Args:
        out: folder with `rows.jsonl` and, optionally, `config.json` and pictures.

    Raises:
        InputError: if the folder holds no finished row, or a line is not a row.
    """
    # Imported here: the start of a benchmark and its processes need neither Jinja nor the statistics.
    from ahm_gym.benchmark.report.leaderboard import leaderboard_csv, pretraining_cells, score_cells
    from ahm_gym.benchmark.report.markdown import leaderboard_markdown
    from ahm_gym.benchmark.report.page import page
    from ahm_gym.benchmark.report.pictures import read_pictures

    rows = read_rows(out)
    scores, pretraining = score_cells(rows), pretraining_cells(rows)
    pictures = read_pictures(out, [(data, policy) for data in rows.data for policy in rows.policies])
    report = Report(html=out / "report.html", markdown=out / "leaderboard.md", csv=out / "leaderboard.csv")
    write_atomically(report.csv, leaderboard_csv(scores, pretraining))
    write_atomically(report.markdown, leaderboard_markdown(rows, scores, pretraining))
    write_atomically(report.html, page(rows, scores, pretraining, pictures))
    return report

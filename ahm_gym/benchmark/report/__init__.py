"""The report of a benchmark: a leaderboard as CSV and Markdown, and one page that needs no network."""

from __future__ import annotations

from pathlib import Path

from ahm_gym.benchmark.report.leaderboard import leaderboard_csv, pretraining_cells, score_cells
from ahm_gym.benchmark.report.markdown import leaderboard_markdown
from ahm_gym.benchmark.report.page import page
from ahm_gym.benchmark.report.pictures import read_pictures
from ahm_gym.benchmark.rows import read_rows
from ahm_gym.runs.storage import write_atomically

__all__ = ["write_report"]


def write_report(out: Path) -> None:
    """Writes leaderboard.csv, leaderboard.md and report.html beside the rows and pictures in `out`.

    A benchmark that still runs is reported as far as it is, with what is missing.

    Raises:
        InputError: where `out` holds no finished row.
    """
    rows = read_rows(out)
    scores, pretraining = score_cells(rows), pretraining_cells(rows)
    pictures = read_pictures(out, [(data, policy) for data in rows.data for policy in rows.policies])
    write_atomically(out / "leaderboard.csv", leaderboard_csv(scores, pretraining))
    write_atomically(out / "leaderboard.md", leaderboard_markdown(rows, scores, pretraining))
    write_atomically(out / "report.html", page(rows, scores, pretraining, pictures))

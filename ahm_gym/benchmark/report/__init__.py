"""The report of a benchmark: a leaderboard as CSV and Markdown, and one page that needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ahm_gym.benchmark.rows import read_rows
from ahm_gym.runs.storage import write_atomically

__all__ = ["Report", "write_report"]


@dataclass(frozen=True)
class Report:
    """Where the parts of a report were written."""

    html: Path
    markdown: Path
    csv: Path


def write_report(out: Path) -> Report:
    """Writes report.html, leaderboard.md and leaderboard.csv into a benchmark's folder.

    A benchmark that is still running is reported as far as it is, with what is missing.

    Args:
        out: the folder, with `rows.jsonl`, and where there are any `config.json` and pictures.

    Raises:
        InputError: where the folder holds no finished row, or a line is not a row.
    """
    # A benchmark that begins, and each of its processes, needs neither Jinja nor the statistics.
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

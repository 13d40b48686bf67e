"""The leaderboard as Markdown."""

from __future__ import annotations

from textwrap import indent

from ahm_gym.benchmark.report import findings, tables
from ahm_gym.benchmark.report.leaderboard import Cell, Pretraining
from ahm_gym.benchmark.rows import Rows
from ahm_gym.pages.text import markdown_line

METHOD = (
    "A difference is the policy's score minus random's on the same seed and case: the mean over classes of the mean "
    "over seeds and cases. In differences of Dice or IoU, a structure that a case does not have scores 1 if none was "
    "found; means leave it out, and probes only count structures that are there. HD95 covers the cases in which "
    "both policies have a distance: where both found the structure, unless the benchmark was run with "
    "--finetune.missed-distance diagonal; missed structures show in Dice. The 95 % interval and the p value of a "
    "difference are for new seeds and new cases: both are resampled, with the cases of a patient together, and with "
    "one seed or one patient there is no verdict. The t interval is over seeds alone, on these cases. Wins is the "
    "share of pairs of seed and case in which the policy is better; a tie counts as half. The corrected p controls "
    "the false discovery rate over all data sets and policies of one kind of score and number of labels; the verdict "
    "uses a threshold of 0.05. IQM is the mean of the middle half of all scores. ± is a standard deviation over seeds."
)
"""How to read the scores."""

RANKING = (
    "▲ better than random, ▼ worse than random, by the corrected p. Policies are ranked by their difference to random "
    "on the seeds that both have."
)
"""How to read the tables by mean rank."""

PRETRAINING = (
    "The time of pretraining is that of the updates, without evaluation and saving. “Of the limit” is the rate of the "
    "autoencoder's matrix products, convolutions and attention, as a share of the rate of one large matrix product on "
    "the same device, in bfloat16 on a GPU and float32 on a CPU. The other columns are about masks that follow only "
    "the policy's scores, on validation images at the end of training: the Spearman correlation of the scores with the "
    "true patch loss; excess, the loss above that of random masks, divided by the same for the hardest patches; "
    "overlap, the share of masked patches that two images have in common; entropy, 1 if masks differ from image to "
    "image and 0 if all are the same; and the share of bright foreground patches that is masked."
)
"""How to read the table of pretraining."""


def leaderboard_markdown(rows: Rows, scores: list[Cell], pretraining: list[Pretraining]) -> str:
    """The findings, a summary by mean rank, and one table for each data set and task."""
    by_task = {task: [cell for cell in scores if cell.task == task] for task in rows.tasks}
    blocks = ["# Leaderboard", "## What was found"]
    for task, cells in by_task.items():
        told = [*findings.doubts(task, cells), *findings.by_data(cells)]
        blocks += [findings.tally(task, cells), _bullets(told)]
    if gaps := findings.missing(rows):
        blocks += [f"## {findings.MISSING}", _bullets(gaps)]
    blocks += ["## By mean rank", RANKING]
    blocks += [tables.overview(task, cells).markdown() for task, cells in by_task.items()]
    blocks += ["## Every number", METHOD, PRETRAINING]
    for data in rows.data:
        blocks.append(f"### {markdown_line(data)}")
        found = (tables.scores(data, task, cells) for task, cells in by_task.items())
        blocks += [table.markdown() for table in found if table.rows]
        blocks.append(tables.pretraining(data, pretraining).markdown())
    if command := rows.config.get("command"):
        blocks += ["## Command", indent(str(command), "    ")]
    return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {markdown_line(line)}" for line in lines)

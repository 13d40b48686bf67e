"""Validation during fine-tuning: the Dice on val, the best segmenter so far, and their curve."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ahm_gym.data import ImageDataset, Sample
from ahm_gym.data.ignored import in_structure, is_counted
from ahm_gym.data.sample import Split
from ahm_gym.errors import InputError, say
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.schema import read_object
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.evaluation import group_cases
from ahm_gym.segmentation.segmenter import Segmenter, load_segmenter, predict, save_segmenter

BEST: str = "best"
"""Folder of the best segmenter in a run folder, beside `segmenter`, the last one."""
SCORE_FILE: str = "validation.json"
"""File in that folder with the step and the Dice of the segmenter."""


def validation_interval(config: FinetuneConfig, dataset: ImageDataset) -> int:
    """Number of updates between two validations; 0 for none.

    Raises:
        InputError: if validation was asked for, and no val image has a label.
    """
    if dataset.indices("val", labelled=True):
        if config.select == "best":
            _check_classes(dataset)
        asked = config.validate_every
        return max(1, round(config.steps / 10)) if asked is None else asked
    if config.validate_every or config.select == "best":
        asked_for = f"validate_every={config.validate_every}" if config.validate_every else "select=best"
        raise InputError(
            f"`{asked_for}` needs labelled val images, and {dataset.name} has none: add some, choose a `fold`, or "
            "leave it out."
        )
    return 0


def _check_classes(dataset: ImageDataset) -> None:
    """Raises InputError if the val labels hold only background, so that no segmenter is the best."""
    labels = (dataset.sample(index).label for index in dataset.indices("val", labelled=True))
    if not any(label is not None and bool(in_structure(label).any()) for label in labels):
        raise InputError(
            f"`select=best` needs val labels with a class, and those of {dataset.name} hold only background: leave it "
            "out, or choose a `fold`."
        )


def dice_on(
    segmenter: Segmenter, dataset: ImageDataset, split: Split, *, native_resolution: bool
) -> float | None:
    """The mean Dice over cases and classes, 0 to 1, as in `results.json` but without the other scores.

    None if no label of the split has a class. The segmenter is left in evaluation mode; no random number is drawn.
    """
    segmenter.eval()

    def found(sample: Sample, size: tuple[int, ...]) -> Tensor:
        image = dataset.normalise(sample.image)
        return predict(segmenter, image, size, native_resolution=native_resolution)

    return dice_of(found, dataset, group_cases(dataset, split).values())


def dice_of(
    find: Callable[[Sample, tuple[int, ...]], Tensor], dataset: ImageDataset, cases: Iterable[Sequence[int]]
) -> float | None:
    """The mean Dice of any way to segment, over cases and then over classes; None if no label has a class.

    Args:
        find: from a sample, and the length of each axis of its label, to the class of every pixel.
        dataset: dataset of the images.
        cases: the indices of the labelled images of each case, at least one.
    """
    rows, present = [], torch.zeros(dataset.num_classes, dtype=torch.bool)
    for members in cases:
        counts = torch.zeros(3, dataset.num_classes)  # found and true, found, true
        for index in members:
            sample = dataset.sample(index)
            assert sample.label is not None, "only labelled samples are in cases"
            size = tuple(sample.label.shape)
            counts += _counts(find(sample, size), sample.label, dataset.num_classes)
        present |= counts[2] > 0
        rows.append(2 * counts[0] / (counts[1] + counts[2]))  # NaN where neither has the class
    table = torch.stack(rows)[:, present]
    means = table[:, 1:].nanmean(dim=0) if present[0] else table.nanmean(dim=0)
    return float(means.mean()) if len(means) else None


def _counts(found: Tensor, true: Tensor, num_classes: int) -> Float[Tensor, "3 K"]:
    counted = is_counted(true)
    found, true = found[counted], true[counted]
    areas = [found[found == true], found, true]
    return torch.stack([torch.bincount(area.flatten(), minlength=num_classes) for area in areas]).float()


class BestSegmenter:
    """The segmenter of the highest Dice on val so far, in the folder `best` of a run.

    The folder is the only record of it: a resumed run repeats the updates since its checkpoint, finds the same scores
    and keeps the first of the highest ones.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run: RunFolder = run
        found = read_score(run.path)
        self.dice: float = -1.0 if found is None else found["dice"]

    def offer(self, segmenter: Segmenter, step: int, dice: float | None, dataset: ImageDataset) -> None:
        """Keeps this segmenter if its Dice is higher than that of all before it."""
        if dice is None or dice <= self.dice:
            return
        self.dice = dice

        def write(folder: Path) -> None:
            save_segmenter(segmenter, folder, mean=dataset.mean, std=dataset.std)
            (folder / SCORE_FILE).write_text(json.dumps({"step": step, "dice": dice}) + "\n")

        self.run.replace(BEST, write)


def read_score(run: Path) -> dict[str, Any] | None:
    """The step and the val Dice of a run's best segmenter; None if it has none."""
    path = run / BEST / SCORE_FILE
    return read_object(path) if path.is_file() else None


def segmenter_folder(run: Path, select: str) -> Path:
    """The folder of the last or the best segmenter of a run.

    Raises:
        InputError: if the run has kept no best one.
    """
    if select == "last":
        return run / "segmenter"
    if read_score(run) is None:
        raise InputError(f"{run} has no best segmenter, because it was not validated: choose `select=last`.")
    return run / BEST


def chosen_segmenter(last: Segmenter, run: Path, select: str, split: Split) -> Segmenter:
    """The last segmenter of a run, or its best one, which is loaded; scores on the split it was chosen by are noted."""
    if select == "last":
        return last
    if split == "val":
        say(
            "note: the best segmenter was chosen on val and is scored on val: its scores are too high.",
        )
    return load_segmenter(segmenter_folder(run, select)).to(last.device)


def draw_curve(rows: list[dict[str, Any]], best: dict[str, Any] | None, select: str) -> Figure:
    """Plots the training loss and the Dice on val over the updates, with a caption.

    Args:
        rows: the metrics of the run.
        best: what `read_score` returned.
        select: which segmenter was scored.
    """
    figure = Figure(figsize=(9, 3.9), dpi=110)
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, 2), ("loss", "val/dice"), strict=True):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=1.3, marker="." if name == "val/dice" else None)
        axis.set_title({"loss": "training loss", "val/dice": "Dice on val"}[name], fontsize=10)
        axis.set_xlabel("update", fontsize=8)
        axis.grid(alpha=0.3)
        if name == "val/dice" and best is not None:
            axis.axvline(best["step"], color="0.5", linestyle="--", linewidth=1)
    figure.text(0.5, 0.02, caption_of(best, select), ha="center", fontsize=8)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.2, top=0.92, wspace=0.18)
    return figure


def caption_of(best: dict[str, Any] | None, select: str) -> str:
    """What the curve shows, in a sentence or two."""
    loss = "Left: Dice plus cross-entropy of the training batches since the last point."
    if best is None:
        return f"{loss} Right: empty, because the run was not validated."
    return (
        f"{loss} Right: mean Dice of the val split; dashed, the best ({best['dice']:.3f}, update {best['step']}). "
        f"Scored: the {select}."
    )

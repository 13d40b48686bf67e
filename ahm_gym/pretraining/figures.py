"""Pictures of a pretraining run: its masks at several steps, and its curves."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ahm_gym.envs.rendering import GAP
from ahm_gym.errors import say
from ahm_gym.runs.storage import write_atomically

CURVES: dict[str, tuple[str, ...]] = {
    "reconstruction loss": ("loss", "val/loss"),
    "reward": ("reward",),
    "correlation with the true patch loss": ("val/spearman", "val/spearman_variance"),
    "health of the masks": (
        "val/overlap",
        "val/entropy",
        "val/masked_foreground",
        "agent/draw_entropy",
        "guided",
    ),
}
"""Titles of the plots, and the metrics that each one shows."""


def save_snapshot(folder: Path, step: int, panels: np.ndarray) -> None:
    """Saves the panels (N, h, w, 3) of N images at this step; all snapshots show the same images."""
    content = io.BytesIO()
    np.savez_compressed(content, panels=panels)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"step-{step}.npz", content.getvalue())


def load_snapshots(folder: Path, last_step: int | None = None) -> dict[int, np.ndarray]:
    """The panels by step, in ascending order, without steps after `last_step`; a note names damaged files."""
    paths = {int(path.stem[5:]): path for path in folder.glob("step-*.npz") if path.stem[5:].isdecimal()}
    snapshots: dict[int, np.ndarray] = {}
    for step in sorted(paths):
        if last_step is not None and step > last_step:
            continue
        try:
            with paths[step].open("rb") as file:
                panels = np.load(file)["panels"]
            if panels.ndim != 4 or any(panels.shape != other.shape for other in snapshots.values()):
                raise ValueError("another shape")
            snapshots[step] = panels
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            say(f"note: {paths[step]} is damaged and left out ({error}).")
    return snapshots


def draw_masks(snapshots: dict[int, np.ndarray], title: str, *, volumes: bool = False) -> Figure:
    """One row for each image and one block for each snapshot: image | mask | reconstruction | scores.

    Of volumes, the caption names the planes.
    """
    images, height, width = next(iter(snapshots.values())).shape[:3]
    down, right = height + 2 * GAP, width + 8 * GAP
    mosaic = np.full((images * down, len(snapshots) * right, 3), 255, dtype=np.uint8)
    for column, panels in enumerate(snapshots.values()):
        for row, panel in enumerate(panels):
            mosaic[row * down : row * down + height, column * right : column * right + width] = panel
    wide = 3.4 * len(snapshots)
    high = wide * mosaic.shape[0] / mosaic.shape[1]
    head = 0.75 / (high + 0.75)
    figure = Figure(figsize=(wide, high + 0.75), dpi=110)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1 - head))  # a layout engine would draw everything twice
    axis.imshow(mosaic, interpolation="nearest")
    axis.set_axis_off()
    line = min(height, width / 4)
    for column, step in enumerate(snapshots):
        left = column * right
        axis.text(left + width / 2, -0.22 * line, f"step {step}", ha="center", fontsize=11)
        for part, name in enumerate(("image", "mask", "reconstruction", "scores")):
            middle = left + (part + 0.5) * (width + GAP) / 4
            axis.text(middle, -0.06 * line, name, ha="center", fontsize=7)
    planes = "; middle planes: axial, coronal, sagittal" if volumes else ""
    figure.suptitle(
        f"{title}: orange = masked by the scores, blue = masked at random{planes}",
        fontsize=11,
        parse_math=False,
    )
    return figure


def draw_curves(rows: list[dict[str, Any]]) -> Figure:
    """Plots the loss, the reward, the correlation and the health of the masks over the steps of a run."""
    figure = Figure(figsize=(11, 7), dpi=110)
    FigureCanvasAgg(figure)
    last = max((row["step"] for row in rows), default=0)
    for axis, (title, names) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1.3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("update", fontsize=8)
        axis.set_xlim(0, max(last, 1))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.07, top=0.95, hspace=0.3, wspace=0.15)
    return figure

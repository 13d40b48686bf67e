"""Draws segmentations: the outlines of labels and predictions over their images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from ahm_gym.data.ignored import is_counted

ROWS: tuple[str, ...] = ("image", "label", "prediction")
MAX_LEGEND: int = 9
"""Largest number of classes that have colours easy to tell apart, and a legend."""
MIN_WIDTH: float = 4.5
"""Inches that the title needs."""
HATCH, GREY = "//////", "0.7"
"""Pattern and colour of ignored pixels."""
RIM: withStroke = withStroke(linewidth=2.4, foreground="black")
"""Black rim that keeps an outline visible on tissue of the same colour."""


@dataclass(frozen=True)
class Overlay:
    """One image with its outlines."""

    title: str
    image: Float[Tensor, "C H W"]
    """Pixels in [0, 1]; three channels are shown in colour, otherwise only the first channel is shown."""
    label: Int[Tensor, "H0 W0"] | None
    """None if there is none; ignored pixels are hatched."""
    prediction: Int[Tensor, "H0 W0"] | None = None
    """None if there is none."""
    aspect: float = 1.0
    """Height of a pixel of the label as a share of its width."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of what is drawn over the image, or of the image alone."""
        rows, columns = next(iter(self.drawn().values()), self.image[0]).shape
        return rows, columns

    def drawn(self) -> dict[str, Int[Tensor, "H0 W0"]]:
        """What has outlines, by the name of its row."""
        found = {"label": self.label, "prediction": self.prediction}
        return {row: labels for row, labels in found.items() if labels is not None}


def draw_overlays(
    overlays: Sequence[Overlay], num_classes: int, title: str, names: Mapping[int, str] | None = None
) -> Figure:
    """One column for each image: the image alone, with the outlines of the label, and with those of the prediction.

    Args:
        overlays: the images.
        num_classes: number of classes, with the background.
        title: title of the picture.
        names: names of the foreground classes in the legend; None: class 1 and so on.
    """
    drawn = {row for overlay in overlays for row in overlay.drawn()}
    rows = [row for row in ROWS if row == "image" or row in drawn]
    figure = Figure(figsize=(max(1.9 * len(overlays), MIN_WIDTH), 2.2 * len(rows)), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(overlays), squeeze=False)
    for column, overlay in enumerate(overlays):
        draw_row(axes[:, column], overlay, num_classes, rows)
        axes[0, column].set_title(overlay.title, fontsize=8, parse_math=False)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row, fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    if num_classes <= MAX_LEGEND:
        names = names or {index: f"class {index}" for index in range(1, num_classes)}
        lines: list[Artist] = [
            Line2D([], [], color=colour_of(index, num_classes), label=names[index].replace("$", r"\$"))
            for index in range(1, num_classes)
        ]
        if any(not is_counted(labels).all() for overlay in overlays for labels in overlay.drawn().values()):
            lines.append(Patch(facecolor="none", edgecolor=GREY, hatch=HATCH, linewidth=0, label="ignored"))
        figure.legend(handles=lines, loc="lower center", ncols=len(lines), fontsize=8, frameon=False)
    figure.tight_layout(pad=0.5, rect=(0, 0.04, 1, 0.98))
    return figure


def draw_row(axes: Iterable[Axes], overlay: Overlay, num_classes: int, rows: Sequence[str] = ROWS) -> None:
    """Draws the image on every one of the axes, with the outlines of what `rows` names."""
    outlined = overlay.drawn()
    for axis, row in zip(axes, rows, strict=True):
        _show(axis, overlay)
        if (labels := outlined.get(row)) is not None:
            _outline(axis, labels.numpy(), num_classes)
            _hatch(axis, ~is_counted(labels).numpy())


def colour_of(index: int, num_classes: int) -> Any:
    """The colour of a class: red, green, blue and opacity from 0 to 1."""
    if num_classes <= MAX_LEGEND:
        return matplotlib.colormaps["Set1"](index - 1)
    return matplotlib.colormaps["gist_rainbow"]((index - 1) / (num_classes - 1))


def _show(axis: Axes, overlay: Overlay) -> None:
    rows, columns = overlay.shape
    image = overlay.image if overlay.image.shape[0] == 3 else overlay.image[:1]
    pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
    # The label may be larger than the image, so the axes are in pixels of the label.
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent, aspect=overlay.aspect)
    axis.set_xticks([])
    axis.set_yticks([])


def _hatch(axis: Axes, ignored: np.ndarray) -> None:
    """Hatches ignored pixels in grey."""
    if not ignored.any():
        return
    limits = axis.get_xlim(), axis.get_ylim()
    coordinates = np.arange(-1, ignored.shape[1] + 1), np.arange(-1, ignored.shape[0] + 1)
    inside = np.pad(ignored, 1).astype(float)
    areas = axis.contourf(*coordinates, inside, levels=[0.5, 1.5], colors="none", hatches=[HATCH])
    areas.set_edgecolor(GREY)
    areas.set_linewidth(0)
    axis.set_xlim(limits[0])
    axis.set_ylim(limits[1])


def _outline(axis: Axes, labels: np.ndarray, num_classes: int) -> None:
    """Draws the outline of each class, the largest first.

    A class that surrounds another has no outline of its own along it, which would hide the other's.
    """
    limits = axis.get_xlim(), axis.get_ylim()
    coordinates = np.arange(-1, labels.shape[1] + 1), np.arange(-1, labels.shape[0] + 1)
    filled = {}
    for index in set(range(1, num_classes)) & set(np.unique(labels).tolist()):
        own = labels == index
        filled[index] = own | (np.asarray(binary_fill_holes(own), dtype=bool) & (labels > 0))
    for index in sorted(filled, key=lambda index: -filled[index].sum()):
        inside = np.pad(filled[index], 1).astype(float)
        outline = axis.contour(
            *coordinates, inside, levels=[0.5], colors=[colour_of(index, num_classes)], linewidths=1.2
        )
        outline.set_path_effects([RIM])
    axis.set_xlim(limits[0])
    axis.set_ylim(limits[1])

"""Draws the contact sheet and the histograms of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ahm_gym.data import ImageDataset
from ahm_gym.data.sample import SPLITS, Sample
from ahm_gym.segmentation.overlays import Overlay, draw_overlays
from ahm_gym.segmentation.planes import planes_of

NUM_SHOWN: dict[int, int] = {2: 8, 3: 3}
"""Number of images, or volumes, of each split in the contact sheet, by the number of axes."""
COLOURS: dict[str, str] = {"train": "#0b5cab", "val": "#b04a00", "test": "#00755a"}


def contact_sheets(dataset: ImageDataset) -> dict[str, Figure]:
    """Images of every split, evenly spaced through it, with the outlines of their labels.

    Of labelled images, those with a structure are shown first.
    """
    sheets = {}
    for split in SPLITS:
        indices = dataset.indices(split, labelled=True) or dataset.indices(split)
        if indices:
            number = min(NUM_SHOWN[dataset.axes], len(indices))
            places = np.linspace(0, len(indices) - 1, number).round().astype(int)
            samples = [dataset.sample(indices[place]) for place in places]
            overlays = [overlay for sample in samples for overlay in overlays_of(sample)]
            title = f"{number} of {len(dataset.indices(split))} {dataset.nouns[0]}s in {split}"
            sheets[split] = draw_overlays(overlays, dataset.num_classes, title)
    return sheets


def overlays_of(sample: Sample) -> list[Overlay]:
    """An image with the outlines of its label; of a volume, three slices."""
    if sample.image.ndim == 3:
        return [Overlay(sample.id, sample.image, sample.label)]
    planes = planes_of(sample.id, sample.image, sample.label, None, sample.spacing)
    return [plane.overlay for plane in planes]


def draw_histograms(found: dict[str, Float[np.ndarray, "C bins"]], channels: Sequence[str]) -> Figure:
    """The histograms of `histograms`, one panel for each channel."""
    figure = Figure(figsize=(3.4 * len(channels), 2.6), dpi=120)
    FigureCanvasAgg(figure)
    for axis, (number, name) in zip(
        figure.subplots(1, len(channels), squeeze=False)[0], enumerate(channels), strict=True
    ):
        for split, counts in found.items():
            edges = np.linspace(0.0, 1.0, counts.shape[1] + 1)
            axis.stairs(counts[number], edges, color=COLOURS[split], label=split)
        axis.set_title(name, fontsize=9, parse_math=False)
        axis.set_xlabel("intensity after scaling", fontsize=8)
        axis.set_ylabel("share of pixels", fontsize=8)
        axis.set_yscale("log")
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return figure

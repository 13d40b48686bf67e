"""Writes the page of a data set and its description, and says the same in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from ahm_gym.data import ImageDataset
from ahm_gym.data.folder import FolderSource
from ahm_gym.data.layout import Layout
from ahm_gym.data.listing import DESCRIPTION
from ahm_gym.data.sources import absolute, find_source, open_source, spaced
from ahm_gym.errors import say
from ahm_gym.look.config import LookConfig
from ahm_gym.look.counts import count_classes, count_images, count_sizes, histograms
from ahm_gym.look.figures import contact_sheets, draw_histograms
from ahm_gym.look.proposal import propose
from ahm_gym.model.patches import image_size_of
from ahm_gym.pages.page import Section, Table, embedded, render
from ahm_gym.runs.storage import make_folder, write_atomically

NUM_FILES: int = 12
"""Number of scans whose files are listed."""


def run_look(config: LookConfig) -> Path:
    """Writes `index.html`, and `dataset.json` for a folder; returns the page.

    Raises:
        InputError: if the data cannot be read.
    """
    data, root = absolute(config.data, config.data_root)
    size = image_size_of(config.image_size, axes=3 if config.volumes else 2)
    source = spaced(find_source(data, root, size), size, config.spacing)
    dataset = open_source(source, image_size=size, need_labels=False, patient_regex=config.patient_regex)
    layout, proposed = None, None
    make_folder(config.out, "`out`")
    if isinstance(source, FolderSource):
        layout = source.search.layout
        proposed = propose(layout, config.out.absolute(), source.processing)
    if proposed is not None:
        if config.patient_regex is not None:
            proposed["patients"] = config.patient_regex
        write_atomically(config.out / DESCRIPTION, json.dumps(proposed, indent=2) + "\n")
    if dataset.has_slices:
        say(
            f"note: {dataset.name}: volumes are shown as slices; `volumes` reads them whole, here and in training."
        )
    tables = count_tables(dataset)
    doubts = [
        *dataset.found["doubts"],
        *(layout.doubts if layout else ()),
        *(layout.faults if layout else ()),
    ]
    for table in tables:
        show(table)
    sections = [
        Section(
            "doubts", "Doubts", {"doubts": doubts, "notes": [n for n in dataset.notes if n not in doubts]}
        ),
        Section("numbers", "Numbers", tables),
        Section(
            "images", "Images", {name: embedded(sheet) for name, sheet in contact_sheets(dataset).items()}
        ),
        Section("intensities", "Intensities", intensities(dataset, layout)),
        Section("files", "Files", None if layout is None else list_files(layout)),
        Section("description", "Description", None if proposed is None else json.dumps(proposed, indent=2)),
    ]
    page = config.out / "index.html"
    write_atomically(page, render("ahm_gym.look", f"A look at {dataset.name}", str(dataset), sections))
    return page


def count_tables(dataset: ImageDataset) -> list[Table]:
    """Images, classes and sizes; without labels there are no classes."""
    tables = [count_images(dataset)]
    if dataset.num_classes:
        tables.append(count_classes(dataset, ["background", *dataset.class_names.values()]))
    return [*tables, count_sizes(dataset)]


def intensities(dataset: ImageDataset, layout: Layout | None) -> Any:
    """The picture of the histograms."""
    names = layout.modalities if layout is not None and layout.modalities else ()
    channels = names or [f"channel {number}" for number in range(dataset.channels)]
    return embedded(draw_histograms(histograms(dataset), channels))


def list_files(layout: Layout) -> dict[str, Any]:
    """The files of a few scans, and what was left out."""

    def shown(path: Path) -> str:
        return os.path.relpath(path, layout.root)

    rows = [
        [scan.id, ", ".join(map(shown, scan.images[:4])), ", ".join(map(shown, scan.labels)) or "none"]
        for scan in layout.scans[:NUM_FILES]
    ]
    reasons: dict[str, list[Path]] = {}
    for path, reason in layout.left_out.items():
        reasons.setdefault(reason, []).append(path)
    return {
        "shown": Table(f"{len(rows)} of {len(layout.scans)} scans", ["scan", "images", "labels"], rows),
        "left_out": [
            f"{len(paths)} {'file' if len(paths) == 1 else 'files'}, such as {shown(paths[0])}: {reason}"
            for reason, paths in reasons.items()
        ],
    }


def show(table: Table) -> None:
    """Prints a table."""
    screen = ScreenTable(title=table.caption, title_justify="left")
    for number, name in enumerate(table.columns):
        screen.add_column(Text(name), justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in table.rows:
        screen.add_row(*map(Text, row))
    Console().print(screen)

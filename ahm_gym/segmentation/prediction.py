"""Segments new scans with a fine-tuned run, and writes masks in the geometry of the files."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ahm_gym.data.described import open_folder
from ahm_gym.data.formats import (
    READERS,
    NotAnImage,
    Pixels,
    encode_mask,
    is_readable,
    read_pixels,
    stem_of,
)
from ahm_gym.data.layout import Scan
from ahm_gym.data.listing import PREDICTIONS
from ahm_gym.data.scans import arranged, read_scan
from ahm_gym.errors import InputError, Interrupted, printable, say
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.lines import complete_lines
from ahm_gym.runs.progress import Progress
from ahm_gym.runs.schema import Schema, checked
from ahm_gym.runs.storage import make_folder, write_atomically
from ahm_gym.segmentation.config import PredictConfig
from ahm_gym.segmentation.maps import encode_probabilities, encode_uncertainty
from ahm_gym.segmentation.overlays import Overlay, draw_overlays
from ahm_gym.segmentation.planes import planes_of
from ahm_gym.segmentation.predictor import Ensemble

NUM_SHOWN: int = 8
"""Largest number of scans in the picture."""
NUM_VOLUMES: int = 3
"""Largest number of volumes in it that were segmented as a whole, each in three planes."""
MAPS: tuple[str, ...] = ("probabilities", "uncertainty")
"""Maps that a setting adds, and the folders beside the masks that they are written to."""


class Made(Schema):
    """What the masks of a folder depend on: the first line of its list."""

    run: str | list[str]
    select: str | None = None
    probabilities: bool = False
    uncertainty: bool = False


class Row(Schema):
    """A finished scan."""

    scan: str
    file: str
    mask: str
    probabilities: str | None = None
    uncertainty: str | None = None
    pixels: list[int]
    unit: str
    sizes: list[float] | None


def run_predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Writes a mask of every scan, the maps asked for, `areas.csv` and `overlays.png`; returns a row for each scan.

    DICOM objects without an image, such as contours, are left out.

    Raises:
        InputError: if a run or a scan cannot be used, or the folder holds masks of other runs or options.
        Interrupted: on Ctrl-C or SIGTERM, after the present scan.
    """
    ensemble = Ensemble.of_runs(config.runs, config.device, config.select)
    scans = list_scans(config.scans)
    rows = _open(config)
    todo = {name: scan for name, scan in scans.items() if not _is_done(rows, config.out, name)}
    if len(todo) < len(scans):
        say(f"{len(scans) - len(todo)} of {len(scans)} scans are in {config.out} already.")
    interrupt = Interrupt()
    with interrupt, Progress("segmenting", total=len(scans), start=len(scans) - len(todo)) as bar:
        for done, (name, scan) in enumerate(todo.items(), start=len(scans) - len(todo) + 1):
            try:
                rows[name] = _segment(ensemble, scan, config, name)
            except NotAnImage:
                if len(scans) == 1:
                    raise
                say(f"note: {scan.images[0]} is left out, because it is a DICOM object without an image.")
                continue
            with (config.out / PREDICTIONS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[name]) + "\n")
            bar.advance(done)
            if interrupt.requested and done < len(scans):
                raise Interrupted(
                    f"stopped after {done} of {len(scans)} scans; the same command continues.",
                    interrupt.signal or 2,
                )
    found = [rows[name] for name in scans if name in rows]
    if not found:
        raise InputError(
            f"{config.scans} holds only DICOM objects without an image: give a folder of images."
        )
    write_atomically(config.out / "areas.csv", areas_table(found))
    _draw(ensemble, scans, found, config.out)
    return found


def list_scans(place: Path) -> dict[str, Scan]:
    """The scans of a folder, or the one file, by id; labels among them are left out, and said.

    Raises:
        InputError: if there is no image.
    """
    if not place.exists():
        raise InputError(f"{place} does not exist: give a folder of images, or one image.")
    if place.is_file():
        if not is_readable(place):
            raise InputError(f"{place} cannot be read: expected a file ending in {', '.join(READERS)}.")
        name = stem_of(place)
        return {name: Scan(name, (place,), name, name)}
    if not place.is_dir():
        raise InputError(f"{place} is a device or a pipe: give a folder of images, or one image.")
    layout = open_folder(place).layout
    if labels := [label for scan in layout.scans for label in scan.labels]:
        say(f"note: {len(labels)} labels are left out, such as {labels[0].name}.")
    for sentence in layout.sentences():
        say(f"note: {sentence}.")
    return {scan.id: scan for scan in layout.scans}


def _open(config: PredictConfig) -> dict[str, dict[str, Any]]:
    """Makes the folder of the masks, or opens it to continue; returns the rows of finished scans."""
    settings = _settings(config)
    place, path = config.out, config.out / PREDICTIONS
    if place.is_dir() and any(place.iterdir()) and not path.is_file():
        raise InputError(f"{place} is not empty: choose another folder for `out`.")
    if not path.is_file():
        make_folder(place, "`out`")
        write_atomically(path, json.dumps(settings) + "\n")
    lines = complete_lines(path)
    first, *rows = _read_rows(path, lines)
    write_atomically(path, "\n".join((*lines, "")))  # without an incomplete line, to append to
    _check_same(place, first, settings)
    for name in MAPS:
        if getattr(config, name):
            make_folder(place / name, "`out`")
    return {row["scan"]: row for row in rows}


def _read_rows(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    """The settings of a folder of masks, and the rows of its finished scans.

    Raises:
        InputError: if a line is missing or damaged.
    """
    try:
        first, *rows = map(json.loads, lines)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): choose another folder for `out`.") from error
    checked(Made, first, path)
    for row in rows:
        checked(Row, row, path)
    return [first, *rows]


def _settings(config: PredictConfig) -> dict[str, Any]:
    """What the masks of this folder depend on, as in `Made`."""
    runs = [str(run.absolute()) for run in config.runs]
    options = {name: getattr(config, name) for name in ("select", *MAPS)}
    return {"run": runs[0] if len(runs) == 1 else runs, **options}


def _check_same(place: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raises InputError if the masks of a folder were made by other runs or with other options."""
    if found["run"] != settings["run"]:
        several = isinstance(found["run"], list)
        runs = f"the runs {', '.join(found['run'])}" if several else f"the run {found['run']}"
        raise InputError(f"{place} holds masks of {runs}: choose another `out`.")
    for name in ("select", *MAPS):
        kept = found.get(name) or None  # of earlier versions, without these options
        if kept != (settings[name] or None):
            made = f"with `{name}={kept}`" if kept else f"without `{name}`"
            raise InputError(
                f"the masks in {place} were made {made}: give the same, or choose another `out`."
            )


def _is_done(rows: dict[str, dict[str, Any]], out: Path, name: str) -> bool:
    if name not in rows:
        return False
    return all((out / rows[name][kind]).is_file() for kind in ("mask", *MAPS) if rows[name].get(kind))


def _segment(ensemble: Ensemble, scan: Scan, config: PredictConfig, name: str) -> dict[str, Any]:
    """Writes the mask of a scan and the maps asked for; returns its row."""
    path, pixels = scan.images[0], read_scan(scan, ensemble.processing)
    asked = {kind: getattr(config, kind) for kind in MAPS}
    found = ensemble.segment(pixels, str(path), apart=scan.modal, **asked)
    files = {"mask": ("", encode_mask(found.mask, path, pixels))}
    if found.probabilities is not None:
        files["probabilities"] = ("probabilities/", encode_probabilities(found.probabilities, path, pixels))
    if found.uncertainty is not None:
        files["uncertainty"] = ("uncertainty/", encode_uncertainty(found.uncertainty, path, pixels))
    written = {}
    for kind, (folder, (suffix, content)) in files.items():
        written[kind] = f"{folder}{name}{suffix}"
        write_atomically(config.out / written[kind], content)
    counts = np.bincount(found.mask.ravel(), minlength=ensemble.num_classes).tolist()
    unit, size = _size_of_pixel(pixels)
    return {
        "scan": name,
        "file": str(path),
        **written,
        "shape": list(found.mask.shape),
        "pixels": counts,
        "unit": unit,
        "sizes": None if size is None else [round(count * size, 4) for count in counts],
    }


def _size_of_pixel(pixels: Pixels) -> tuple[str, float | None]:
    """The unit and the size of a pixel or voxel; pixels without a size if the file states none."""
    if pixels.spacing is None or len(pixels.spacing) != (3 if pixels.is_volume else 2):
        return "pixels", None
    size = math.prod(pixels.spacing)
    return ("ml", size / 1000) if pixels.is_volume else ("mm2", size)


def areas_table(rows: list[dict[str, Any]]) -> str:
    """A table (CSV) with a line for each scan and class: pixels, and the area in mm2 or the volume in ml if known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("scan", "class", "pixels", "size", "unit"))
    for row in rows:
        for index, count in enumerate(row["pixels"]):
            size = "" if row["sizes"] is None else row["sizes"][index]
            writer.writerow((row["scan"], index, count, size, "" if size == "" else row["unit"]))
    return text.getvalue()


def _draw(ensemble: Ensemble, scans: dict[str, Scan], rows: list[dict[str, Any]], out: Path) -> None:
    """Draws a few scans with their masks; of a volume the slice with the largest structure, or three planes."""
    most = NUM_VOLUMES if ensemble.in_volumes else NUM_SHOWN
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
    chosen = [rows[place] for place in places]
    overlays = [one for row in chosen for one in _shown(ensemble, scans[row["scan"]], row, out)]
    title = f"{len(chosen)} of {len(rows)} scans, and what was found"
    figure = draw_overlays(overlays, ensemble.num_classes, title, ensemble.class_names)
    figure.savefig(out / "overlays.png")


def _shown(ensemble: Ensemble, scan: Scan, row: dict[str, Any], out: Path) -> list[Overlay]:
    """A scan with its mask: one picture, or those of the planes of a volume that was segmented as a whole."""
    processing, title = ensemble.processing, printable(row["scan"])
    pixels = read_scan(scan, processing)
    mask = arranged(read_pixels(out / row["mask"]), processing, row["mask"]).array
    image = pixels.array
    if pixels.is_volume and mask.ndim == 4:
        mask, image = mask[..., 0], image[..., 0]
    if pixels.is_volume and not ensemble.in_volumes:
        at = int((mask > 0).sum(axis=(0, 1)).argmax())
        mask, title, image = mask[:, :, at], f"{title}\nslice {at}", image[:, :, at]
    scaled = ensemble.scaled(image, str(scan.images[0]), apart=scan.modal, spacing=pixels.spacing)
    shown, found = ensemble.members[0].fitted(scaled), torch.from_numpy(mask.astype(np.int64))
    if not ensemble.in_volumes:
        return [Overlay(title, shown, None, found)]
    return [plane.overlay for plane in planes_of(title, shown, None, found, pixels.spacing)]

"""Segments new scans with a fine-tuned run, and writes masks in the geometry of the files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ahm_gym.data.formats import READERS, Pixels, encode_mask, is_readable, read_pixels, stem_of
from ahm_gym.data.labels import split_among
from ahm_gym.data.listing import PREDICTIONS, by_stem, find_images, note_on_other_files
from ahm_gym.data.scaling import channels_last, scale_intensities, shrink, stored_side
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.lines import complete_lines
from ahm_gym.runs.progress import Progress
from ahm_gym.runs.storage import make_folder, write_atomically
from ahm_gym.segmentation.config import PredictConfig
from ahm_gym.segmentation.overlays import Overlay, draw_overlays
from ahm_gym.segmentation.segmenter import Segmenter, load_segmenter, predict

NUM_SHOWN: int = 8
"""Largest number of scans in the picture."""


@dataclass(frozen=True)
class Predictor:
    """A trained segmenter with all that it needs to know of its run."""

    segmenter: Segmenter
    mean: tuple[float, ...]
    """Mean of each channel of the run's training images."""
    std: tuple[float, ...]
    native_resolution: bool

    @classmethod
    def of_run(cls, run: Path, device: str = "auto") -> Predictor:
        """The segmenter of a fine-tuning run's last checkpoint.

        Raises:
            InputError: if the folder holds no such run, or none with a segmenter yet.
        """
        config = RunFolder.open(run, "finetune").config
        segmenter = load_segmenter(run / "segmenter").to(pick_device(device)).eval()
        return cls(segmenter, tuple(config["mean"]), tuple(config["std"]), bool(config["native_resolution"]))

    def scaled(self, image: np.ndarray, origin: str) -> Float[Tensor, "C H W"]:
        """The image as training saw it before it was normalised: from 0 to 1, and no larger than needed.

        Raises:
            InputError: if it is no image, or has another number of channels than the training images.
        """
        pixels = channels_last(image, origin)
        if pixels.shape[2] != self.segmenter.channels:
            raise InputError(
                f"wrong channel count: {origin} has {pixels.shape[2]}, expected {self.segmenter.channels} like the "
                "training images of the run; convert it, or remove it."
            )
        side = stored_side(self.segmenter.image_size, self.native_resolution)
        return shrink(scale_intensities(pixels), side)

    def __call__(self, image: np.ndarray, origin: str) -> UInt8[np.ndarray, "H W"]:
        """The class of every pixel of an image of rows, columns and, optionally, channels.

        Raises:
            InputError: as `scaled` does.
        """
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        normalised = (self.scaled(image, origin) - mean) / std
        size = (image.shape[0], image.shape[1])
        classes = predict(self.segmenter, normalised, size, native_resolution=self.native_resolution)
        return classes.numpy().astype(np.uint8)

    def mask(self, pixels: Pixels, origin: str) -> UInt8[np.ndarray, "H W *slices"]:
        """The mask of a file: of an image, or of a volume slice by slice; of a series in time, frame by frame."""
        if not pixels.is_volume:
            return self(pixels.array, origin)
        if pixels.fourth == "time" and pixels.array.ndim == 4:
            frames = [
                dataclasses.replace(pixels, array=frame, fourth="channels")
                for frame in np.moveaxis(pixels.array, 3, 0)
            ]
            return np.stack(
                [self.mask(frame, f"{origin} (frame {at})") for at, frame in enumerate(frames)], axis=3
            )
        slices = range(pixels.array.shape[2])
        return np.stack([self(pixels.array[:, :, at], f"{origin} (slice {at})") for at in slices], axis=2)


def run_predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Writes a mask of every scan, `areas.csv` and `overlays.png`; returns a row for each scan.

    Raises:
        InputError: if the run or a scan cannot be used, or the folder holds masks of another run.
        Interrupted: on Ctrl-C or SIGTERM, after the present scan.
    """
    predictor = Predictor.of_run(config.run, config.device)
    scans = list_scans(config.scans)
    rows = _open(config)
    todo = {name: path for name, path in scans.items() if not _is_done(rows, config.out, name)}
    if len(todo) < len(scans):
        print(f"{len(scans) - len(todo)} of {len(scans)} scans are in {config.out} already.", file=sys.stderr)
    interrupt = Interrupt()
    with interrupt, Progress("segmenting", total=len(scans), start=len(scans) - len(todo)) as bar:
        for done, (name, path) in enumerate(todo.items(), start=len(scans) - len(todo) + 1):
            rows[name] = _segment(predictor, path, config.out / name)
            with (config.out / PREDICTIONS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[name]) + "\n")
            bar.advance(done)
            if interrupt.requested and done < len(scans):
                raise Interrupted(
                    f"stopped after {done} of {len(scans)} scans; the same command continues.",
                    interrupt.signal or 2,
                )
    found = [rows[name] for name in scans]
    write_atomically(config.out / "areas.csv", areas_table(found))
    _draw(predictor, scans, found, config.out)
    return found


def list_scans(place: Path) -> dict[str, Path]:
    """The images of a folder, or the one file, by name without suffix; labels among them are left out, and said.

    Raises:
        InputError: if there is no image.
    """
    if not place.exists():
        raise InputError(f"{place} does not exist: give a folder of images, or one image.")
    if place.is_file():
        if not is_readable(place):
            raise InputError(f"{place} cannot be read: expected a file ending in {', '.join(READERS)}.")
        return {stem_of(place): place}
    folder = find_images(place)
    files = by_stem(folder)
    images, _ = split_among(files)
    if left_out := sorted(files.keys() - images.keys()):
        print(
            f"note: {len(left_out)} labels are left out, such as {files[left_out[0]].name}.", file=sys.stderr
        )
    if note := note_on_other_files(folder):
        print(f"note: {note}.", file=sys.stderr)
    return images


def _open(config: PredictConfig) -> dict[str, dict[str, Any]]:
    """Makes the folder of the masks, or opens it to continue; returns the rows of finished scans."""
    run = str(config.run.absolute())
    place, path = config.out, config.out / PREDICTIONS
    if place.is_dir() and any(place.iterdir()) and not path.is_file():
        raise InputError(f"{place} is not empty: choose another folder for `out`.")
    if not path.is_file():
        make_folder(place, "`out`")
        write_atomically(path, json.dumps({"run": run}) + "\n")
    first, *lines = complete_lines(path)
    write_atomically(path, "\n".join((first, *lines, "")))  # without an incomplete line, to append to
    if json.loads(first)["run"] != run:
        raise InputError(f"{place} holds masks of the run {json.loads(first)['run']}: choose another `out`.")
    return {row["scan"]: row for row in map(json.loads, lines)}


def _is_done(rows: dict[str, dict[str, Any]], out: Path, name: str) -> bool:
    return name in rows and (out / rows[name]["mask"]).is_file()


def _segment(predictor: Predictor, path: Path, target: Path) -> dict[str, Any]:
    """Writes the mask of a scan; returns its row."""
    pixels = read_pixels(path)
    mask = predictor.mask(pixels, str(path))
    suffix, content = encode_mask(mask, path, pixels)
    written = target.with_name(target.name + suffix)
    write_atomically(written, content)
    counts = np.bincount(mask.ravel(), minlength=predictor.segmenter.num_classes).tolist()
    unit, size = _size_of_pixel(pixels)
    return {
        "scan": target.name,
        "file": str(path),
        "mask": written.name,
        "shape": list(mask.shape),
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


def _draw(predictor: Predictor, scans: dict[str, Path], rows: list[dict[str, Any]], out: Path) -> None:
    """Draws a few scans with their masks; of a volume, the slice with the largest structure."""
    places = np.linspace(0, len(rows) - 1, min(NUM_SHOWN, len(rows))).round().astype(int)
    overlays = []
    for row in (rows[place] for place in places):
        path, title = scans[row["scan"]], row["scan"]
        pixels, mask = read_pixels(path), read_pixels(out / row["mask"]).array
        image = pixels.array
        if pixels.is_volume:
            if mask.ndim == 4:
                mask, image = mask[..., 0], image[..., 0]
            at = int((mask > 0).sum(axis=(0, 1)).argmax())
            mask, title, image = mask[:, :, at], f"{title}\nslice {at}", image[:, :, at]
        shown = predictor.scaled(image, str(path))
        overlays.append(Overlay(title, shown, None, torch.from_numpy(mask.astype(np.int64))))
    title = f"{len(overlays)} of {len(rows)} scans, and what was found"
    draw_overlays(overlays, predictor.segmenter.num_classes, title).savefig(out / "overlays.png")

"""Segments new scans with a fine-tuned run, and writes masks in the geometry of the files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ahm_gym.data.files import READERS, Pixels, read_pixels, stem_of, suffix_of
from ahm_gym.data.folder import read_scan
from ahm_gym.data.layout import Scan
from ahm_gym.data.listing import PREDICTIONS
from ahm_gym.data.scaling import channels_last, scale_channels, scale_intensities, shrink, stored_side
from ahm_gym.data.search import find_layout
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
NIFTI: tuple[str, ...] = (".nii", ".nii.gz")


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

    def scaled(self, image: np.ndarray, origin: str, *, apart: bool = False) -> Float[Tensor, "C H W"]:
        """The image as training saw it before it was normalised: from 0 to 1, and no larger than needed.

        Args:
            image: rows, columns and, optionally, channels; a grey image is repeated for a run on colour images.
            origin: its file, for messages.
            apart: the channels are modalities, each scaled by itself.

        Raises:
            InputError: if it is no image, or has another number of channels than the training images.
        """
        pixels = channels_last(image, origin)
        if (pixels.shape[2], self.segmenter.channels) == (1, 3):
            pixels = np.repeat(pixels, 3, axis=2)
        if pixels.shape[2] != self.segmenter.channels:
            raise InputError(
                f"wrong channel count: {origin} has {pixels.shape[2]}, expected {self.segmenter.channels} like the "
                "training images of the run; convert it, or remove it."
            )
        side = stored_side(self.segmenter.image_size, self.native_resolution)
        return shrink(scale_channels(pixels) if apart else scale_intensities(pixels), side)

    def __call__(self, image: np.ndarray, origin: str, *, apart: bool = False) -> UInt8[np.ndarray, "H W"]:
        """The class of every pixel of an image of rows, columns and, optionally, channels.

        Raises:
            InputError: as `scaled` does.
        """
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        normalised = (self.scaled(image, origin, apart=apart) - mean) / std
        size = (image.shape[0], image.shape[1])
        classes = predict(self.segmenter, normalised, size, native_resolution=self.native_resolution)
        return classes.numpy().astype(np.uint8)

    def mask(self, pixels: Pixels, origin: str, *, apart: bool = False) -> UInt8[np.ndarray, "H W *slices"]:
        """The mask of a file: of an image, or of a volume slice by slice."""
        if not pixels.is_volume:
            return self(pixels.array, origin, apart=apart)
        slices = range(pixels.array.shape[2])
        return np.stack(
            [self(pixels.array[:, :, at], f"{origin} (slice {at})", apart=apart) for at in slices], axis=2
        )


def run_predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Writes a mask of every scan, `areas.csv` and `overlays.png`; returns a row for each scan.

    Raises:
        InputError: if the run or a scan cannot be used, or the folder holds masks of another run.
        Interrupted: on Ctrl-C or SIGTERM, after the present scan.
    """
    predictor = Predictor.of_run(config.run, config.device)
    scans = list_scans(config.scans)
    rows = _open(config)
    todo = {name: scan for name, scan in scans.items() if not _is_done(rows, config.out, name)}
    if len(todo) < len(scans):
        print(f"{len(scans) - len(todo)} of {len(scans)} scans are in {config.out} already.", file=sys.stderr)
    interrupt = Interrupt()
    with interrupt, Progress("segmenting", total=len(scans), start=len(scans) - len(todo)) as bar:
        for done, (name, scan) in enumerate(todo.items(), start=len(scans) - len(todo) + 1):
            rows[name] = _segment(predictor, scan, config.out / name)
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


def list_scans(place: Path) -> dict[str, Scan]:
    """The scans of a folder, or the one file, by id; labels among them are left out, and said.

    Raises:
        InputError: if there is no image.
    """
    if not place.exists():
        raise InputError(f"{place} does not exist: give a folder of images, or one image.")
    if place.is_file():
        if suffix_of(place) not in READERS:
            raise InputError(f"{place} cannot be read: expected a file ending in {', '.join(READERS)}.")
        name = stem_of(place)
        return {name: Scan(name, (place,), name, name)}
    layout = find_layout(place)
    if labels := [label for scan in layout.scans for label in scan.labels]:
        print(f"note: {len(labels)} labels are left out, such as {labels[0].name}.", file=sys.stderr)
    for sentence in layout.sentences():
        print(f"note: {sentence}.", file=sys.stderr)
    return {scan.id: scan for scan in layout.scans}


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


def _segment(predictor: Predictor, scan: Scan, target: Path) -> dict[str, Any]:
    """Writes the mask of a scan; returns its row."""
    path, pixels = scan.images[0], read_scan(scan)
    mask = predictor.mask(pixels, str(path), apart=scan.modal)
    suffix, content = encode_mask(mask, path, pixels)
    written = target.with_name(target.name + suffix)
    write_atomically(written, content)
    counts = np.bincount(mask.ravel(), minlength=predictor.segmenter.num_classes).tolist()
    unit, size = _size_of_pixel(path, pixels)
    return {
        "scan": target.name,
        "file": str(path),
        "mask": written.name,
        "shape": list(mask.shape),
        "pixels": counts,
        "unit": unit,
        "sizes": None if size is None else [round(count * size, 4) for count in counts],
    }


def encode_mask(mask: UInt8[np.ndarray, "H W *slices"], path: Path, pixels: Pixels) -> tuple[str, bytes]:
    """A mask in the format that fits its scan: NIfTI with the scan's affine, PNG, TIFF with pages, or .npy.

    Args:
        mask: classes in the order of `Pixels.array`.
        path: file of the scan.
        pixels: its content.

    Returns:
        The suffix and the content of the file.
    """
    suffix = suffix_of(path)
    if suffix in NIFTI:
        scan: Any = nibabel.load(path)
        header = scan.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1.0, 0.0)
        image = nibabel.Nifti1Image(np.rot90(mask, -1), scan.affine, header)  # as `read_pixels` turned it
        return ".nii.gz", gzip.compress(image.to_bytes(), mtime=0)
    if suffix == ".npy":
        content = io.BytesIO()
        np.save(content, mask)
        return ".npy", content.getvalue()
    if pixels.is_volume:
        return ".tif", cv2.imencodemulti(".tif", list(np.moveaxis(mask, 2, 0)))[1].tobytes()
    return ".png", cv2.imencode(".png", mask)[1].tobytes()


def _size_of_pixel(path: Path, pixels: Pixels) -> tuple[str, float | None]:
    """The unit and the size of a pixel or voxel; pixels without a size if the file states none."""
    if suffix_of(path) in NIFTI and pixels.is_volume:
        sizes = [abs(float(size)) for size in nibabel.load(path).header.get_zooms()[:3]]  # pyright: ignore
        return ("ml", float(np.prod(sizes)) / 1000) if min(sizes) > 0 else ("pixels", None)
    if pixels.spacing is not None and not pixels.is_volume:
        return "mm2", pixels.spacing[0] * pixels.spacing[1]
    return "pixels", None


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


def _draw(predictor: Predictor, scans: dict[str, Scan], rows: list[dict[str, Any]], out: Path) -> None:
    """Draws a few scans with their masks; of a volume, the slice with the largest structure."""
    places = np.linspace(0, len(rows) - 1, min(NUM_SHOWN, len(rows))).round().astype(int)
    overlays = []
    for row in (rows[place] for place in places):
        scan, title = scans[row["scan"]], row["scan"]
        pixels, mask = read_scan(scan), read_pixels(out / row["mask"]).array
        image = pixels.array
        if pixels.is_volume:
            at = int((mask > 0).sum(axis=(0, 1)).argmax())
            mask, title, image = mask[:, :, at], f"{title}\nslice {at}", image[:, :, at]
        shown = predictor.scaled(image, str(scan.images[0]), apart=scan.modal)
        overlays.append(Overlay(title, shown, None, torch.from_numpy(mask.astype(np.int64))))
    title = f"{len(overlays)} of {len(rows)} scans, and what was found"
    draw_overlays(overlays, predictor.segmenter.num_classes, title).savefig(out / "overlays.png")

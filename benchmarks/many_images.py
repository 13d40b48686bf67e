"""Times `look` and the preparation of a folder of very many small images, and measures the memory of both.

`python benchmarks/many_images.py` needs Linux and about 1 GB of disk for 100,000 images.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import tyro

IMAGES_PER_FOLDER = 1000


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Look at very many images, and prepare them."""

    images: int = 100_000
    """Number of images; every second one has a label."""
    side: int = 64
    """Rows and columns of an image."""
    out: Path | None = None
    """File of the numbers; None: they are only printed."""


def write_images(folder: Path, number: int, side: int) -> None:
    """Writes noisy discs of a thousand patients or more, each with its images in a folder of its own."""
    generator = np.random.default_rng(0)
    for index in range(number):
        patient = folder / f"patient{index // IMAGES_PER_FOLDER:04d}"
        for kind in ("images", "labels"):
            (patient / kind).mkdir(parents=True, exist_ok=True)
        label = np.zeros((side, side), np.uint8)
        centre = tuple(int(place) for place in generator.integers(side // 4, 3 * side // 4, 2))
        cv2.circle(label, centre, side // 6, 1, -1)
        image = (80 * label + generator.integers(0, 120, label.shape)).astype(np.uint8)
        cv2.imwrite(str(patient / "images" / f"slice{index:06d}.png"), image)
        if index % 2:
            cv2.imwrite(str(patient / "labels" / f"slice{index:06d}.png"), 255 * label)


def timed(arguments: list[str], cache: Path) -> dict[str, float]:
    """Seconds, CPU seconds and the largest memory of a command of its own process."""
    environment = os.environ | {"AHM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "ahm_gym", *arguments], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"ahm-gym {arguments[0]} ended with {os.waitstatus_to_exitcode(status)}.")
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "gib": round(usage.ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Writes the images and times the commands."""
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as name:
        scans, cache = Path(name) / "scans", Path(name) / "cache"
        write_images(scans, arguments.images, arguments.side)
        look = ["look", str(scans), "--image-size", str(arguments.side), "--out", f"{name}/page"]
        settings = (
            f"--data {scans} --image-size {arguments.side} --batch-size 16 --steps 1 --run-dir {name}/run"
        )
        found = {
            "look": timed(look, cache),
            "look_again": timed(look, cache),
            "pretrain_one_update": timed(["pretrain", *settings.split()], cache),
        }
        page = (Path(name) / "page" / "index.html").stat().st_size
    found["look"]["images_per_second"] = round(arguments.images / found["look"]["seconds"])
    text = json.dumps(
        {"images": arguments.images, "side": arguments.side, "page_mib": round(page / 2**20, 2), **found}
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

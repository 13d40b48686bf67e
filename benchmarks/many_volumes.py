"""Prepares many large volumes, pretrains on random crops of them, and measures the time and the memory of both.

`python benchmarks/many_volumes.py` needs Linux, and 10 GB of disk for 200 volumes of 256x256x256.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import tyro
from many_images import timed


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Prepare many large volumes, and pretrain on them."""

    volumes: int = 200
    """Number of volumes, without labels."""
    side: int = 256
    """Voxels along each axis of a volume."""
    steps: int = 50
    """Number of updates with 8 crops of 48x48x48."""
    out: Path | None = None
    """File of the numbers; None: they are only printed."""


def write_volumes(folder: Path, number: int, side: int) -> None:
    """Writes noise with a bright ball, which is elsewhere in every volume, as NIfTI without compression."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 60, (side, side, side)).astype(np.uint8)
    axes = np.ogrid[:side, :side, :side]
    for index in range(number):
        centre = generator.integers(side // 4, 3 * side // 4, 3)
        distance = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True))
        array = np.roll(noise, index, axis=0) + np.where(distance < (side // 6) ** 2, 150, 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"patient{index:04d}.nii")


def main() -> None:
    """Writes the volumes and times the commands."""
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as name:
        scans, cache = Path(name) / "scans", Path(name) / "cache"
        write_volumes(scans, arguments.volumes, arguments.side)
        settings = f"--data {scans} --volumes --image-size 48 --batch-size 8 --policy random --device cpu"
        found = {
            when: timed(
                ["pretrain", *settings.split(), "--steps", str(steps), "--run-dir", f"{name}/{when}"], cache
            )
            for when, steps in (("prepare_and_one_update", 1), ("pretrain", arguments.steps))
        }
        stored = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    sizes = {"volumes": arguments.volumes, "side": arguments.side, "steps": arguments.steps}
    text = json.dumps({**sizes, "stored_gib": round(stored / 2**30, 2), **found})
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

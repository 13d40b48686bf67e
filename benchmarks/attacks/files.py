"""Damages files that programs read: images, labels, tables, and the files of a run, as disks and people do.

`python benchmarks/attacks/files.py --tries 300` draws a file and a damage, runs the command that reads it, and says
which did not end in success or one sentence. A finite, sensible result beside a note is a success; a traceback, a
hang, or weights that are not finite are not.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro
from damages import cut, flip, folder, foreign, rewrite_json, write_image, zeros
from scenes import build
from trying import Outcome, forked, report

FORMATS = (".png", ".jpg", ".bmp", ".tif", ".npy", ".nii", ".nii.gz", ".mha", ".nrrd", ".dcm", ".npz", ".gif")
"""Formats of an image that is damaged."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Damage files that programs read."""

    tries: int = 300
    """Number of damaged files."""
    seed: int = 0
    """Seed of the files and their damages."""
    out: Path = Path("runs/attacks/files.jsonl")
    """File of all outcomes."""


def image_try(place: Path, drawn: random.Random) -> tuple[str, list[str]]:
    """One damaged image among eight of its format: what was done, and the command that reads it."""
    suffix = drawn.choice(FORMATS)
    if suffix == ".npz":
        target = place / "images.npz"
        write_image(target, drawn)
        data = target
    else:
        data = place / "images"
        data.mkdir()
        for index in range(8):
            write_image(data / f"scan{index}{suffix}", drawn)
        target = data / f"scan3{suffix}"
    damage = drawn.choice([cut, flip, flip, flip, zeros, foreign, folder])
    damage(target, drawn)
    if drawn.random() < 0.4:
        return f"{damage.__name__} {suffix}, look", ["look", "--out", str(place / "look"), str(data)]
    few = ["--steps", "1", "--batch-size", "2", "--image-size", "32", "--data-workers", "0"]
    return f"{damage.__name__} {suffix}, pretrain", [
        "pretrain",
        "--data",
        str(data),
        *few,
        "--run-dir",
        str(place / "r"),
    ]


def label_try(place: Path, scene: Path, drawn: random.Random) -> tuple[str, list[str]]:
    """One damaged label or table beside good images."""
    data = place / "data"
    shutil.copytree(scene / "data", data)
    name = drawn.choice(["labels", "split.csv", "dataset.json"])
    if name == "labels":
        target = data / "labels" / "patient003.png"
        damage = drawn.choice([cut, flip, zeros, foreign, folder])
    elif name == "split.csv":
        target = data / name
        rows = [f"images/patient{index:03d}.png,{'train' if index < 8 else 'test'}" for index in range(12)]
        target.write_text("\n".join(["file,split", *rows]))
        damage = drawn.choice([cut, flip, zeros, foreign, folder])
    else:
        target = data / name
        shutil.copy(scene / "look" / name, target)
        damage = drawn.choice([cut, flip, foreign, folder, rewrite_json, rewrite_json, rewrite_json])
    damage(target, drawn)
    few = ["--steps", "1", "--batch-size", "2", "--image-size", "32", "--encoder", "none"]
    return f"{damage.__name__} {name}, finetune", [
        "finetune",
        "--data",
        str(data),
        *few,
        "--run-dir",
        str(place / "r"),
    ]


def run_try(place: Path, scene: Path, drawn: random.Random) -> tuple[str, list[str]]:
    """One damaged file of a finished run, read by what continues or uses it."""
    kind = drawn.choice(["run", "segmenter", "benchmark"])
    shutil.copytree(scene / kind, place / kind, symlinks=True)
    run = place / kind
    shown = (".png", ".html", ".md")
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix not in shown)
    files = [path for path in files if path.stat().st_size]
    target = drawn.choice(files)
    damages = [cut, flip, zeros, foreign, folder]
    if target.suffix in (".json", ".jsonl"):
        damages += [rewrite_json] * 8
    damage = drawn.choice(damages)
    damage(target, drawn)
    if kind == "benchmark":
        argv = ["report", str(run)]
    elif kind == "segmenter":
        argv = drawn.choice(
            [
                ["finetune", "--resume", "--run-dir", str(run)],
                ["predict", "--run", str(run), "--out", str(place / "masks"), str(scene / "data" / "images")],
                ["evaluate", "--run", str(run), "--out", str(place / "scores"), str(scene / "data")],
            ]
        )
    else:
        few = [
            "--steps",
            "1",
            "--batch-size",
            "2",
            "--run-dir",
            str(place / "f"),
            "--data",
            str(scene / "data"),
        ]
        argv = drawn.choice(
            [["pretrain", "--resume", "--run-dir", str(run)], ["finetune", "--encoder", str(run), *few]]
        )
    return f"{damage.__name__} {target.relative_to(place)}, {argv[0]}", argv


def tries(arguments: Arguments, scene: Path) -> Iterator[Outcome]:
    """Runs the drawn damages."""
    drawn = random.Random(arguments.seed)
    for index in range(arguments.tries):
        place = scene / f"try-{index}"
        place.mkdir()
        kind = drawn.choice(["image", "image", "label", "run", "run"])
        if kind == "image":
            name, argv = image_try(place, drawn)
        else:
            name, argv = (label_try if kind == "label" else run_try)(place, scene, drawn)
        outcome = forked(f"{index}: {name}", argv)
        if outcome.fault is None and outcome.code == 0 and (weights := _not_finite(place / "r", place / "f")):
            outcome = dataclasses.replace(outcome, fault=f"{weights} is not finite")
        yield outcome
        shutil.rmtree(place, ignore_errors=True)


def _not_finite(*runs: Path) -> Path | None:
    """A file of weights of newly written runs with a value that is not finite."""
    from safetensors.numpy import load_file

    for path in (path for run in runs for path in run.rglob("*.safetensors")):
        if not all(np.isfinite(value).all() for value in load_file(path).values()):
            return path
    return None


def main() -> None:
    """Runs the attack."""
    from ahm_gym import cli

    arguments = tyro.cli(Arguments)
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as name:
        scene = Path(name)
        build(scene)
        cli.main(["look", "--out", str(scene / "look"), str(scene / "data")])
        settings = [
            "--policies",
            "random",
            "--seeds",
            "1",
            "--labels",
            "2",
            "--tasks",
            "probe",
            "--pretrain-steps",
            "1",
        ]
        settings += [
            "--batch-size",
            "2",
            "--image-size",
            "32",
            "--jobs",
            "1",
            "--out",
            str(scene / "benchmark"),
        ]
        cli.main(["benchmark", "--data", str(scene / "data"), *settings])
        sys.exit(report(tries(arguments, scene), out))


if __name__ == "__main__":
    main()

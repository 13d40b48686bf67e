"""Damages files that programs read: images, labels, tables, and the files of a run, as disks and people do.

`python benchmarks/attacks/files.py --tries 300` draws a file and a damage, runs the command that reads it, and says
which did not end in success or one sentence. A finite, sensible result beside a note is a success; a traceback, a
hang, or weights that are not finite are not.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import nibabel
import numpy as np
import tyro
from scenes import build
from trying import Outcome, forked, report

Damage = Callable[[Path, random.Random], None]
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


def cut(path: Path, drawn: random.Random) -> None:
    """Cuts a file anywhere, as a full disk or a broken download does."""
    os.truncate(path, drawn.randrange(path.stat().st_size))


def flip(path: Path, drawn: random.Random) -> None:
    """Changes some bytes, more of them near the start, where the header is."""
    content = bytearray(path.read_bytes())
    for _ in range(drawn.randint(1, 12)):
        place = drawn.randrange(min(len(content), drawn.choice([64, 400, len(content)])))
        content[place] = drawn.choice([0, 255, drawn.randrange(256)])
    path.write_bytes(content)


def zeros(path: Path, drawn: random.Random) -> None:
    """Replaces a stretch by zeros, as after a loss of power."""
    content = bytearray(path.read_bytes())
    begin = drawn.randrange(len(content))
    end = min(len(content), begin + drawn.choice([16, 512, 4096]))
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def foreign(path: Path, drawn: random.Random) -> None:
    """Replaces the content by something else: text, a page of HTML, noise, another format."""
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    other = gzip.compress(b"\x5c\x01\x00\x00" + bytes(400))
    path.write_bytes(
        drawn.choice([page, pointer, other, drawn.randbytes(3000), b"", b"\n" * 10, b"PK\x03\x04"])
    )


def folder(path: Path, drawn: random.Random) -> None:
    """Puts something that is no file in its place."""
    path.unlink()
    kind = drawn.choice(["folder", "loop", "dangling", "pipe", "zero"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path, "dangling": "/nonexistent", "zero": "/dev/zero"}[kind])


def rewrite_json(path: Path, drawn: random.Random) -> None:
    """Changes a value somewhere in a JSON file, or its shape."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    index = drawn.randrange(len(lines))
    content = json.loads(lines[index])
    place, key = content, None
    while isinstance(place, (dict, list)) and place and (key is None or drawn.random() < 0.6):
        parent = place
        key = drawn.choice(list(place)) if isinstance(place, dict) else drawn.randrange(len(place))
        place = place[key]
    hostile = [
        None,
        -1,
        10**30,
        1e308,
        float("nan"),
        "",
        "1",
        "=1+1",
        "<script>",
        [],
        {},
        [[]] * 3,
        True,
        "../../x",
    ]
    if key is None or drawn.random() < 0.1:
        content = drawn.choice(hostile)
    elif drawn.random() < 0.3 and isinstance(parent, dict):
        del parent[key]
    else:
        parent[key] = drawn.choice(hostile)
    lines[index] = json.dumps(content)
    path.write_text("\n".join(lines))


def write_image(path: Path, drawn: random.Random) -> None:
    """Writes an image of the format that the name of the file asks for."""
    values = np.random.default_rng(drawn.randrange(1 << 30)).integers(0, 200, (40, 40), np.uint8)
    suffix = "".join(path.suffixes)
    if suffix.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(np.stack([values] * 6, -1), np.eye(4)), path)
    elif suffix in (".mha", ".nrrd"):
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([values] * 6)), str(path))
    elif suffix == ".dcm":
        import SimpleITK

        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values[None]), str(path))
    elif suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        np.savez(path, images=np.stack([values] * 8))
    elif suffix == ".gif":
        from PIL import Image

        Image.fromarray(values).save(path)
    else:
        cv2.imwrite(str(path), values)


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

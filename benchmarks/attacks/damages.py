"""Ways in which disks, downloads and people damage files, and small images to damage."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel
import numpy as np

Damage = Callable[[Path, random.Random], None]


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

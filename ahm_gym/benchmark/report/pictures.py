"""The pictures of a benchmark, small enough to embed in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ahm_gym.pretraining.policy_options import folder_name
from ahm_gym.runs.storage import file_name

BUDGET = 9_000_000
"""Limit for all pictures together, in bytes before base64, which adds a third."""
SIZES = ((1200, 12), (900, 12), (640, 8), (480, 6), (320, 4))
"""Largest width in pixels and largest number of steps per policy, tried in this order until pictures fit the budget."""

CRISP = 640
"""Width in pixels to which smaller pictures are enlarged, so that the edges of patches stay sharp."""


@dataclass(frozen=True)
class Picture:
    """A picture as a data URL, with its size in pixels."""

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Pictures:
    """The pictures of one policy on one data set."""

    masks: dict[int, Picture]
    """By training step, ascending."""
    segmentations: dict[int, Picture]
    """By number of labels, ascending."""


def read_pictures(out: Path, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Pictures]:
    """The pictures by data set and policy, for the pairs that have any."""
    paths = {pair: _paths(out / "pictures" / file_name(pair[0]) / folder_name(pair[1])) for pair in pairs}
    paths = {pair: found for pair, found in paths.items() if any(found)}
    result: dict[tuple[str, str], Pictures] = {}
    for width, num_steps in SIZES:
        result = {
            pair: Pictures(_encoded(_thinned(masks, num_steps), width), _encoded(segmentations, width))
            for pair, (masks, segmentations) in paths.items()
        }
        sources = (
            p.source for one in result.values() for p in (*one.masks.values(), *one.segmentations.values())
        )
        if sum(map(len, sources)) <= BUDGET * 4 / 3:
            break
    return result


def _paths(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    return _numbered(folder, "step-"), _numbered(folder, "segmentations-")


def _numbered(folder: Path, prefix: str) -> dict[int, Path]:
    found = {path.stem.removeprefix(prefix): path for path in folder.glob(f"{prefix}*.png")}
    return {int(number): found[number] for number in sorted(filter(str.isdecimal, found), key=int)}


def _thinned(paths: dict[int, Path], num: int) -> dict[int, Path]:
    """At most `num` of the pictures, evenly spaced, with the first and the last."""
    steps = list(paths)
    places = np.linspace(0, len(steps) - 1, min(num, len(steps))).round().astype(int)
    return {steps[place]: paths[steps[place]] for place in places}


def _encoded(paths: dict[int, Path], width: int) -> dict[int, Picture]:
    return {number: _picture(path, width) for number, path in paths.items()}


def _picture(path: Path, width: int) -> Picture:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if image.width > width:
        size = width, max(1, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    elif (factor := min(width, CRISP) // image.width) > 1:
        size = image.width * factor, image.height * factor
        image = image.resize(size, Image.Resampling.NEAREST)
    content = io.BytesIO()
    image.save(content, "WEBP", quality=82, method=4)
    text = base64.b64encode(content.getvalue()).decode()
    return Picture(f"data:image/webp;base64,{text}", image.width, image.height)

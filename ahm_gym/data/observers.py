"""Tells drawings of several observers, in folders that differ only by a number, from parts of one label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ahm_gym.data.few_values import a_few
from ahm_gym.data.formats import read_pixels
from ahm_gym.data.listing import Found
from ahm_gym.errors import InputError

SAME = 0.5
"""Mean share of the foreground of either of two labels that both show, from which they are drawings of the same."""


def in_numbered_folders(labels: Sequence[Found]) -> bool:
    """Whether labels have one name, and lie in folders that differ only by a number, such as `mask-0` and `mask-1`."""
    places = {label.parts for label in labels}
    plain = {tuple(re.sub(r"\d+", "#", part) for part in parts) for parts in places}
    return len(labels) == len(places) > 1 and len(plain) == len({label.stem for label in labels}) == 1


def show_the_same(scans: Sequence[Sequence[Found]]) -> bool:
    """Whether the labels of a few scans overlap as drawings of one thing do.

    Args:
        scans: the labels of each scan.
    """
    shares = []
    for labels in a_few(scans):
        first, *others = (_foreground(label.path) for label in labels)
        for other in others:
            if first is not None and other is not None and first.shape == other.shape:
                either = np.count_nonzero(first | other)
                shares += [np.count_nonzero(first & other) / either] if either else []
    return bool(shares) and float(np.mean(shares)) >= SAME


def _foreground(path: Path) -> np.ndarray | None:
    """Where a label is not 0; None if it cannot be read."""
    try:
        return read_pixels(path, is_label=True).array > 0
    except (InputError, OSError):
        return None

"""Pixels whose class nobody knows: they are stored with a value of their own, and counted nowhere."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional

IGNORED: int = 254
"""The value of ignored pixels in stored labels: neither a class, of which there are fewer, nor the 255 of a binary
mask, so that both may occur in one data set."""


KNOWN_SHARE: float = 0.05
"""Smallest share of the area of a patch, or of a pixel of a coarser grid, that must have a class for it to count."""


def is_counted(label: Integer[Tensor, "*size"]) -> Bool[Tensor, "*size"]:
    """Where a stored label has a class."""
    return label != IGNORED


def in_structure(label: Integer[Tensor, "*size"]) -> Bool[Tensor, "*size"]:
    """Where a stored label has a foreground class."""
    return (label > 0) & is_counted(label)


def areas(label: Integer[Tensor, "*size"], num_classes: int) -> Float[Tensor, "K1 *size"]:
    """0 or 1 for each class at every pixel, and behind the classes, in one channel more, for ignored pixels."""
    indices = torch.where(is_counted(label), label, num_classes).long()
    return functional.one_hot(indices, num_classes + 1).movedim(-1, 0).float()

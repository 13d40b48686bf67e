"""Sorts the rows of a matrix: in main memory with numpy, which is up to six times as fast as torch."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def sorting_order(values: Shaped[Tensor, "B L"], *, stable: bool = False) -> Int[Tensor, "B L"]:
    """Indices that sort each row in ascending order; if `stable`, equal values keep their order."""
    if values.device.type != "cpu":
        return values.argsort(dim=1, stable=stable)
    return torch.from_numpy(np.argsort(values.numpy(), axis=1, kind="stable" if stable else None))

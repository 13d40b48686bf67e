"""Makes torchvision importable if torch is a CPU build and torchvision was built for CUDA.

The import of such a torchvision fails: its compiled operators do not load, yet it registers Python
kernels for two of them. It succeeds once the two operators are defined; this package never calls
them. In a sound installation this module does nothing.
"""

from __future__ import annotations

import importlib
import sys

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

library: torch.library.Library | None = None
"""Kept alive, because the definitions last only as long as this object."""


def repair_torchvision() -> None:
    """Makes torchvision importable; does nothing if it already is."""
    global library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + SCHEMA)
        importlib.import_module("torchvision")


repair_torchvision()

"""A CPU build of torch beside a torchvision that was built for CUDA.

Such a torchvision cannot be imported: its compiled operators do not load, and it registers Python
kernels for two of them all the same. Defining the two operators first lets it import; nothing here
calls them. On a sound installation this module does nothing.
"""

from __future__ import annotations

import importlib
import sys

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

library: torch.library.Library | None = None
"""Kept alive: the definitions end with it."""


def repair_torchvision() -> None:
    """Makes torchvision importable; does nothing where it already is."""
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

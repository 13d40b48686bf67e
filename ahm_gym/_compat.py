"""Makes libraries importable where they are not: torchvision beside another torch, MONAI without the name of a user.

If torch is a CPU build and torchvision was built for CUDA, the import of torchvision fails: its compiled operators do
not load, yet it registers Python kernels for two of them. It succeeds once the two operators are defined; this package
never calls them. MONAI and torch's compiler ask for the name of the user, whom a container started with a foreign user
id does not know. Where all is sound, this module does nothing.
"""

from __future__ import annotations

import getpass
import importlib
import os
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


def name_user() -> None:
    """Gives the user a name in the environment if neither it nor the list of users has one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = f"user{os.getuid()}"


repair_torchvision()
name_user()

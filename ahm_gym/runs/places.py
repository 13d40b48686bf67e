"""What `~` stands for, also for a user without a home folder, as in a container with a foreign user id."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ahm_gym.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")

FOLDERS_AS_TEXT: tuple[str, ...] = ("encoder",)
"""Settings that are texts and name a folder; data and its folders are expanded where they are looked up."""


def home_folder() -> Path | None:
    """The user's home folder; None if neither HOME nor the list of users names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder in place of a leading `~`.

    Raises:
        InputError: if there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"the ~ in {path} stands for a home folder that is not known: write out the path, or set HOME."
        ) from error


def with_homes(config: Config) -> Config:
    """The settings, nested ones included, with the home folder in place of a leading `~` in every path."""
    return replace(
        config,
        **{item.name: _with_home(item.name, getattr(config, item.name)) for item in fields(config)},
    )


def _with_home(name: str, value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return with_homes(value)
    if isinstance(value, tuple):
        return tuple(_with_home(name, item) for item in value)
    if isinstance(value, Path):
        return expanded(value)
    return str(expanded(value)) if name in FOLDERS_AS_TEXT and isinstance(value, str) else value

"""Agents and mask policies of installed packages, found by their entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ahm_gym.errors import InputError, unknown_name


def with_installed(group: str, own: Mapping[str, str]) -> dict[str, EntryPoint]:
    """Name to where it is imported from: our own names, then those that installed packages add.

    Our own win: what a run calls `random` never depends on what else is installed.
    """
    installed = {entry.name: entry for entry in entry_points(group=group)}
    return {name: EntryPoint(name, value, group) for name, value in own.items()} | {
        name: entry for name, entry in sorted(installed.items()) if name not in own
    }


def load(kind: str, name: str, table: Mapping[str, EntryPoint]) -> Any:
    """The class or function of that name, imported.

    Raises:
        InputError: for an unknown name, with the nearest one; for a name that two packages give, or one
            whose package cannot be imported.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    entry = table[name]
    if entry.dist is None:
        return entry.load()
    packages = sorted({e.dist.name for e in entry_points(group=entry.group, name=name) if e.dist})
    if len(packages) > 1:
        raise InputError(
            f"the {kind} {name!r} comes from several packages, {' and '.join(packages)}: uninstall all but one."
        )
    try:
        return entry.load()
    except Exception as error:
        raise InputError(
            f"the {kind} {name!r} of the package {entry.dist.name} {entry.dist.version} cannot be imported from "
            f"{entry.value} ({type(error).__name__}: {error}): repair the package or uninstall it."
        ) from error

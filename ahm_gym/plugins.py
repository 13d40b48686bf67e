"""Finds the agents and mask policies of installed packages by their entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ahm_gym.errors import InputError, unknown_name


def with_installed(group: str, own: Mapping[str, str]) -> dict[str, EntryPoint]:
    """The entry point of every name: first the built-in names, then those that installed packages add.

    A built-in name wins, so that `random` in a run never depends on what else is installed.

    Args:
        group: group of the entry points, such as `ahm_gym.agents`.
        own: the built-in names and where each is imported from, as `module:attribute`.
    """
    installed = {entry.name: entry for entry in entry_points(group=group)}
    return {name: EntryPoint(name, value, group) for name, value in own.items()} | {
        name: entry for name, entry in sorted(installed.items()) if name not in own
    }


def load(kind: str, name: str, table: Mapping[str, EntryPoint]) -> Any:
    """Imports the class or function with that name.

    Args:
        kind: what the name stands for, such as "agent", for messages.
        name: a key of `table`.
        table: entry points by name, from `with_installed`.

    Raises:
        InputError: if the name is unknown, several packages define it, or its package cannot be imported.
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

"""Settings of the programs, and what a resumed run keeps of them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ahm_gym.errors import InputError

Config = TypeVar("Config")

def flags_in(argv: list[str]) -> set[str]:
    """Names of the settings that a command line gives by their flags."""
    names = {
        argument.lstrip("-").partition("=")[0].replace("-", "_") for argument in argv if argument[:2] == "--"
    }
    return names | {name.removeprefix("no_") for name in names}


def merge_resumed(config: Config, saved: dict[str, Any], program: str, given: Container[str] = ()) -> Config:
    """The settings of a saved run; whatever was given besides must agree with them.

    Args:
        config: the settings that were asked for, defaults where nothing was given.
        saved: what the run's `config.json` holds.
        program: pretrain or segment, for the message.
        given: names of settings that were given although they may be defaults.

    Raises:
        InputError: where a setting was given that the run does not have.
    """
    values: dict[str, Any] = {}
    for item in fields(config):  # pyright: ignore[reportArgumentType]
        asked = getattr(config, item.name)
        if item.name == "run_dir" or item.name not in saved:
            continue
        kept = _restored(saved[item.name], str(item.type))
        counts = item.name in given or _same(asked) != _same(item.default)
        if counts and _same(asked) != _same(kept):
            why = (
                "its schedule was laid out for that length"
                if item.name == "steps"
                else "it keeps its settings"
            )
            raise InputError(
                f"--{item.name.replace('_', '-')} {_plain(asked)} differs from the {_plain(kept)} that this run was "
                f"started with, and {why}: leave the flag out, or {program} into a new --run-dir."
            )
        values[item.name] = kept
    return replace(config, **values)  # pyright: ignore[reportArgumentType]


def to_json(config: Any) -> dict[str, Any]:
    """The settings as JSON values, paths absolute, so that a run goes on from any folder."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    return {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in values.items()}


def _restored(value: Any, annotation: str) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return Path(value) if value is not None and "Path" in annotation else value


def _same(value: Any) -> Any:
    """One number for a size means a square."""
    return value * 2 if isinstance(value, tuple) and len(value) == 1 else value


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""The settings of a program as JSON, and what a resumed run keeps of them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ahm_gym.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")


def as_config(kind: type[Config], settings: Any) -> Config:
    """The settings as an instance of this base class of theirs."""
    return kind(**{item.name: getattr(settings, item.name) for item in fields(kind)})


def to_json(config: DataclassInstance) -> dict[str, Any]:
    """The settings as JSON values, paths absolute, so that a run goes on from any folder."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    absolute = {name: value.absolute() for name, value in values.items() if isinstance(value, Path)}
    return _adapter(type(config)).dump_python(replace(config, **absolute), mode="json")


def from_json(kind: type[Config], values: dict[str, Any], source: str) -> Config:
    """The settings from JSON values; missing ones have their defaults, and unknown ones are ignored.

    Raises:
        InputError: where a value has the wrong type; `source` says where the values come from.
    """
    import pydantic

    try:
        return _adapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        raise InputError(
            f"`{name}` in {source} is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}."
        ) from error


def merge_resumed(config: Config, saved: dict[str, Any], given: Container[str] = ()) -> Config:
    """The settings of a saved run; any that were given besides must agree with them.

    Args:
        config: the settings that were asked for, defaults where nothing was given.
        saved: what the run's `config.json` holds.
        given: names of settings that were given although they may be defaults.

    Raises:
        InputError: for a setting that differs from that of the run.
    """
    kept = from_json(type(config), saved, "the settings of this run")
    for item in fields(config):
        name, asked, own = item.name, getattr(config, item.name), getattr(kept, item.name)
        if name == "run_dir" or name not in saved:
            continue
        if (name in given or _same(asked) != _same(item.default)) and _same(asked) != _same(own):
            why = "its schedule was laid out for that length" if name == "steps" else "it keeps its settings"
            raise InputError(
                f"`{name}={_plain(asked)}` differs from the {_plain(own)} that this run was started with, and "
                f"{why}: leave it out, or start a new run in another `run_dir`."
            )
    unsaved = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in saved}
    return replace(kept, **{"run_dir": getattr(config, "run_dir"), **unsaved})  # noqa: B009


def _adapter(kind: type[Any]) -> Any:
    import pydantic  # only a program that runs needs it

    return pydantic.TypeAdapter(kind)


def _same(value: Any) -> Any:
    """One number for a size means a square."""
    value = list(value) if isinstance(value, (tuple, list)) else value
    return value * 2 if isinstance(value, list) and len(value) == 1 else value


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

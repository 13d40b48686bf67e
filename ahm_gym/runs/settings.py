"""Converts the settings of a program to JSON and back, and merges those of a resumed run."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic

from ahm_gym.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")


def as_config(kind: type[Config], settings: Any) -> Config:
    """Converts settings, nested ones included, to `kind`, a base class of theirs that can be pickled."""
    values = {item.name: getattr(settings, item.name) for item in fields(kind)}
    nested: dict[str, Any] = {
        item.name: type(item.default) for item in fields(kind) if is_dataclass(item.default)
    }
    return kind(**values | {name: as_config(base, values[name]) for name, base in nested.items()})


def to_json(config: DataclassInstance) -> dict[str, Any]:
    """The settings as JSON values. Paths become absolute, so that a run can resume from any folder."""
    return pydantic.TypeAdapter(type(config)).dump_python(_with_absolute_paths(config), mode="json")


def flattened(settings: dict[str, Any], nested: Container[str]) -> dict[str, Any]:
    """The settings with those in objects named `nested` under names such as `pretrain.steps`."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        inside = name in nested and isinstance(value, dict)
        values |= {f"{name}.{key}": item for key, item in value.items()} if inside else {name: value}
    return values


def _with_absolute_paths(config: Any) -> Any:
    """The settings, nested ones included, with absolute paths."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    absolute = {name: value.absolute() for name, value in values.items() if isinstance(value, Path)}
    nested = {name: _with_absolute_paths(value) for name, value in values.items() if is_dataclass(value)}
    return replace(config, **absolute, **nested)


def from_json(kind: type[Config], values: dict[str, Any], source: str) -> Config:
    """Restores settings from JSON values; missing ones get their defaults, and unknown ones are ignored.

    Args:
        kind: the class of the settings.
        values: the settings by name.
        source: where the values come from, for the message.

    Raises:
        InputError: if a value has the wrong type.
    """
    try:
        content = json.dumps(values)
    except TypeError as error:
        raise InputError(f"a value in {source} is no number, text or list ({error}): choose one.") from error
    try:
        # As JSON, so that lists may be tuples and texts paths, but no text a number.
        return pydantic.TypeAdapter(kind).validate_json(content, strict=True)
    except pydantic.ValidationError as error:
        raise _wrong_type(error, values, source) from error


REQUIRED = ("steps", "seed", "data", "batch_size", "image_size")
"""Settings that every run has saved: without them it could not be resumed as it was."""
MOVABLE = ("data", "data_root", "ray")
"""Settings that may be given anew: a digest shows whether the images are the same, and workers run anywhere."""
EXPECTED: dict[str, tuple[str, str]] = {
    "int": ("a whole number", "whole numbers"),
    "float": ("a number", "numbers"),
    "bool": ("true or false", "truth values"),
    "string": ("text", "texts"),
    "path": ("a path", "paths"),
    "tuple": ("a list", "lists"),
    "dataclass": ("settings by name", "settings by name"),
    "finite": ("a finite number", "finite numbers"),
    "missing": ("more values", "more values"),
    "too": ("fewer values", "fewer values"),
}
"""What a message calls a value, and several of them, by the first word of pydantic's type of error."""


def _wrong_type(error: pydantic.ValidationError, values: dict[str, Any], source: str) -> InputError:
    """The error for the first setting of the wrong type. A setting of several types has an error for each."""
    found = error.errors()
    places = [_place(item["loc"], values) for item in found]
    names, value = places[0]
    expected: dict[str, None] = {}
    for item, place in zip(found, places, strict=True):
        if place[0] == names:
            one, several = EXPECTED.get(item["type"].partition("_")[0], (item["msg"], item["msg"]))
            in_list = isinstance(item["loc"][-1], int)
            expected[f"a list of {several}" if in_list else one] = None
    return InputError(f"`{'.'.join(names)}` in {source} is {value!r}: expected {' or '.join(expected)}.")


def _place(location: tuple[int | str, ...], values: dict[str, Any]) -> tuple[list[str], Any]:
    """The names that lead to a setting, which may be nested, and its value."""
    names: list[str] = []
    value: Any = values
    for part in location:
        if not isinstance(value, dict) or part not in value:
            break
        names.append(str(part))
        value = value[part]
    return names, value


def merge_resumed(config: Config, saved: dict[str, Any], given: Container[str] = ()) -> Config:
    """The settings of a saved run. Settings that were given again must agree with them, but data may have moved.

    Args:
        config: the settings that were given, with defaults for the others.
        saved: the content of the run's `config.json`.
        given: names of settings that were given, even if they equal the default.

    Raises:
        InputError: if a given setting differs from that of the run, or a saved one has the wrong type.
    """
    for name in REQUIRED:
        if name not in saved:
            raise InputError(f"`{name}` is missing in the settings of this run: restore its config.json.")
    kept = from_json(type(config), saved, "the settings of this run")
    movable = MOVABLE if "data_digest" in saved else ()
    moved: dict[str, Any] = {}
    for item in fields(config):
        name, asked, own = item.name, getattr(config, item.name), getattr(kept, item.name)
        if name == "run_dir" or name not in saved:
            continue
        if (name in given or not same(asked, item.default)) and not same(asked, own):
            if name in movable:
                moved[name] = asked
                continue
            why = "its schedule depends on that length" if name == "steps" else "a run keeps its settings"
            raise InputError(
                f"`{name}={_plain(asked)}` differs from the {_plain(own)} that this run was started with, and "
                f"{why}: leave it out, or start a new run in another `run_dir`."
            )
    unsaved = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in saved}
    return replace(kept, **{"run_dir": getattr(config, "run_dir"), **unsaved, **moved})  # noqa: B009


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are equal; a size of one number is that of a square."""
    if isinstance(one, (tuple, list)) or isinstance(other, (tuple, list)):
        first, second = (list(v) if isinstance(v, (tuple, list)) else [v] for v in (one, other))
        return (first * 2 if len(first) == 1 else first) == (second * 2 if len(second) == 1 else second)
    return one == other


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

"""Reads JSON files against a schema: whatever is wrong in one is said in a sentence with its file and its key."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ahm_gym.errors import InputError, is_out_of_memory

MAX_BYTES: int = 1 << 26
"""Largest size of a JSON file that is read; those of this package stay below a hundredth of it."""

Kind = TypeVar("Kind")


class Schema(BaseModel):
    """The keys that a file must have, with their types; others are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        strict=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )


RESTORE: str = "restore the file"
"""The way out for a file that this package has written."""


def refuse_devices(path: Path) -> None:
    """Raises InputError if a path leads to something that is neither a file nor missing; a device may never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a folder, a device or a pipe: restore the file.")


def read_json(path: Path, way_out: str = RESTORE) -> Any:
    """The content of a JSON file; `way_out` is what to do about a wrong one, for messages.

    Raises:
        InputError: if the file is missing, no file, too large, not JSON, or nested too deeply.
    """
    try:
        refuse_devices(path)
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB: {way_out}.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {way_out}.") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply: {way_out}.") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): {way_out}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: as `read_json`, or if the file holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings by name: restore the file.")
    return content


def checked(kind: type[Kind], content: Any, source: Path, way_out: str = RESTORE) -> Kind:
    """The content of a file as `kind`, a `Schema` or another type that pydantic knows.

    Raises:
        InputError: if a key is missing or has the wrong type; the message names it, the file and `way_out`.
    """
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        # A value of several types has an error for each; that of a check of ours says most.
        first = min(error.errors(include_url=False), key=lambda item: item["type"] != "value_error")
        # pydantic also names the types that it tried, such as tuple[str, ...].
        key = ".".join(str(part) for part in first["loc"] if "[" not in str(part)) or "the content"
        if first["type"] == "missing":
            raise InputError(f"`{key}` is missing in {source}: {way_out}.") from error
        expected = first["msg"][0].lower() + first["msg"][1:]
        if first["type"] == "value_error":
            own = expected.removeprefix("value error, ")
            raise InputError(f"{source} cannot be used, because {own}: {way_out}.") from error
        raise InputError(
            f"`{key}` in {source} is {shortened(first['input'])} ({expected}): {way_out}."
        ) from error


@functools.cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def shortened(value: Any) -> str:
    """A value as text of at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}\u2026"


@contextlib.contextmanager
def fits(source: Path) -> Iterator[None]:
    """Turns the failure to use state that was read from `source` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{source} does not fit this run ({reason.rstrip(':')}): restore it, or start again in another `run_dir`."
        ) from error

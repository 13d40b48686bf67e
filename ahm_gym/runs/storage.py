"""Atomic writes of files and folders, and nested state on disk without pickle."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ahm_gym.errors import InputError, RunError
from ahm_gym.runs.schema import checked, read_json

LOCK: str = ".lock"
"""Name of the file by which one program keeps others from writing into a folder."""


def file_name(text: str) -> str:
    """Turns text, such as the name of a policy, into a valid name of a file or folder."""
    return re.sub(r"[^\w.-]+", "-", text)


def make_folder(path: Path, flag: str) -> None:
    """Creates a folder and its parents if they are missing.

    Args:
        path: the folder.
        flag: the setting that named it, for the message.

    Raises:
        InputError: if it cannot be created.
        OSError: if the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(f"{path} cannot be created ({error.strerror}): choose another {flag}.") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that readers see either the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replaces a folder by a new one; `write` gets the empty folder and fills it.

    The new folder is complete on disk before it replaces the old one. If the write fails, the old folder
    stays. After a crash, `recover_folder` restores it.
    """
    recover_folder(path)
    temporary, old = _beside(path)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for item in [*temporary.rglob("*"), temporary]:
            if (
                item.is_file()
            ):  # safetensors lets nobody else read; the folder has the mode that the umask asks for
                item.chmod(temporary.stat().st_mode & 0o666)
            sync(item)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if os.path.lexists(path):
        os.rename(path, old)
    os.rename(temporary, path)
    sync(path.parent)
    remove(old)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other programs from writing into a folder. The lock ends with this program, even if it is killed.

    Raises:
        InputError: if another program is writing into the folder.
    """
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"another program is at work in {folder}: wait for it, stop it, or choose another folder."
        ) from error
    with lock:
        yield


def recover_folder(path: Path) -> None:
    """Restores the old folder if `replace_folder` crashed before the new one was there; removes leftovers."""
    temporary, old = _beside(path)
    if os.path.lexists(old) and not os.path.lexists(path):
        os.rename(old, path)
    for leftover in (temporary, old):
        remove(leftover)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there. Of a symbolic link, only the link goes."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def recover_all(folder: Path) -> None:
    """Cleans up after crashes in a folder: restores its subfolders and removes temporary files."""
    for leftover in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
        if leftover.is_file() and not leftover.is_symlink():
            leftover.unlink()
        else:
            recover_folder(folder / leftover.name[1:-4])


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")


def sync(path: Path) -> None:
    """Waits until a file, or the list of files in a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_state(folder: Path, state: dict[Any, Any]) -> None:
    """Writes nested state as `state.json` and its tensors as `state.safetensors`.

    Args:
        folder: created if it is missing.
        state: dicts, lists and tuples of tensors, arrays, numbers, strings and None.

    Raises:
        TypeError: if a value has another type; the message names its place in `state`.
        OSError: if the files cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    content = json.dumps(_encode(state, "state", tensors), allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "state.safetensors"
    with as_os_error(path):
        save_file(_unshared(tensors), path)
    sync(path)
    write_atomically(folder / "state.json", content)


@contextlib.contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """Turns an error of safetensors into the OSError that caused it, such as a full disk."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def load_state(folder: Path) -> dict[Any, Any]:
    """Loads a state that `save_state` wrote, with its tensors in main memory.

    Raises:
        InputError: if a file is missing or damaged.
    """
    try:
        tensors = load_file(folder / "state.safetensors")
        return checked(dict, _decode(read_json(folder / "state.json"), tensors), folder / "state.json")
    except (
        OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise InputError(
            f"{folder} holds no readable state ({error}): restore its state.json and state.safetensors, "
            "or start again in another `run_dir`."
        ) from error


def check_loaded(weights: Mapping[str, Tensor], source: Path) -> None:
    """Raises InputError if weights that were read from `source` are not all finite."""
    if name := _not_finite(weights):
        raise InputError(
            f"the weights in {source} are not finite, first in {name}: restore the file, or choose another run."
        )


def check_trained(weights: Mapping[str, Tensor], step: int) -> None:
    """Raises RunError if weights that are to be saved after update `step` are not all finite."""
    if name := _not_finite(weights):
        raise RunError(
            f"the weights are not finite after step {step}, first in {name}: lower `learning_rate`; the last "
            "checkpoint is good."
        )


def _not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    return next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Converts a value to JSON and stores its tensors in `tensors` under their place."""
    if isinstance(value, Tensor):
        return {"tensor": _put(value.detach(), place, tensors)}
    if isinstance(value, (np.ndarray, np.generic)):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: _put(torch.from_numpy(np.array(value, order="C")), place, tensors)}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {"dict": {key: _encode(item, f"{place}/{key}", tensors) for key, item in value.items()}}
        items = value.items()
        return {
            "items": [[_encode(key, place, {}), _encode(v, f"{place}/{key}", tensors)] for key, v in items]
        }
    if isinstance(value, (list, tuple)):
        encoded = [_encode(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return encoded if isinstance(value, list) else {"tuple": encoded}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}: save tensors, arrays, numbers, strings and None.")


def _put(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> str:
    """Stores the tensor under a unique name, even if keys contain slashes, and returns the name."""
    name = place
    while name in tensors:
        name += "'"
    tensors[name] = tensor
    return name


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies the tensors to main memory, each with its own storage, as safetensors requires."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        kept = tensor.cpu().contiguous()
        if kept.untyped_storage().data_ptr() in seen:
            kept = kept.clone()
        seen.add(kept.untyped_storage().data_ptr())
        result[name] = kept
    return result


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("array", "scalar"):
        array = tensors[content].numpy().copy()
        return array if kind == "array" else array[()]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content.items()}
    if kind == "items":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return float(content)

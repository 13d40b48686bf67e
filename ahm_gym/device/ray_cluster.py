"""A Ray cluster (extra `ray`): one that runs already, or one of this machine alone, which ends with its context."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

from ahm_gym.device.signals import handlers_kept
from ahm_gym.errors import InputError, RunError, load_package, say

LOCAL: str = "local"
"""The address that starts Ray on this machine."""
STORE: int = 200_000_000
"""Bytes of shared memory in which Ray on this machine keeps weights and gradients on their way; large models get
more."""
LONGEST: int = 40
"""Longest path of Ray's temporary folder, since those of the sockets inside may have 107 characters."""


def ray_library() -> Any:
    """The package ray.

    Raises:
        InputError: if it is not installed.
    """
    return load_package("ray", "`ray` needs the package ray", "ray", ", or leave it out")


@contextlib.contextmanager
def connected(address: str, num_workers: int, message: int) -> Iterator[Any]:
    """Yields the package ray, connected to a cluster; closes the connection, or ends Ray on this machine.

    Ray on this machine sends no usage statistics, has no dashboard, and leaves no files behind unless this process is
    killed; then its processes end by themselves. It runs `num_workers` workers even if there are fewer CPUs.

    Args:
        address: address of a cluster as `ray.init` takes it, or local.
        num_workers: number of workers, each of which takes one CPU.
        message: bytes of the weights, which travel to every worker and, as gradients, back.

    Raises:
        InputError: if ray is not installed, or this process uses it already.
        RunError: if no cluster answers, or Ray does not start.
    """
    ray = ray_library()
    if ray.is_initialized():
        raise InputError(
            "`ray` starts or joins a cluster, and this process uses Ray already: call ray.shutdown()."
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(address))
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address == LOCAL:
            options |= {
                "num_cpus": num_workers,
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": max(STORE, (2 * num_workers + 2) * message),
                "_temp_dir": stack.enter_context(_temporary_folder()),
            }
        stack.callback(ray.shutdown)
        try:
            with handlers_kept(signal.SIGINT, signal.SIGTERM):  # `ray.init` replaces them
                ray.init(address=address, **options)
        except Exception as error:
            where = (
                "Ray does not start on this machine" if address == LOCAL else "no Ray cluster answers there"
            )
            raise RunError(
                f"`ray={address}`: {where} ({' '.join(str(error).split())[:300]}): start one with `ray start`, or name "
                "another, and continue with `resume`."
            ) from error
        room = int(ray.cluster_resources().get("CPU", 0))
        if room < num_workers:
            say(
                f"note: the cluster has {room} CPUs for {num_workers} workers: the others start once there are more."
            )
        yield ray


@functools.cache
def _password() -> str:
    """What Ray on this machine asks of those who connect. Ray reads it only once in a process."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _environment(address: str) -> Iterator[None]:
    """Sets variables that Ray reads: no statistics, and on this machine a password, else it writes one to ~/.ray.

    Ray sets RAY_AUTH_MODE itself. Afterwards all are as they were.
    """
    wanted = {"RAY_USAGE_STATS_ENABLED": "0"}
    if (
        address == LOCAL
        and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    ):
        wanted["RAY_AUTH_TOKEN"] = _password()
    before = {name: os.environ.get(name) for name in (*wanted, "RAY_AUTH_MODE")}
    logger = logging.getLogger("ray")
    level = logger.level
    os.environ.update(wanted)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder for the logs and sockets of Ray on this machine."""
    parent = tempfile.gettempdir()
    path = tempfile.mkdtemp(prefix="ahm-ray-", dir=parent if len(parent) + 17 <= LONGEST else "/tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)

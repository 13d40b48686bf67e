"""Worker processes: each acts in an environment of its own and updates the shared weights."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from gymnasium.vector import VectorEnv
from torch import multiprocessing

from ahm_gym.agents.base import Callback, Metrics
from ahm_gym.errors import RunError

if TYPE_CHECKING:
    from ahm_gym.agents.a3c import A3C


def run_workers(
    agent: A3C,
    make_env: Callable[[], VectorEnv],
    num_steps: int,
    *,
    seed: int | None,
    callback: Callback | None,
) -> None:
    """Runs the agent's workers until the autoencoder had `num_steps` more updates.

    Raises:
        RunError: with the worker's traceback where one raises, with its exit code where one dies.
    """
    context = multiprocessing.get_context("spawn")
    agent.share_memory(context.Lock())
    claimed = context.Value("q", 0)
    stop = context.Event()
    reader, writer = context.Pipe(duplex=False)
    write_lock = context.Lock()
    arguments = (agent, make_env, num_steps, seed, claimed, stop, writer, write_lock, os.getpid())
    workers = multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
        _work, arguments, nprocs=agent.num_workers, join=False, daemon=True
    )
    writer.close()
    try:
        _watch(workers, reader, stop, callback)
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
        raise RunError(
            f"worker {error.error_index} of {agent.num_workers} ended the run; go on from the last checkpoint with "
            f"--resume. {error}"
        ) from error
    finally:
        for process in workers.processes:
            if process.is_alive():
                process.kill()
            process.join()
        reader.close()


def _watch(workers: Any, reader: Any, stop: Any, callback: Callback | None) -> None:
    """Hands the workers' metrics to the callback until all have ended."""
    done = False
    while not done:
        done = workers.join(timeout=0.05)
        while (metrics := _receive(reader)) is not None:
            if callback is not None and not stop.is_set() and callback(metrics):
                stop.set()


def _receive(reader: Any) -> Metrics | None:
    try:
        return reader.recv() if reader.poll() else None
    except EOFError:  # every worker has closed its end
        return None


def _work(
    rank: int,
    agent: A3C,
    make_env: Callable[[], VectorEnv],
    num_steps: int,
    seed: int | None,
    claimed: Any,
    stop: Any,
    writer: Any,
    write_lock: Any,
    parent: int,
) -> None:
    """One worker: claims an update, plays and learns, reports; until all updates are claimed."""
    from ahm_gym.agents.a3c import Learner

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    worker_seed = 1_000_003 * (rank + 1) + (int(agent.writes) if seed is None else seed)
    learner = Learner(agent, copy.deepcopy(agent.network), make_env(), torch.Generator(), worker_seed)
    while not stop.is_set() and os.getppid() == parent:
        with claimed.get_lock():
            if claimed.value >= num_steps:
                break
            claimed.value += 1
        metrics = learner.episode()
        with write_lock:
            writer.send(metrics)
    learner.env.close()

"""Runs functions in several processes, as torchrun would start them, but forked: they import nothing again."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import TCPStore

from ahm_gym.device import ranks


def in_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns in every rank; fails with the traceback of a rank that raises."""
    context = multiprocessing.get_context("fork")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # of torchrun's agent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside a thread that watches the clock
        pipes, processes = [], []
        for rank in range(size):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(writer, rank, size, store.port, function, arguments))
            process.start()
            writer.close()
            pipes.append(reader)
            processes.append(process)
    try:
        return [_answer(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answer(pipe: Any) -> Any:
    assert pipe.poll(120), "a rank is silent"
    fine, answer = pipe.recv()
    assert fine, answer
    return answer


def _work(
    pipe: Any, rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    try:
        with ranks.started():
            pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))

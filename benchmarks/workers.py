"""Measures images per second of A3C with one and more workers, one thread each.

`python benchmarks/workers.py` pretrains the tiny preset at 64 px on random images. The rate of a run is that of its
second half, when all workers are running; runs are interleaved. The last line is JSON.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro

from ahm_gym.agents.a3c import A3C
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

BATCH = 64


@dataclass(frozen=True)
class Arguments:
    """Measure how asynchronous workers scale."""

    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers; the first is the one to compare with."""
    updates: int = 160
    """Updates of the autoencoder in a run."""
    rounds: int = 3
    """Runs with each number of workers."""


@dataclass(frozen=True)
class MakeEnv:
    """Makes the environment of a worker around the shared autoencoder."""

    pretrainer: Pretrainer
    shared: bool

    def __call__(self) -> MaskingVectorEnv:
        images = torch.randn(4 * BATCH, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        pretrainer = self.pretrainer.attach() if self.shared else self.pretrainer
        return MaskingVectorEnv(BATCH, data=images, pretrainer=pretrainer, guided_fraction=0.5)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    rates: dict[int, list[float]] = {number: [] for number in arguments.workers}
    for _ in range(arguments.rounds):
        for number in arguments.workers:
            rates[number].append(images_per_second(number, arguments.updates))
            print(f"{number} workers: {rates[number][-1]:.0f} images/s", flush=True)
    medians = {number: float(np.median(values)) for number, values in rates.items()}
    first = medians[arguments.workers[0]]
    print(json.dumps({f"{n}_over_{arguments.workers[0]}": round(m / first, 3) for n, m in medians.items()}))


def images_per_second(num_workers: int, updates: int) -> float:
    pretrainer = Pretrainer(build_autoencoder("tiny"), num_steps=updates)
    if num_workers > 1:
        pretrainer.share_memory(torch.multiprocessing.get_context("spawn").Lock())
    agent = A3C((64, 128), num_workers=num_workers)
    times: list[float] = []

    def note(metrics: dict[str, float]) -> bool:
        times.append(time.perf_counter())
        return False

    agent.learn(MakeEnv(pretrainer, num_workers > 1), updates, seed=0, callback=note)
    half = times[len(times) // 2 :]
    return (len(half) - 1) * BATCH / (half[-1] - half[0])


if __name__ == "__main__":
    main()

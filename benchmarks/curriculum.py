"""Measures what choosing between strategies of masking is worth: `AHM/Curriculum-v0` with fixed and chosen strategies.

`python benchmarks/curriculum.py --data hc18_128.npz` plays one episode, a whole pretraining run, for each seed with
every strategy alone, with a strategy drawn uniformly in each step (uniform), and with Thompson sampling (thompson). It
prints the mean loss of the held-out battery at the end, its difference to the strategy `random` with a 95 % interval
over seeds, negative if better, and which strategies Thompson sampling chose. All players of a seed start with the same
weights and see the same images in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from programs import interval

from ahm_gym.data import open_data
from ahm_gym.envs import CurriculumEnv
from ahm_gym.mixing.bandit import ThompsonSampling
from ahm_gym.mixing.strategies import STRATEGIES

NAMES = [strategy.name for strategy in STRATEGIES]


@dataclass(frozen=True)
class Arguments:
    """Every strategy alone, uniform choices and Thompson sampling in one environment."""

    data: str = "hc18_128.npz"
    """Images, as for ahm-gym pretrain, with at least 16 in the validation split."""
    steps: int = 600
    """Updates of an episode."""
    period: int = 10
    """Updates of a step, for which a choice stands."""
    batch_size: int = 16
    """Images in an update."""
    image_size: int = 64
    """Side of the images in pixels."""
    held_out: int = 16
    """Images of the battery."""
    seeds: int = 3
    """Seeds 0, 1, ..."""
    device: str = "cpu"
    """auto, cpu or cuda."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    size = (arguments.image_size, arguments.image_size)
    env = CurriculumEnv(
        data=open_data(arguments.data, image_size=size, need_labels=False),
        num_steps=arguments.steps,
        updates_per_step=arguments.period,
        batch_size=arguments.batch_size,
        image_size=size,
        held_out=arguments.held_out,
        device=arguments.device,
    )
    began = time.monotonic()
    losses: dict[str, list[float]] = {}
    shares: dict[str, list[np.ndarray]] = {}
    for seed in range(arguments.seeds):
        for player, play in players(seed).items():
            last = play(env, seed)
            losses.setdefault(player, []).append(last["battery_loss"])
            shares.setdefault(player, []).append(last["shares"])
    report(arguments, losses, shares, time.monotonic() - began)


Play = Callable[[CurriculumEnv, int], dict[str, Any]]
"""Plays an episode with this seed; returns the `info` of its last step."""


def players(seed: int) -> dict[str, Play]:
    """A new player of every kind."""
    rng = np.random.default_rng(seed)
    bandit = ThompsonSampling(len(NAMES), seed=seed)
    alone = {
        name: lambda env, seed, arm=arm: chosen(env, seed, lambda: arm) for arm, name in enumerate(NAMES)
    }
    return alone | {
        "uniform": lambda env, seed: chosen(env, seed, lambda: int(rng.integers(len(NAMES)))),
        "thompson": lambda env, seed: bandit.play(env, seed=seed)[-1],
    }


def chosen(env: CurriculumEnv, seed: int, choose: Callable[[], int]) -> dict[str, Any]:
    env.reset(seed=seed)
    while True:
        *_, terminated, _, info = env.step(choose())
        if terminated:
            return info


def report(
    arguments: Arguments, losses: dict[str, list[float]], shares: dict[str, list[np.ndarray]], seconds: float
) -> None:
    print(
        f"\n{arguments.data}, {arguments.steps} updates of {arguments.batch_size} images at {arguments.image_size} px, "
        f"{arguments.period} per choice, {arguments.seeds} seeds, {seconds:.0f} s"
    )
    print("| player | battery loss at the end | against random |")
    print("|---|---|---|")
    for player, own in losses.items():
        paired = [loss - random for loss, random in zip(own, losses["random"], strict=True)]
        listed = ", ".join(f"{loss:.4f}" for loss in own)
        print(f"| {player} | {np.mean(own):.4f} ({listed}) | {interval(paired)} |")
    mean = np.mean(shares["thompson"], axis=0)
    print(
        "\nShares of thompson: "
        + ", ".join(f"{name} {share:.2f}" for name, share in zip(NAMES, mean, strict=True))
    )


if __name__ == "__main__":
    main()

"""Compares the cost of AHM's agent with ours at the same shapes: 320 px, 16 px patches, batch 12, 75 % masked.

`python benchmarks/ahm_agent.py` measures a forward pass and an update of both agents, and whole steps: AHM's (agent,
forward pass of the frozen U-Net, rewards, update of the agent) and ours (A3C in the environment, with an update of a
ViT-S masked autoencoder). AHM's network is written from the paper's description. Steps are interleaved; the last line
is JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from gymnasium.vector import VectorEnv
from step_cost import interval, measure

from ahm_gym.agents.a3c import A3C
from ahm_gym.agents.ahm2025 import AHM2025
from ahm_gym.agents.learner import Learner
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder

IMAGE_SIZE, PATCH_SIZE, BATCH = 320, 16, 12


@dataclass(frozen=True)
class Arguments:
    """Measure the agents and whole steps in one run, and print ratios."""

    rounds: int = 20
    """Steps of each kind."""
    threads: int = 0
    """Threads of torch; 0 keeps its default."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {IMAGE_SIZE} px, batch {BATCH}")
    images = torch.randn(2 * BATCH, 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    theirs, their_step = published(images)
    ours, our_step = learned(images)
    kinds = {"AHM's agent": theirs, "our agent": ours, "AHM's step": their_step, "our step": our_step}
    seconds = measure(kinds, arguments.rounds, math.inf, torch.device("cpu"))
    for name, values in seconds.items():
        low, high = interval(np.median, values)
        print(f"  {name:12s} {1e3 * np.median(values):8.1f} ms  [{1e3 * low:.1f}, {1e3 * high:.1f}]")
    ratios = {}
    for part in ("agent", "step"):
        above, below = seconds[f"AHM's {part}"], seconds[f"our {part}"]
        low, high = interval(lambda a, b: np.median(a) / np.median(b), above, below)
        ratios[f"ahm_over_ours_{part}"] = round(float(np.median(above) / np.median(below)), 2)
        print(f"  {part}: {ratios[f'ahm_over_ours_{part}']}  [{low:.2f}, {high:.2f}]")
    print(json.dumps(ratios))


def published(images: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """AHM's agent alone, and its whole step with a frozen U-Net."""
    env = environment("unet", images, frozen=True, reward="ahm2025:20")
    autoencoder = env.pretrainer.autoencoder
    agent = AHM2025(
        (autoencoder.num_patches, autoencoder.dim),
        grid=autoencoder.grid,
        draws="top_k",
        critic="relu6",
    )
    return update_alone(agent, env), Learner(agent, agent.network, env, agent.generator, 0).episode


def learned(images: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """A3C alone, and the whole step with an update of the autoencoder."""
    env = environment("small", images, frozen=False, reward="relative")
    autoencoder = env.pretrainer.autoencoder
    agent = A3C((autoencoder.num_patches, autoencoder.dim), grid=autoencoder.grid)
    return update_alone(agent, env), Learner(agent, agent.network, env, agent.generator, 0).episode


def environment(model: str, images: torch.Tensor, *, frozen: bool, reward: str) -> MaskingVectorEnv:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    autoencoder = build_autoencoder(model, image_size=size, patch_size=PATCH_SIZE)
    pretrainer = Pretrainer(autoencoder, num_steps=10_000, frozen=frozen)
    return MaskingVectorEnv(BATCH, data=images, pretrainer=pretrainer, reward=reward)


def update_alone(agent: A3C, env: MaskingVectorEnv) -> Callable[[], object]:
    """Forward pass, loss, backward pass and update of the agent on one recorded step of the environment."""
    learner = Learner(agent, agent.network, Replay(env), agent.generator, 0)
    return learner.episode


class Replay(VectorEnv):
    """An environment that returns the same outcome at every step, at no cost."""

    def __init__(self, env: MaskingVectorEnv) -> None:
        self.metadata, self.num_envs = env.metadata, env.num_envs
        self.shown = env.reset(seed=0)
        self.outcome = env.step(env.action_space.sample())

    def reset(self, **options: object) -> tuple:
        return self.shown

    def step(self, actions: object) -> tuple:
        return self.outcome


if __name__ == "__main__":
    main()

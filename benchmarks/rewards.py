"""What the environment pays: random masks, masks near the oracle, and A3C, for each reward and guided share.

`python benchmarks/rewards.py` keeps finished cells in `--out` and prints a table. A policy near the oracle measures
what each patch pays under random masks of the same images, before every step and without an update. A reward is of use
if it pays the oracle clearly more than chance.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from ahm_gym.agents import make_agent
from ahm_gym.data import open_data
from ahm_gym.envs import REWARDS, MaskingVectorEnv
from ahm_gym.runs.storage import write_atomically

POLICIES = ("random", "near oracle", "a3c")
NUM_RANDOM = 12
"""Random masks of each image by which the oracle knows what a patch pays."""
NOISE = 3
"""Deviations of the measured payments for one of the oracle's scores, whose noise draws the patches."""


@dataclass(frozen=True)
class Arguments:
    """Measure what random masks, an oracle and A3C are paid."""

    data: str = "hc18_128.npz"
    """Images, as for ahm-gym pretrain."""
    rewards: tuple[str, ...] = tuple(REWARDS)
    """What a masked patch pays."""
    guided_fractions: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Shares of the masked patches that the policy chooses."""
    updates: int = 120
    """Updates of the autoencoder, of 16 images each."""
    seeds: int = 3
    """Seeds 0, 1, ..."""
    out: Path = Path("benchmarks/rewards")
    """Folder of `payments.jsonl`."""


class PaidEnv(MaskingVectorEnv):
    """An environment that keeps the mean reward of the guided patches of every step."""

    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        info = result[-1]
        rows = torch.as_tensor(info["paid"])
        reward, guided = (torch.as_tensor(info[name])[rows].float() for name in ("patch_reward", "guided"))
        self.payments.append(float((reward * guided).sum() / guided.sum()))
        return result

    payments: list[float]


def near_oracle(env: MaskingVectorEnv, generator: torch.Generator) -> np.ndarray:
    """Scores by the mean reward of each patch over random masks of the same images."""
    ranks = (
        torch.rand(NUM_RANDOM, env.num_envs, env.num_patches, generator=generator)
        .argsort(dim=2)
        .argsort(dim=2)
    )
    masked = ranks < env.num_masked
    paid = env.evaluate(masked).patch_reward.sum(axis=0) / masked.sum(dim=0).clamp(min=1).numpy()
    return (paid - paid.mean()) / (NOISE * paid.std() + 1e-9)


def payments(arguments: Arguments, reward: str, share: float, policy: str, seed: int) -> list[float]:
    """What the policy is paid, update by update."""
    size = (64, 64)
    dataset = open_data(arguments.data, image_size=size, need_labels=False)
    images = dataset.resized(dataset.indices("train"), size)
    torch.manual_seed(seed)
    env = PaidEnv(
        16,
        data=images,
        reward=reward,
        guided_fraction=share,
        patch_size=8,
        num_steps=arguments.updates,
        tensors=policy == "a3c",
    )
    env.payments = []
    if policy == "a3c":
        agent = make_agent("a3c", (env.num_patches, env.pretrainer.autoencoder.dim), grid=env.grid, seed=seed)
        agent.learn(lambda: env, arguments.updates, seed=seed)
        return env.payments
    env.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(arguments.updates):
        drawn = torch.rand(env.num_envs, env.num_patches, generator=generator).numpy() - 0.5
        env.step(near_oracle(env, generator) if policy == "near oracle" else drawn)
    return env.payments


def main() -> None:
    """Runs the cells that are missing and prints the table."""
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "payments.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    cells = itertools.product(range(arguments.seeds), arguments.rewards, arguments.guided_fractions, POLICIES)
    done = {tuple(row[name] for name in ("seed", "reward", "share", "policy")) for row in rows}
    for seed, reward, share, policy in cells:
        if (seed, reward, share, policy) in done:
            continue
        began = time.perf_counter()
        paid = payments(arguments, reward, share, policy, seed)
        row = {
            "seed": seed,
            "reward": reward,
            "share": share,
            "policy": policy,
            "data": Path(arguments.data).stem,
        }
        row |= {"paid": float(np.mean(paid)), "last_20": float(np.mean(paid[-20:])), "updates": len(paid)}
        rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
        write_atomically(path, "".join(json.dumps(one) + "\n" for one in rows))
        print(rows[-1], flush=True)
    print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean rewards over the seeds, with the lowest and the highest."""
    print(
        f"| reward | guided share | {' | '.join(POLICIES)} | a3c, last 20 updates |\n|---|---|---|---|---|---|"
    )
    for reward, share in dict.fromkeys((row["reward"], row["share"]) for row in rows):
        own = [row for row in rows if (row["reward"], row["share"]) == (reward, share)]
        shown = [spread([row["paid"] for row in own if row["policy"] == policy]) for policy in POLICIES]
        shown.append(spread([row["last_20"] for row in own if row["policy"] == "a3c"]))
        print(f"| {reward} | {share:g} | {' | '.join(shown)} |")


def spread(values: list[float]) -> str:
    """The mean, and the lowest and highest value."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "none"


if __name__ == "__main__":
    main()

"""Compares learning agents on the identity task, by its learning curves, on scans, and by the cost of a step.

`python benchmarks/agents.py` runs every part for every agent, task and seed, one thread each, keeps finished results
in `--out`, and prints tables. `--parts identity` (or curves, scans, cost, masking-steps) selects parts.
"""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from programs import interval, last_metric, pretrain

from ahm_gym.agents import make_agent
from ahm_gym.envs import MaskingVectorEnv, SequentialMaskingVectorEnv
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.pretraining.mask_source import read_options
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.runs.storage import write_atomically
from ahm_gym.testing import IdentityTask, SequentialIdentityTask, identity_task, solved


@dataclass(frozen=True)
class Arguments:
    """Compare learning agents under one budget."""

    parts: tuple[str, ...] = ("identity", "curves", "scans", "masking-steps", "cost")
    """Which tables to make."""
    agents: tuple[str, ...] = ("a3c", "ppo", "a2c", "sac", "td3", "dqn", "maskable_ppo")
    """Names in the table of agents; for curves NAME or NAME:OPTION=VALUE, such as a3c:credit=local."""
    data: tuple[str, ...] = ("hc18_128.npz", "hippocampus_128.npz")
    """Data sets, as for `ahm-gym pretrain`."""
    seeds: int = 3
    """Seeds 0, 1, ..."""
    steps: int = 500
    """Updates of the autoencoder on scans, with 32 images each."""
    jobs: int = 2
    """Runs on scans at the same time, one thread each; the other parts run one after another."""
    rounds: int = 3
    """Measurements of the cost of an update."""
    out: Path = Path("runs/agents")
    """Folder of finished parts."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables = {
        "identity": identity,
        "curves": curves,
        "scans": scans,
        "masking-steps": masking_steps,
        "cost": cost,
    }
    for part in arguments.parts:
        tables[part](arguments)


MOST_MASKS = 600
LEVELS = {
    "acting 80 %": ("acting", 0.8),
    "acting 95 %": ("acting", 0.95),
    "greedy 95 %": ("greedy", 0.95),
}


def identity(arguments: Arguments) -> None:
    """Environment steps and seconds of learning until the agent reaches each share of the best reward.

    Acting is the agent with its exploration while it learns, averaged over ten batches; greedy is its best guess on
    new images, measured every five batches.
    """
    print(f"\nidentity task, median over seeds: environment steps (seconds) to {', '.join(LEVELS)}")
    for name, num_patches in itertools.product(arguments.agents, (16, 64)):
        rows = [identity_run(arguments.out, name, num_patches, seed) for seed in range(arguments.seeds)]
        shown = []
        for level in LEVELS:
            reached = [row[level] for row in rows if row[level] is not None]
            if len(reached) < len(rows):
                shown.append(f"{len(reached)} of {len(rows)} seeds within {MOST_MASKS} batches")
            else:
                steps, seconds = np.median(reached, axis=0)
                shown.append(f"{steps:.0f} ({seconds:.1f} s)")
        print(f"| {name} | {num_patches} patches | {' | '.join(shown)} |", flush=True)


def identity_run(out: Path, name: str, num_patches: int, seed: int) -> dict[str, Any]:
    path = out / f"identity-{name}-{num_patches}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    agent = make_agent(name, (num_patches, 8), seed=seed)
    env = identity_task(agent, num_patches)
    steps_a_mask = env.num_envs * (env.num_targets if isinstance(env, SequentialIdentityTask) else 1)
    reached: dict[str, Any] = dict.fromkeys(LEVELS)
    rewards: list[float] = []
    looking, began = 0.0, time.perf_counter()

    def look(metrics: dict[str, float]) -> bool:
        nonlocal looking
        rewards.append(metrics["reward"])
        before = time.perf_counter()
        shares = {"acting": solved(env, float(np.mean(rewards[-10:]))), "greedy": 0.0}
        if len(rewards) % 5 == 0:
            shares["greedy"] = greedy(agent, identity_task(agent, num_patches, num_envs=128))
        for level, (kind, share) in LEVELS.items():
            if shares[kind] >= share and reached[level] is None:
                reached[level] = [len(rewards) * steps_a_mask, before - began - looking]
        looking += time.perf_counter() - before
        return None not in reached.values()

    agent.learn(lambda: env, MOST_MASKS, seed=seed, callback=look)
    write_atomically(path, json.dumps(reached))
    return reached


def greedy(agent: Any, env: IdentityTask) -> float:
    """The share of the best reward that the agent's best guess reaches on new images."""
    observation, _ = env.reset(seed=12345)
    ended, reward = False, np.zeros(1)
    while not ended:
        scores = agent.act(observation, deterministic=True).numpy()
        if isinstance(env, SequentialIdentityTask):
            scores = np.where(env.action_masks(), scores, -np.inf).argmax(axis=1)
        observation, reward, terminated, _, _ = env.step(scores)
        ended = bool(terminated.all())
    return solved(env, float(reward.mean()))


CURVE = (20, 40, 60, 100, 150)
TASKS = ((16, 4), (64, 16), (64, 48))
"""Patches and targets of the identity task."""


def curves(arguments: Arguments) -> None:
    """Share of the way to the best reward while the agent learns: means of ten updates and of the seeds (lowest)."""
    print(f"\nidentity task: share of the way to the best reward at updates {', '.join(map(str, CURVE))}")
    for (num_patches, num_targets), agent in itertools.product(TASKS, arguments.agents):
        began = time.perf_counter()
        rows = [curve(agent, num_patches, num_targets, seed) for seed in range(arguments.seeds)]
        seconds = (time.perf_counter() - began) / arguments.seeds
        shown = [f"{values.mean():.2f} ({values.min():.2f})" for values in np.array(rows).T]
        print(
            f"| {num_patches}/{num_targets} | {agent} | {' | '.join(shown)} | {seconds:.1f} s |", flush=True
        )


def curve(agent: str, num_patches: int, num_targets: int, seed: int) -> list[float]:
    """One run of an agent, with options after a colon."""
    name, _, pairs = agent.partition(":")
    options = read_options(tuple(pairs.split(",")) if pairs else ())
    env = IdentityTask(num_patches=num_patches, num_targets=num_targets)
    rewards: list[float] = []

    def note(metrics: dict[str, float]) -> bool:
        rewards.append(metrics["reward"])
        return False

    learner = make_agent(name, (num_patches, env.dim), seed=seed, **options)
    learner.learn(lambda: env, CURVE[-1], seed=seed, callback=note)
    return [solved(env, float(np.mean(rewards[update - 10 : update]))) for update in CURVE]


def scans(arguments: Arguments) -> None:
    """Spearman correlation of the scores with the true patch loss, on val images, at the end of a run."""
    values = pretrain_all(
        arguments, [*itertools.product(arguments.data, arguments.agents, range(arguments.seeds), [1])]
    )
    print(f"\nSpearman correlation with the true patch loss after {arguments.steps} updates of 32 images")
    for data, name in itertools.product(arguments.data, arguments.agents):
        found = [values[data, name, seed, 1] for seed in range(arguments.seeds)]
        print(
            f"| {Path(data).stem} | {name} | {np.mean(found):.3f} ({', '.join(f'{v:.3f}' for v in found)}) |"
        )


def masking_steps(arguments: Arguments) -> None:
    """The same correlation for masks that are built up in several steps, on the first data set."""
    data, names, parts = arguments.data[0], ("a3c", "ppo"), (1, 4, 8)
    values = pretrain_all(arguments, list(itertools.product([data], names, range(arguments.seeds), parts)))
    print(f"\n{Path(data).stem}: Spearman correlation by steps of a mask, {arguments.steps} updates")
    for name in names:
        for count in parts:
            found = [values[data, name, seed, count] for seed in range(arguments.seeds)]
            paired = [value - values[data, name, seed, 1] for seed, value in enumerate(found)]
            against = "" if count == 1 else f"{interval(paired)} against 1"
            print(f"| {name} | {count} | {np.mean(found):.3f} | {against} |")


Key = tuple[str, str, int, int]


def pretrain_all(arguments: Arguments, runs: list[Key]) -> dict[Key, float]:
    """Runs pretraining with the raw loss as the reward and every masked patch guided."""

    def one(key: Key) -> float:
        data, name, seed, count = key
        folder = arguments.out / f"{Path(data).stem}-{name}-{seed}-{count}"
        options = [
            *("--data", data, "--policy", name, "--seed", str(seed)),
            *("--batch-size", "32", "--reward", "loss", "--guided-fraction", "1", "--spread-fraction", "0"),
            *(["--masking-steps", str(count)] if count > 1 else []),
        ]
        path = folder.with_name(f"{folder.name}-{arguments.steps}.json")
        if not path.exists():
            pretrain(folder, arguments.steps, options)
            write_atomically(path, json.dumps(last_metric(folder, "val/spearman")))
        return json.loads(path.read_text())

    with ThreadPoolExecutor(arguments.jobs) as pool:
        ordered = sorted(runs, key=lambda key: key[2])
        return dict(zip(ordered, pool.map(one, ordered), strict=True))


def cost(arguments: Arguments) -> None:
    """Seconds of an update with each agent, divided by those with a random mask just before and after."""
    print(f"\ncost of an update, tiny at 64 px, batch 32, one thread, median of {arguments.rounds} rounds")
    for name in arguments.agents:
        seconds = [
            [seconds_per_update(policy) for policy in ("random", name, "random")]
            for _ in range(arguments.rounds)
        ]
        before, own, after = np.array(seconds).T
        ratio = float(np.median(2 * own / (before + after)))
        print(f"| {name} | {1e3 * np.median(own):.0f} ms | {ratio:.2f} |", flush=True)


def seconds_per_update(name: str, warm: int = 16, updates: int = 64) -> float:
    """Seconds per update in one long learning session, so that whole rollouts and stored experience count."""
    pretrainer = Pretrainer(build_autoencoder("tiny", image_size=(64, 64), patch_size=8), num_steps=1000)
    learner = (
        PolicyAgent(make_policy("random", pretrainer.autoencoder))
        if name == "random"
        else make_agent(name, (64, 128))
    )
    sequential = learner.env_id == "AHM/SequentialMasking-v0"
    images = torch.randn(128, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    form = SequentialMaskingVectorEnv if sequential else MaskingVectorEnv
    env = form(32, data=images, pretrainer=pretrainer, reward="loss")
    times: list[float] = []

    def note(_: dict[str, float]) -> bool:
        times.append(time.perf_counter())
        return False

    learner.learn(lambda: env, warm + updates, seed=0, callback=note)
    return (times[-1] - times[warm - 1]) / updates


if __name__ == "__main__":
    main()

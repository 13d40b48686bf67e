"""Runs the jobs of MaskBench: an agent learns in the environment of a frozen autoencoder, and is scored on the way."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ahm_gym.agents.base import Agent
from ahm_gym.benchmark.jobs import Failure
from ahm_gym.data import ImageDataset
from ahm_gym.device.choice import pick_device
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import Interrupted, RunError, reason_of
from ahm_gym.mask_benchmark import judge as judging
from ahm_gym.mask_benchmark.autoencoders import digest_of, load_frozen, pretraining_of
from ahm_gym.mask_benchmark.config import MaskBenchConfig
from ahm_gym.mask_benchmark.judge import Judge, Scale
from ahm_gym.mask_benchmark.participants import learns, make_participant, scores_of
from ahm_gym.mask_benchmark.rows import KIND, MaskGroup, MaskJob, MaskRow
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.pretraining.inputs import open_images
from ahm_gym.pretraining.training import EnvFactory
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.provenance import hardware
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.storage import write_atomically

SETTINGS: tuple[str, ...] = (
    "steps", "batch_size", "num_points", "images", "masks", "mask_ratio", "guided_fraction", "pretrain_steps", "model",
)  # fmt: skip
"""The settings that a row records."""


def run_mask_group(group: MaskGroup, interrupt: Interrupt) -> Iterator[MaskRow | Failure]:
    """Yields the row or the failure of each job as it ends; if a job fails, the others continue.

    Raises:
        Interrupted: after a request to stop; the job it came in starts again.
    """
    for job in group.jobs:
        if interrupt.requested:
            return
        try:
            yield run_job(group, job, interrupt)
        except Interrupted:
            raise
        except Exception as error:
            yield Failure(job, reason_of(error))


def run_job(group: MaskGroup, job: MaskJob, interrupt: Interrupt) -> MaskRow:
    """Lets one policy learn and scores it."""
    began = time.perf_counter()
    config = group.config
    stage = stage_of(comparable(config), group.spec, group.autoencoders, job.percent)
    judge = judge_of(comparable(config), group.spec, group.autoencoders, job.percent, job.reward)
    agent = make_participant(job.policy, stage.autoencoder, config.model, job.seed)
    updates, curve = learn(agent, stage, judge, config, job, interrupt)
    return MaskRow(
        kind=KIND,
        data=job.data,
        policy=job.policy,
        seed=job.seed,
        seconds=time.perf_counter() - began,
        reward=job.reward,
        percent=job.percent,
        weights=stage.digest,
        learns=learns(agent),
        updates=updates,
        curve=curve,
        score=curve[-1],
        paid=judge.scale.random + curve[-1] * (judge.scale.oracle - judge.scale.random),
        paid_random=judge.scale.random,
        paid_oracle=judge.scale.oracle,
        settings={name: getattr(config, name) for name in SETTINGS},
        commit=group.commit,
        hardware=hardware(pick_device(config.device)),
    )


def learn(
    agent: Agent, stage: Stage, judge: Judge, config: MaskBenchConfig, job: MaskJob, interrupt: Interrupt
) -> tuple[list[int], list[float]]:
    """Lets an agent learn; returns the updates at which it was scored, and the scores. A fixed rule is only scored.

    Raises:
        Interrupted: after a request to stop.
        RunError: if the agent stops learning early.
    """
    points = (
        np.linspace(0, config.steps, min(config.num_points, config.steps) + 1).round().astype(int).tolist()
    )
    curve: list[float] = []

    def measure(done: int) -> None:
        generator = torch.Generator().manual_seed(1_000_003 * job.seed + done)
        with torch.no_grad():
            curve.append(judge.score(scores_of(agent, judge.patches(done / config.steps), generator)))

    if not learns(agent):
        points = [0, config.steps]
        for done in points:
            measure(done)
        return points, curve
    done = 0

    def callback(metrics: dict[str, float]) -> bool:
        nonlocal done
        done += 1
        if done in points[1:]:
            measure(done)
        return interrupt.requested and done < config.steps

    measure(0)
    env = stage.env(agent, job.reward, config)
    try:
        agent.learn(lambda: env, config.steps, seed=job.seed, callback=callback)
    finally:
        env.close()
    if len(curve) < len(points):
        if interrupt.requested:
            raise Interrupted(f"stopped in {job}, which will start again.", interrupt.signal or 2)
        raise RunError(
            f"{job.policy} ended after {done} of {config.steps} updates: its `learn` must make them all."
        )
    return points, curve


class Stage:
    """A frozen autoencoder, the images to learn from, and the held-out images.

    Args:
        autoencoder: it is never updated.
        dataset: its train split is for learning, its val split for scoring; see `held_out`.
        num_images: largest number of held-out images.
    """

    def __init__(self, autoencoder: Autoencoder, dataset: ImageDataset, num_images: int) -> None:
        self.autoencoder: Autoencoder = autoencoder
        self.dataset: ImageDataset = dataset
        self.digest: str = digest_of(autoencoder)
        indices = held_out(dataset)
        places = np.linspace(0, len(indices) - 1, min(num_images, len(indices))).round().astype(int)
        images = dataset.resized([indices[place] for place in places], autoencoder.image_size)
        self.images: torch.Tensor = images.to(autoencoder.device)

    def env(self, agent: Agent, reward: str, config: MaskBenchConfig) -> MaskingVectorEnv:
        """The environment that an agent learns in, with the form of action that it needs; nothing is updated."""
        pretrainer = Pretrainer(
            self.autoencoder, num_steps=config.steps, device=self.autoencoder.device, frozen=True
        )
        options = {
            "num_envs": config.batch_size,
            "mask_ratio": config.mask_ratio,
            "reward": reward,
            "guided_fraction": config.guided_fraction,
            "spread_fraction": 0.0,
            **({"tensors": True} if agent.takes_tensors else {}),
        }
        return EnvFactory(agent.env_id, self.dataset, pretrainer, options, shared=False)()


def held_out(dataset: ImageDataset) -> list[int]:
    """The images that masks are scored on: those of val, or else of test, or else of train."""
    return dataset.indices("val") or dataset.indices("test") or dataset.indices("train")


def comparable(config: MaskBenchConfig) -> MaskBenchConfig:
    """The settings with those left out that stages and judges do not depend on, so that these are made once."""
    return replace(config, data=(), policies=(), rewards=(), seeds=1, jobs=1, time_budget=None)


@functools.lru_cache(maxsize=4)
def opened(config: MaskBenchConfig, spec: str | None) -> ImageDataset:
    """The images of a data set without their labels; opened once in a process."""
    return open_images(pretraining_of(config, spec))


@functools.lru_cache(maxsize=8)
def stage_of(config: MaskBenchConfig, spec: str | None, folder: Path, percent: int) -> Stage:
    """The frozen autoencoder of that percentage with its images; made once in a process."""
    dataset = opened(config, spec)
    autoencoder = load_frozen(config, spec, dataset.channels, folder, percent)
    return Stage(autoencoder.to(pick_device(config.device)), dataset, config.images)


@functools.lru_cache(maxsize=32)
def judge_of(config: MaskBenchConfig, spec: str | None, folder: Path, percent: int, reward: str) -> Judge:
    """The judge of that autoencoder and reward; made once in a process, and its scale once for all."""
    stage = stage_of(config, spec, folder, percent)
    shares = {"mask_ratio": config.mask_ratio, "guided_fraction": config.guided_fraction}
    described = [stage.digest, reward, len(stage.images), config.masks, shares, inspect.getsource(judging)]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
    kept = folder / f"scale-{digest}.json"
    scale = Scale(**read_object(kept)) if kept.is_file() else None
    judge = Judge(
        stage.autoencoder, stage.images, reward=reward, num_masks=config.masks, scale=scale, **shares
    )
    if scale is None:
        write_atomically(kept, json.dumps(judge.scale._asdict()) + "\n")
    return judge

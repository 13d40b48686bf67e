"""Compare mask policies under one budget: `python examples/benchmark.py --data FILE FILE --policies random,a3c`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ahm_gym.benchmark.config import BenchmarkConfig
from ahm_gym.benchmark.run import run_benchmark
from ahm_gym.errors import command_line


@dataclass(frozen=True)
class Arguments:
    """Every policy gets the same updates, images and labels; the untrained encoder and random masks are always there.

    What is finished is never run again: the same command goes on, and more data, policies, labels or seeds add to it.
    """

    data: tuple[str, ...] = BenchmarkConfig.data
    """Labelled sets, each as for pretraining; nothing takes the MNI152 brain."""
    data_root: Path | None = BenchmarkConfig.data_root
    """Where relative names are looked up; the variable AHM_DATA does the same."""
    policies: str = ",".join(BenchmarkConfig.policies)
    """Names as of --policy in pretraining, with commas."""
    labels: str = ",".join(BenchmarkConfig.labels)
    """Labelled training images: counts such as 10, or fractions such as 0.1, with commas."""
    seeds: int = BenchmarkConfig.seeds
    """Seeds 0, 1, ... of weights, images, masks and the choice of labels."""
    tasks: str = ",".join(BenchmarkConfig.tasks)
    """How encoders are judged: finetune, frozen (only the decoder learns) and probe (a linear map)."""
    pretrain_steps: int = BenchmarkConfig.pretrain_steps
    """Updates of the autoencoder."""
    finetune_steps: int = BenchmarkConfig.finetune_steps
    """Updates of the segmenter."""
    batch_size: int = BenchmarkConfig.batch_size
    """Images in an update of the autoencoder."""
    image_size: tuple[int, ...] = BenchmarkConfig.image_size
    """Side of the images in pixels, or height and width."""
    patch_size: int = BenchmarkConfig.patch_size
    """Side of a patch in pixels."""
    model: str = BenchmarkConfig.model
    """tiny, small, base, unet, or the name of one of timm's plain vision transformers."""
    mask_ratio: float = BenchmarkConfig.mask_ratio
    """Share of masked patches."""
    initial_mask_ratio: float | None = BenchmarkConfig.initial_mask_ratio
    """Where it starts, to rise to --mask-ratio over training; nothing keeps it constant."""
    normalise_target: bool = BenchmarkConfig.normalise_target
    """Predict patches of zero mean and unit variance instead of raw pixels."""
    learning_rate: float = BenchmarkConfig.learning_rate
    """Of the autoencoder, after its warm-up."""
    reward: str | None = BenchmarkConfig.reward
    """What a masked patch pays an agent; nothing takes each agent's own, as for pretraining."""
    guided_fraction: float | None = BenchmarkConfig.guided_fraction
    """Share of masked patches that follow the scores; nothing takes each policy's own schedule."""
    spread_fraction: float | None = BenchmarkConfig.spread_fraction
    """Share of images with spread masks, as for pretraining; nothing takes each policy's own schedule."""
    device: str = BenchmarkConfig.device
    """auto, cpu or cuda."""
    jobs: int = BenchmarkConfig.jobs
    """Encoders at a time, each in a process of its own; 1 spawns nothing."""
    time_budget: float | None = BenchmarkConfig.time_budget
    """Minutes after which no more is begun, and what is running is saved."""
    out: Path = BenchmarkConfig.out
    """Where rows, pictures and the report are written."""


def main() -> None:
    arguments = dataclasses.asdict(tyro.cli(Arguments, description=__doc__))
    for name in ("policies", "labels", "tasks"):
        arguments[name] = tuple(part.strip() for part in arguments[name].split(",") if part.strip())
    with command_line():
        out = run_benchmark(BenchmarkConfig(**arguments), command=shlex.join(["python", *sys.argv]))
    print(f"\nWrote {out}/: report.html, leaderboard.md, leaderboard.csv, rows.jsonl")


if __name__ == "__main__":
    main()

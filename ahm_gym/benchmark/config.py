"""Settings of a benchmark, and what can be checked of them alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ahm_gym.benchmark.rows import KINDS
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError
from ahm_gym.model.patches import image_size_of
from ahm_gym.pretraining.config import PretrainConfig

TASKS = tuple(KINDS)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of a benchmark; `examples/benchmark.py` documents each."""

    data: tuple[str, ...] = ()
    data_root: Path | None = None
    policies: tuple[str, ...] = ("random", "a3c")
    labels: tuple[str, ...] = ("10",)
    seeds: int = 2
    tasks: tuple[str, ...] = TASKS
    pretrain_steps: int = 300
    finetune_steps: int = 100
    batch_size: int = 64
    image_size: tuple[int, ...] = (64,)
    patch_size: int = 8
    model: str = "tiny"
    mask_ratio: float = PretrainConfig.mask_ratio
    initial_mask_ratio: float | None = None
    normalise_target: bool = False
    learning_rate: float = PretrainConfig.learning_rate
    reward: str | None = PretrainConfig.reward
    guided_fraction: float | None = None
    spread_fraction: float | None = None
    device: str = "auto"
    jobs: int = 1
    time_budget: float | None = None
    out: Path = Path("runs/benchmark")


def check_numbers(config: BenchmarkConfig) -> None:
    """Refuses what no benchmark can have."""
    for name in ("seeds", "jobs", "pretrain_steps", "finetune_steps", "batch_size"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}: choose at least 1.")
    if config.time_budget is not None and not config.time_budget > 0:
        raise InputError(f"--time-budget is {config.time_budget}: choose a number of minutes above 0.")
    for name in ("tasks", "labels"):
        if not getattr(config, name):
            raise InputError(f"--{name} is empty: name at least one.")
    if not set(config.tasks) <= set(TASKS):
        raise InputError(f"--tasks {','.join(config.tasks)}: choose from {', '.join(TASKS)}.")
    image_size_of(config.image_size)
    pick_device(config.device)

"""Settings of a pretraining run, and what can be checked of them alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ahm_gym.data.sources import absolute, stem_of
from ahm_gym.errors import InputError, check_seed


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run; `examples/pretrain.py` documents each."""

    data: str | None = None
    data_root: Path | None = None
    policy: str = "a3c"
    steps: int = 1200
    batch_size: int = 64
    image_size: tuple[int, ...] = (64,)
    patch_size: int = 8
    model: str = "tiny"
    init: Path | None = None
    reconstructor: Path | None = None
    agent_options: tuple[str, ...] = ()
    normalise_target: bool = False
    learning_rate: float = 1e-3
    mask_ratio: float = 0.75
    initial_mask_ratio: float | None = None
    reward: str | None = None
    guided_fraction: float | None = None
    guided_ramp: tuple[float, float] | None = None
    spread_fraction: float | None = None
    spread_ramp: tuple[float, float] | None = None
    masking_steps: int = 1
    num_workers: int = 1
    data_workers: int | None = None
    seed: int = 0
    device: str = "auto"
    run_dir: Path | None = None
    checkpoint_every: int = 200


def with_absolute_paths(config: PretrainConfig) -> PretrainConfig:
    """The same settings, so that they can be used from any folder.

    Raises:
        InputError: where the data is not there.
    """
    data, root = config.data, config.data_root
    if data is not None:
        data, root = absolute(data, root)
    policy, colon, argument = config.policy.partition(":")
    return replace(
        config,
        data=data,
        data_root=None if root is None else root.absolute(),
        policy=f"{policy}:{Path(argument).absolute()}" if colon and argument else config.policy,
        init=None if config.init is None else config.init.absolute(),
        reconstructor=None if config.reconstructor is None else config.reconstructor.absolute(),
    )


def run_stem(config: PretrainConfig) -> str:
    """DATA-POLICY: what a run's folder is called unless its name is given."""
    return f"{stem_of(config.data)}-{config.policy.partition(':')[0]}"


def check_counts(config: PretrainConfig) -> None:
    """Refuses numbers that no run can have."""
    for name in ("steps", "batch_size", "checkpoint_every", "num_workers"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}: choose at least 1.")
    if config.data_workers is not None and config.data_workers < 0:
        raise InputError(f"--data-workers is {config.data_workers}: choose 0 or more.")
    most = 4 * (os.cpu_count() or 1)
    if config.num_workers > most:
        raise InputError(
            f"--num-workers {config.num_workers} is too many for this machine: choose up to {most}."
        )
    check_seed(config.seed)

"""Metrics of a run in TensorBoard: its events, and the names of the curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

SB3_NAMES: dict[str, str] = {
    "reward": "rollout/ep_rew_mean",
    "images_per_second": "time/fps",
    "agent/policy_loss": "train/policy_gradient_loss",
    "agent/value_loss": "train/value_loss",
    "agent/explained_variance": "train/explained_variance",
    "agent/grad_norm": "train/grad_norm",
}
"""Name in `metrics.jsonl` -> name of the curve, as stable-baselines3 has it; other curves keep their names."""


def shown(row: Mapping[str, float | int | None]) -> dict[str, float]:
    """The numbers of a logged row by the names of their curves; `step` and null have none."""
    return {
        SB3_NAMES.get(name, name): value
        for name, value in row.items()
        if name != "step" and value is not None
    }


def add_scalars(writer: SummaryWriter, step: int, row: Mapping[str, float | int | None]) -> None:
    """Adds a logged row to the events of TensorBoard."""
    for name, value in shown(row).items():
        writer.add_scalar(name, value, step)


def write_events(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the events of all rows into a new folder."""
    writer = SummaryWriter(str(folder))
    for row in rows:
        add_scalars(writer, row["step"], row)
    writer.close()

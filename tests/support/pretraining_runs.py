"""Stops pretraining runs half-way, and reads what they logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ahm_gym.model.pretrainer import Pretrainer


class Stop(Exception):
    """Ends a run as if its process had been killed."""


def stop_at(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Ends the process in the middle of this update, as a kill would."""
    step = Pretrainer.step

    def killed(self, images, mask):
        if self.updates == update:
            raise Stop
        return step(self, images, mask)

    monkeypatch.setattr(Pretrainer, "step", killed)


def comparable(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, without the speed."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]

"""The rows and jobs of MaskBench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, TypeAdapter

from ahm_gym.benchmark.jobs import Job
from ahm_gym.benchmark.rows import BaseRow, lines_of
from ahm_gym.mask_benchmark.config import MaskBenchConfig

KIND: Literal["maskbench"] = "maskbench"


class MaskRow(BaseRow):
    """How one policy scored on one frozen autoencoder, with one reward and one seed."""

    kind: Literal["maskbench"]
    labels: None = None
    amount: None = None
    reward: str
    percent: PositiveInt
    """Percent of pretraining after which the autoencoder was frozen."""
    weights: str
    """Digest of the weights of the autoencoder."""
    learns: bool
    """Whether the policy learns; a fixed rule is only scored."""
    updates: list[NonNegativeInt]
    """Updates of the agent at which it was scored."""
    curve: list[float]
    """The score at each of them: 0 is random masks, 1 the oracle."""
    score: float
    """The last one."""
    paid: float
    """Mean reward of the guided patches at the end."""
    paid_random: float
    """The same for random masks."""
    paid_oracle: float
    """The same for the oracle."""
    settings: dict[str, int | float | str]
    """The settings that the score depends on."""
    commit: str
    hardware: str

    @property
    def key(self) -> tuple[str, str, str, int, int | None]:
        return self.reward, self.data, self.policy, self.seed, self.percent

    @property
    def pace(self) -> str:
        return self.policy

    @property
    def result(self) -> str:
        return f"score {self.score:.2f}"


ROW: TypeAdapter[MaskRow] = TypeAdapter(MaskRow)


def read_mask_rows(out: Path) -> list[MaskRow]:
    """The newest row of each finished job in `rows.jsonl`, oldest first.

    Raises:
        InputError: if a line is not a row of MaskBench; the message names the line and the field.
    """
    return list({row.key: row for row in lines_of(out, ROW.validate_json)}.values())


@dataclass(frozen=True)
class MaskJob(Job):
    """One policy on one frozen autoencoder, with one reward and one seed; it yields one row."""

    reward: str = ""
    percent: int = 100

    @property
    def key(self) -> tuple[str, str, str, int, int | None]:
        return self.reward, self.data, self.policy, self.seed, self.percent

    @property
    def pace(self) -> str:
        return self.policy

    def __str__(self) -> str:
        return f"{self.data} at {self.percent} %, {self.reward}, {self.policy}, seed {self.seed}"


@dataclass(frozen=True)
class MaskGroup:
    """The missing jobs of one policy with one seed on one data set."""

    config: MaskBenchConfig
    spec: str | None
    """The data, as it is opened."""
    data: str
    """Its name."""
    policy: str
    seed: int
    jobs: tuple[MaskJob, ...]
    autoencoders: Path
    """Folder of the frozen autoencoders."""
    commit: str
    """The commit at the start, also in processes that start after files have changed."""

    @property
    def out(self) -> Path:
        return self.config.out

    def __str__(self) -> str:
        return f"{self.data}, {self.policy}, seed {self.seed}"

"""The rows of a benchmark: the columns of `rows.jsonl`, and how the file is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic import field_validator as validator

from ahm_gym.errors import InputError
from ahm_gym.runs.lines import complete_lines
from ahm_gym.runs.schema import read_json, read_object

REFERENCE = "random"
"""The policy that all others are compared with."""
UNTRAINED = "scratch"
"""The policy of an encoder without pretraining."""

KINDS: dict[str, str] = {
    "finetune": "fine-tuned",
    "plain": "fine-tuned, plain decoder",
    "frozen": "frozen, plain decoder",
    "probe": "probe",
    "pixel_probe": "pixel probe",
}
"""Kinds of score, with their names in the report, in the order of the report."""
PROBES: dict[str, str] = {"probe": "patch", "pixel_probe": "pixel"}
"""Kinds of score that are probes, with the heads that they have."""


@dataclass(frozen=True)
class Baseline:
    """A network that is compared without any pretraining."""

    model: str
    kinds: tuple[str, ...]
    """The kinds of score that it has."""


BASELINES: dict[str, Baseline] = {
    "unet_scratch": Baseline("unet", ("finetune",)),
    "raw_patches": Baseline("raw_patches", ("frozen", "probe", "pixel_probe")),
}
"""A U-Net from scratch, the alternative to pretraining; the mean and deviation of each patch, the least to beat."""
NOT_PRETRAINED: tuple[str, ...] = (UNTRAINED, *BASELINES)
"""What stands in the place of a policy in rows without pretraining."""

Metric: TypeAlias = Literal["dice", "iou", "hd95", "ap", "log_loss"]


class BaseRow(BaseModel):
    """The columns that every row has."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, strict=True, extra="forbid", ser_json_inf_nan="constants"
    )

    kind: str
    data: str
    """Name of the data set."""
    policy: str
    seed: NonNegativeInt
    labels: int | None
    """Number of labelled training images of an evaluation."""
    amount: str | None = None
    """That number as requested: a count, or a fraction such as 0.1. Default: the count."""
    seconds: float
    """Duration of the job; for pretraining, of the updates alone."""

    @property
    def key(self) -> tuple[str, str, str, int, int | None]:
        """The key of the job that yields the row."""
        return self.kind, self.data, self.policy, self.seed, self.labels

    @property
    def pace(self) -> str:
        """What the jobs that take about as long have in common; the time left is estimated by it."""
        return self.kind

    @property
    def result(self) -> str:
        """The score in words, for the line of progress; empty without one."""
        return ""

    def line(self) -> str:
        """The row as a line of `rows.jsonl`, with floats rounded to six significant digits."""
        return json.dumps(rounded(self.model_dump(exclude_unset=True))) + "\n"


class PretrainRow(BaseRow):
    """Cost and outcome of one pretraining; for an untrained encoder only `psnr` is known."""

    kind: Literal["pretrain"]
    labels: None = None
    amount: None = None
    images_per_second: float | None = None
    limit_share: float | None = None
    """Rate of the matrix products as a share of the largest rate that the device reaches, 0 to 1."""
    peak_memory_mib: float | None = None
    psnr: float | None = None
    """PSNR of test images under random masks, in dB."""
    loss: float | None = None
    spearman: float | None = None
    excess: float | None = None
    overlap: float | None = None
    entropy: float | None = None
    masked_foreground: float | None = None
    commit: str | None = None
    hardware: str | None = None


class ScoreRow(BaseRow):
    """Test scores of one evaluation of an encoder."""

    kind: Literal["finetune", "plain", "frozen", "probe", "pixel_probe"]
    labels: PositiveInt
    split: str
    dice: float | None
    """Mean over classes and cases, 0 to 1; for the probe, the patch Dice. None if it is undefined."""
    iou: float | None = None
    hd95: float | None = None
    """95 % Hausdorff distance in `hd95_unit`."""
    hd95_unit: str | None = None
    ap: float | None = None
    """Average precision over pixels, 0 to 1; the score of the pixel probe."""
    log_loss: float | None = None
    """Mean negative logarithm of the probability of what is true, in nats."""
    draws: PositiveInt | None = None
    """Number of draws of labelled images that a pixel probe is averaged over."""
    num_classes: PositiveInt | None = None
    """Number of classes, with the background."""
    cases: dict[str, dict[Metric, list[float | None]]] = {}
    """Case -> metric -> one value per foreground class, None if it is undefined."""
    commit: str | None = None
    hardware: str | None = None

    @validator("amount")
    @classmethod
    def _is_a_number(cls, amount: str | None) -> str | None:
        if amount is not None:
            number_of(amount)
        return amount

    @property
    def result(self) -> str:
        return "" if self.dice is None else f"Dice {self.dice:.3f}"

    @property
    def task(self) -> Task:
        """The task that the row belongs to."""
        return Task(self.kind, self.amount or str(self.labels))


Line = TypeVar("Line")
Row: TypeAlias = PretrainRow | ScoreRow
ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])


def rounded(value: Any) -> Any:
    """The value with all floats rounded to six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def number_of(amount: str) -> int | float:
    """Converts a requested number of labels: a fraction if it has a decimal point, a count otherwise.

    Raises:
        ValueError: if it is neither.
    """
    return float(amount) if "." in amount else int(amount)


@dataclass(frozen=True)
class Task:
    """One kind of score at one number of labels; policies are compared within a task."""

    kind: str
    amount: str
    """Number of labelled images as requested: a count, or a fraction such as 0.1."""

    @property
    def labels(self) -> int | float:
        """The count or fraction as a number."""
        return number_of(self.amount)

    @property
    def name(self) -> str:
        """The name in the report."""
        if "." in self.amount:
            return f"{KINDS[self.kind]}, {self.amount} of the labels"
        return f"{KINDS[self.kind]}, {self.amount} label{'s' * (self.amount != '1')}"

    @property
    def score(self) -> Metric:
        """The column of the score that policies are compared and ranked by."""
        return "ap" if self.kind == "pixel_probe" else "dice"

    @property
    def metric(self) -> str:
        """The name of that score."""
        return {"probe": "patch Dice", "pixel_probe": "average precision"}.get(self.kind, "Dice")


@dataclass(frozen=True)
class Rows:
    """The newest row of each finished job."""

    config: dict[str, Any]
    pretraining: dict[tuple[str, str, int], PretrainRow]
    """By data, policy and seed."""
    scores: dict[tuple[Task, str, str, int], ScoreRow]
    """By task, data, policy and seed."""

    @property
    def tasks(self) -> list[Task]:
        """The tasks, by kind of score and number of labels."""
        order = list(KINDS)
        found = {task for task, *_ in self.scores}
        return sorted(found, key=lambda task: (order.index(task.kind), task.labels))

    @property
    def data(self) -> list[str]:
        """The names of the data sets."""
        return sorted({data for data, *_ in self.pretraining} | {data for _, data, *_ in self.scores})

    @property
    def policies(self) -> list[str]:
        """The policies; the untrained encoder, the baselines and the reference come first."""
        found = {key[1] for key in self.pretraining} | {key[2] for key in self.scores}
        first = [*NOT_PRETRAINED, REFERENCE]
        return sorted(found, key=lambda name: (first.index(name) if name in first else len(first), name))

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return sorted({key[-1] for key in [*self.pretraining, *self.scores]})


def read_lines(out: Path) -> list[Row]:
    """The rows in the complete lines of `rows.jsonl`, oldest first; see `lines_of`."""
    return lines_of(out, ROW.validate_json)


def lines_of(out: Path, read: Callable[[str], Line]) -> list[Line]:
    """What `read` makes of the complete lines of `rows.jsonl`, oldest first; it checks a line by pydantic.

    Raises:
        InputError: if a line is not a row; the message names the line and the field.
    """
    path = out / "rows.jsonl"
    try:
        lines = complete_lines(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text ({error}): restore it, or choose another folder.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(read(line))
        except ValidationError as error:
            raise InputError(
                f"line {number} of {path} is not a row of a benchmark, {_reason(error)}: delete that line, and "
                "the benchmark runs that job again."
            ) from error
    return rows


def read_row(path: Path) -> PretrainRow:
    """The row in the run folder of a finished encoder.

    Raises:
        InputError: if it is damaged.
    """
    try:
        row = ROW.validate_json(json.dumps(read_json(path)))
        assert isinstance(row, PretrainRow)
        return row
    except (ValidationError, AssertionError) as error:
        raise InputError(
            f"{path} is not the row of an encoder: delete the folder {path.parent}, and the benchmark "
            "trains it again."
        ) from error


def _reason(error: ValidationError) -> str:
    """The first problem: the field, its value, and what was expected."""
    first = error.errors(include_url=False)[0]
    # With several kinds of rows, the first part of a location is the kind.
    place = [part for i, part in enumerate(first["loc"]) if i or part not in ("pretrain", *KINDS)]
    field = ".".join(map(str, place)) or "the line"
    if first["type"] == "missing":
        return f"{field} is missing"
    given = repr(first["input"])
    given = given if len(given) <= 40 else f"{given[:39]}\u2026"
    expected = first["msg"]
    return f"{field} is {given} ({expected[0].lower()}{expected[1:]})"


def read_rows(out: Path) -> Rows:
    """Reads `rows.jsonl` and `config.json` in the folder of a benchmark, and keeps the newest row of each job.

    Raises:
        InputError: if there is no finished row, or a line or `config.json` cannot be read.
    """
    pretraining, scores = {}, {}
    for row in read_lines(out):
        if isinstance(row, PretrainRow):
            pretraining[row.data, row.policy, row.seed] = row
        else:
            scores[row.task, row.data, row.policy, row.seed] = row
    if not pretraining and not scores:
        raise InputError(
            f"{out / 'rows.jsonl'} holds no finished row: run the benchmark first, or give its folder."
        )
    return Rows(read_settings(out), pretraining, scores)


KINDS_OF_SETTINGS: dict[str, type] = {
    "pretrain": dict, "finetune": dict, "machine": dict, "data": dict, "patients": dict, "command": str,
}  # fmt: skip
"""What must be an object or a text in the `config.json` of a benchmark."""


def read_settings(out: Path) -> dict[str, Any]:
    """The `config.json` in the folder of a benchmark; empty without one.

    Raises:
        InputError: if it cannot be read, or an entry has the wrong type.
    """
    path = out / "config.json"
    settings = read_object(path) if path.exists() else {}
    for name, kind in KINDS_OF_SETTINGS.items():
        if name in settings and not isinstance(settings[name], kind):
            expected = "a text" if kind is str else "an object"
            raise InputError(
                f"`{name}` in {path} is {settings[name]!r}: expected {expected}; restore the file."
            )
    return settings

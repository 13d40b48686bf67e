"""The flags of the command line, and the settings that they stand for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import tyro

from ahm_gym.benchmark.config import SET_BY_THE_BENCHMARK, BenchmarkConfig
from ahm_gym.pretraining.config import Pretrain, PretrainConfig
from ahm_gym.segmentation.config import Finetune, FinetuneConfig

NESTED: dict[str, type[Any]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
"""Settings of a benchmark that are those of another program."""
SETTINGS = {item.name for kind in (Pretrain, Finetune, BenchmarkConfig) for item in dataclasses.fields(kind)}
"""Names of the settings of all programs."""


def with_flags(message: str) -> str:
    """The message with every setting in backticks as its flag: `steps=0` becomes --steps 0."""

    def flag(setting: re.Match[str]) -> str:
        name, equals, value = setting[1].partition("=")
        if name.rpartition(".")[2] not in SETTINGS:
            return setting[0]
        return f"--{name.replace('_', '-')}{' ' if equals else ''}{value}"

    return re.sub(r"`([a-z_.]+(?:=[^`]*)?)`", flag, message)


def flags_in(argv: Iterable[str]) -> set[str]:
    """Names of the settings whose flags stand on a command line."""
    flags = (argument[2:].partition("=")[0] for argument in argv if argument.startswith("--"))
    names = {flag.replace("-", "_") for flag in flags}
    return names | {name.removeprefix("no_") for name in names}


def nested_flag(argument: str) -> str:
    """A flag of the benchmark as tyro nests it: --pretrain-steps and --batch-size are settings of pretraining."""
    flag, equals, value = argument.partition("=")
    name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    if not flag.startswith("--") or name in names_of(BenchmarkConfig):
        return argument
    for program, kind in NESTED.items():
        own = name.removeprefix(f"{program}_")
        if own in names_of(kind) and (own != name or program == "pretrain"):
            negated = "no-" if flag.startswith("--no-") else ""
            return f"--{program}.{negated}{own.replace('_', '-')}{equals}{value}"
    return argument


def names_of(kind: type[Any]) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def shown_settings(kind: type[Any]) -> type[Any]:
    """The settings of a program, without those in its help that a benchmark sets for every job."""
    if kind is not BenchmarkConfig:
        return kind
    fields: list[Any] = []
    for program, nested in NESTED.items():
        hidden = [
            (item.name, tyro.conf.Suppress[Any], dataclasses.field(default=item.default))
            for item in dataclasses.fields(nested)
            if item.name in SET_BY_THE_BENCHMARK[program]
        ]
        shown = dataclasses.make_dataclass(nested.__name__, hidden, bases=(nested,), frozen=True)
        default = shown(**vars(getattr(kind, program)))
        fields.append((program, shown, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True)


def split_at_commas(values: tuple[str, ...]) -> tuple[str, ...]:
    """The values, where each may hold several with commas between them."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())

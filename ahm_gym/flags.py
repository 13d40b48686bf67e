"""Translates between the flags of the command line and the settings of the programs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, get_type_hints

import tyro

from ahm_gym.benchmark.config import SET_BY_THE_BENCHMARK, BenchmarkConfig
from ahm_gym.mask_benchmark.config import MaskBenchConfig
from ahm_gym.pretraining.config import Pretrain, PretrainConfig
from ahm_gym.segmentation.config import (
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    Finetune,
    FinetuneConfig,
    PredictConfig,
)
from ahm_gym.sweeping.config import SET_BY_THE_SWEEP, SweepConfig

NESTED: dict[str, type[Any]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
"""Settings of a benchmark or a sweep that hold all settings of another program."""
WITH_NESTED: dict[type[Any], dict[str, tuple[str, ...]]] = {
    BenchmarkConfig: SET_BY_THE_BENCHMARK,
    SweepConfig: SET_BY_THE_SWEEP,
}
"""The settings with such ones, and those of the other program that they choose themselves."""
PROGRAM_SETTINGS: tuple[type[Any], ...] = (
    Pretrain, Finetune, PredictConfig, EvaluateConfig, ExportConfig, EmbedConfig, BenchmarkConfig, MaskBenchConfig,
    SweepConfig,
)  # fmt: skip
"""The settings of every program that has flags."""
SETTINGS = {item.name for kind in PROGRAM_SETTINGS for item in dataclasses.fields(kind)}
"""Names of the settings of all programs."""


def with_flags(message: str) -> str:
    """Replaces every setting in backticks by its flag: `steps=0` becomes --steps 0."""

    def flag(setting: re.Match[str]) -> str:
        name, equals, value = setting[1].partition("=")
        if name.rpartition(".")[2] not in SETTINGS:
            return setting[0]
        written = name.replace("_", "-")
        if value in ("True", "False"):
            return f"--{written}" if value == "True" else f"--no-{written}"
        return f"--{written}{' ' if equals else ''}{value}"

    return re.sub(r"`([a-z_.]+(?:=[^`]*)?)`", flag, message)


def flags_in(argv: Iterable[str]) -> set[str]:
    """The names of the settings that a command line gives."""
    flags = (argument[2:].partition("=")[0] for argument in argv if argument.startswith("--"))
    names = {flag.replace("-", "_") for flag in flags}
    return names | {name.removeprefix("no_") for name in names}


def scans_first(argv: list[str], kind: type[Any]) -> list[str]:
    """The command line of a program that takes `--run RUN [RUN ...]` and scans, with the scans before all flags.

    In `--run RUN new_scans/ --out masks` the flag would take the scans for another run: if no other argument can be
    the scans, they are the last value of that flag.

    Args:
        argv: the command and its arguments.
        kind: the settings of the program.
    """
    switches = {name for name, hint in get_type_hints(kind).items() if hint is bool}
    values: list[int] = []
    flag, alone, joined = "", False, 0
    for at, argument in enumerate(argv[1:], start=1):
        if argument.startswith("--"):
            name, equals, _ = argument[2:].partition("=")
            takes_none = bool(equals) or name.removeprefix("no-").replace("-", "_") in switches
            flag = "" if takes_none and name != "run" else name
            joined += bool(equals) and name == "run"
        elif flag == "run":
            values.append(at)
        else:
            alone = alone or not flag
            flag = ""
    if alone or not values or len(values) + joined < 2:
        return argv
    return [argv[0], argv[values[-1]], *argv[1 : values[-1]], *argv[values[-1] + 1 :]]


def nested_flag(argument: str, of: type[Any] = BenchmarkConfig) -> str:
    """Translates a flag of the benchmark, or of a sweep, to the name that tyro gives to a nested setting.

    A setting of pretraining, such as --pretrain.batch-size, may also be written --pretrain-batch-size or
    --batch-size; a setting of fine-tuning, such as --finetune.steps, --finetune-steps.
    """
    flag, equals, value = argument.partition("=")
    written = flag.removeprefix("--").replace("-", "_")
    name = written.removeprefix("no_")
    if not flag.startswith("--") or name in names_of(of):
        return argument
    for program, kind in NESTED.items():
        own = name.removeprefix(f"{program}_")
        settable = names_of(kind) - set(WITH_NESTED[of][program])
        if own in settable and (own != name or program == "pretrain"):
            negated = "no-" if name != written else ""
            return f"--{program}.{negated}{own.replace('_', '-')}{equals}{value}"
    return argument


def names_of(kind: type[Any]) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def shown_settings(kind: type[Any]) -> type[Any]:
    """The settings of a program, with those that a benchmark or a sweep sets itself hidden from the help."""
    if kind not in WITH_NESTED:
        return kind
    fields: list[Any] = []
    for program, nested in NESTED.items():
        types = get_type_hints(nested, include_extras=True)
        hidden = [
            (item.name, tyro.conf.Suppress[types[item.name]], dataclasses.field(default=item.default))
            for item in dataclasses.fields(nested)
            if item.name in WITH_NESTED[kind][program]
        ]
        shown = dataclasses.make_dataclass(nested.__name__, hidden, bases=(nested,), frozen=True)
        default = shown(**vars(getattr(kind, program)))
        fields.append((program, shown, dataclasses.field(default=default)))
    described = {"__doc__": kind.__doc__}
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), namespace=described, frozen=True)


def split_at_commas(values: tuple[str, ...]) -> tuple[str, ...]:
    """Splits values that hold several values with commas between them."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def split_numbers(argv: Iterable[str]) -> list[str]:
    """The command line with `--flag 0.25,0.5` and `--flag=0.25,0.5` written as `--flag 0.25 0.5`."""
    args: list[str] = []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        numbers = value if equals and flag.startswith("--") else argument
        if re.fullmatch(r"\d*\.?\d+(,\d*\.?\d+)+", numbers):
            args += [flag] * (numbers is not argument) + numbers.split(",")
        else:
            args.append(argument)
    return args

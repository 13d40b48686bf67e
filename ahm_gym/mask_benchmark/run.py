"""Runs MaskBench: makes the frozen autoencoders, runs the jobs that are missing, and stores rows and settings."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ahm_gym.benchmark.jobs import Failure
from ahm_gym.benchmark.processes import run_groups
from ahm_gym.benchmark.progress import BenchmarkProgress, append_row
from ahm_gym.data import ImageDataset
from ahm_gym.data.sources import absolute
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, Interrupted, RunError, say
from ahm_gym.mask_benchmark.autoencoders import (
    digest_of,
    folder_of,
    load_frozen,
    make_autoencoders,
    pretraining_of,
)
from ahm_gym.mask_benchmark.config import MaskBenchConfig, check
from ahm_gym.mask_benchmark.jobs import held_out, run_mask_group
from ahm_gym.mask_benchmark.participants import check_names, everyone
from ahm_gym.mask_benchmark.report import write_mask_report
from ahm_gym.mask_benchmark.rows import KIND, MaskGroup, MaskJob, MaskRow, read_mask_rows
from ahm_gym.pretraining.inputs import open_images, starting_autoencoder
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.provenance import commit, hardware, versions
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.settings import to_json
from ahm_gym.runs.storage import file_name, locked, make_folder, write_atomically

OPEN: tuple[str, ...] = (
    "data", "data_root", "policies", "rewards", "seeds", "checkpoints", "device", "jobs", "time_budget", "out",
)  # fmt: skip
"""Settings that may change between sessions: they affect how much is run, not the results."""

Datasets = dict[str, tuple[str | None, ImageDataset]]
"""Name -> the value given as `data`, and the opened data."""


def run_maskbench(config: MaskBenchConfig, *, command: str = "") -> Path:
    """Runs the jobs that are missing, writes the report, and returns its folder.

    Finished jobs are in `rows.jsonl` and are never run again; after a stop, the same call continues.

    Raises:
        InputError: if settings or data cannot be used, or the folder holds another benchmark; nothing is written.
        RunError: if jobs failed, after all others have been run and reported.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved and reported.
    """
    interrupt = Interrupt(math.inf if config.time_budget is None else time.time() + 60 * config.time_budget)
    check(config)
    check_names(config.policies)
    pick_device(config.device)
    datasets = open_all(config)
    check_settings(config, datasets)
    config = with_policies(config, datasets)
    make_folder(config.out, "`out`")
    with locked(config.out), interrupt:
        write_settings(config, datasets, command)
        try:
            folders = autoencoders_of(config, datasets, interrupt)
        except Interrupted as stopped:
            if interrupt.signal is not None:
                raise
            say(f"The time is up: {stopped}")
            return config.out
        return run_planned(config, plan(config, datasets, folders), interrupt)


def run_planned(config: MaskBenchConfig, groups: Sequence[MaskGroup], interrupt: Interrupt) -> Path:
    """Runs these groups and writes the report; see `run_maskbench`."""
    progress = BenchmarkProgress(config.out, groups, config.jobs, read_mask_rows(config.out))
    failures: list[Failure] = []
    for outcome in run_groups(groups, config.jobs, interrupt, run_mask_group):
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            append_row(config.out, outcome)
        progress.show(outcome)
    failed = [f"{failure.job}: {failure.reason}" for failure in failures]
    if read_mask_rows(config.out):
        write_mask_report(config.out, failed)
    left = f"{progress.left} of {progress.total} jobs are left; run the same command again to continue"
    if interrupt.signal is not None:
        raise Interrupted(f"stopped: {left}.", interrupt.signal)
    if failures:
        raise RunError(
            f"{len(failures)} jobs failed, the rest is reported in {config.out}: {'; '.join(failed)}"
        )
    if progress.left:
        say(f"The time is up: {left}.")
    return config.out


def open_all(config: MaskBenchConfig) -> Datasets:
    """Opens, and if necessary prepares, all data sets before any job starts; says where no val split is there.

    Raises:
        InputError: if data cannot be used, or two sets have the same name.
    """
    datasets: Datasets = {}
    for given in config.data or (None,):
        spec = None if given is None else absolute(given, config.data_root)[0]
        dataset = open_images(pretraining_of(config, spec))
        name = file_name(dataset.name)
        if name in datasets:
            raise InputError(f"`data` has two sets with the name {name}: rename one of them.")
        if not dataset.indices("val"):
            split = "test" if dataset.indices("test") else "train"
            doubt = ", which agents have learned from: scores are too high" if split == "train" else ""
            say(f"note: {name} has no val images, so masks are scored on those of {split}{doubt}.")
        datasets[name] = spec, dataset
    return datasets


def with_policies(config: MaskBenchConfig, datasets: Datasets) -> MaskBenchConfig:
    """The settings with every policy and agent by name, if none was given."""
    if config.policies:
        return replace(config, policies=tuple(dict.fromkeys(config.policies)))
    spec, dataset = next(iter(datasets.values()))
    autoencoder = starting_autoencoder(pretraining_of(config, spec), dataset.channels, fresh=False)
    return replace(config, policies=everyone(autoencoder, config.model))


def autoencoders_of(config: MaskBenchConfig, datasets: Datasets, interrupt: Interrupt) -> dict[str, Path]:
    """The folders with the frozen autoencoders of every data set, which are made if they are missing.

    Raises:
        Interrupted: after a request to stop.
        InputError: if rows in the folder come from other autoencoders.
    """
    folders = {}
    for name, (spec, dataset) in datasets.items():
        folder = folders[name] = folder_of(config, name, dataset)
        make_autoencoders(config, spec, folder, interrupt)
        for percent in config.checkpoints:
            digest = digest_of(load_frozen(config, spec, dataset.channels, folder, percent))
            others = {
                row.weights
                for row in read_mask_rows(config.out)
                if (row.data, row.percent) == (name, percent)
            } - {digest}
            if others:
                raise InputError(
                    f"{config.out} has rows of {name} at {percent} % from an autoencoder with the digest "
                    f"{others.pop()}, and the one in {folder} has {digest}: restore that one, or choose another `out`."
                )
    return folders


def plan(config: MaskBenchConfig, datasets: Datasets, folders: dict[str, Path]) -> list[MaskGroup]:
    """The missing jobs, seed by seed, so that a stop leaves all policies with about as many seeds."""
    done = {row.key for row in read_mask_rows(config.out)}
    groups = []
    for seed in range(config.seeds):
        for name, (spec, _) in datasets.items():
            for policy in config.policies:
                jobs = [
                    MaskJob(KIND, name, policy, seed, reward=reward, percent=percent)
                    for reward in dict.fromkeys(config.rewards)
                    for percent in dict.fromkeys(config.checkpoints)
                ]
                missing = tuple(job for job in jobs if job.key not in done)
                if missing:
                    groups.append(
                        MaskGroup(config, spec, name, policy, seed, missing, folders[name], commit())
                    )
    return groups


def settings_of(config: MaskBenchConfig) -> dict[str, Any]:
    """The settings that all rows of a folder share."""
    values = {name: value for name, value in to_json(config).items() if name not in OPEN}
    return values | {"image_size": list(pretraining_of(config, None).shape)}


def check_settings(config: MaskBenchConfig, datasets: Datasets) -> None:
    """Checks that rows in the folder come from the same settings and data.

    Raises:
        InputError: if the folder is not of MaskBench, or has rows of other settings or data.
    """
    saved = saved_settings(config.out)
    if not saved:
        return
    kept = settings_of(MaskBenchConfig()) | saved
    for name, value in settings_of(config).items():
        if kept[name] != value:
            raise InputError(
                f"`{name}={value}` differs from the {kept[name]} of the benchmark in {config.out}: use the same value, "
                "or choose another `out`."
            )
    for name, (_, dataset) in datasets.items():
        digest = dataset.content_digest()
        if saved.get("data", {}).get(name, digest) != digest:
            raise InputError(
                f"`data={name}` is not the {name} that the benchmark in {config.out} has rows of: restore that one, "
                "rename this one, or choose another `out`."
            )


def saved_settings(out: Path) -> dict[str, Any]:
    """The `config.json` in the folder; empty for a new folder.

    Raises:
        InputError: if the folder holds something else, or the file cannot be read.
    """
    path = out / "config.json"
    other = InputError(f"{out} is not the folder of a MaskBench: choose another `out`.")
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(item.name[0] != "." for item in out.iterdir())):
            raise other
        return {}
    saved = read_object(path)
    if saved.get("kind") != KIND:
        raise other
    return saved


def write_settings(config: MaskBenchConfig, datasets: Datasets, command: str) -> None:
    """Writes the settings, the data and all commands so far, and removes an incomplete row left by a crash."""
    saved = {"data": {}, "held_out": {}, "command": ""} | saved_settings(config.out)
    rows: list[MaskRow] = read_mask_rows(config.out)
    if rows:
        write_atomically(config.out / "rows.jsonl", "".join(row.line() for row in rows))
    commands = dict.fromkeys([*saved["command"].splitlines(), command])
    described = {
        "kind": KIND,
        **settings_of(config),
        "data": saved["data"] | {name: dataset.content_digest() for name, (_, dataset) in datasets.items()},
        "held_out": saved["held_out"]
        | {name: min(config.images, len(held_out(dataset))) for name, (_, dataset) in datasets.items()},
        "command": "\n".join(filter(None, commands)),
        "machine": {"hardware": hardware(pick_device(config.device)), "versions": versions()},
    }
    write_atomically(config.out / "config.json", json.dumps(described, indent=2) + "\n")

"""Runs a benchmark: plans the jobs that are missing, runs them in order, and stores rows and settings."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from ahm_gym.agents import agents
from ahm_gym.benchmark.cluster_options import ClusterOptions, need_submitit, read_options
from ahm_gym.benchmark.config import SET_BY_THE_BENCHMARK, BenchmarkConfig, check
from ahm_gym.benchmark.evaluations import NUM_DRAWS
from ahm_gym.benchmark.jobs import Failure, Group, Job
from ahm_gym.benchmark.processes import run_groups
from ahm_gym.benchmark.progress import BenchmarkProgress, append_row
from ahm_gym.benchmark.report import write_report
from ahm_gym.benchmark.rows import (
    BASELINES,
    NOT_PRETRAINED,
    REFERENCE,
    UNTRAINED,
    Row,
    read_lines,
    read_settings,
)
from ahm_gym.data import ImageDataset
from ahm_gym.data.sources import absolute
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import InputError, Interrupted, RunError, say
from ahm_gym.model import unet
from ahm_gym.model.conv_network import check_halvings
from ahm_gym.model.encoder_base import as_encoder
from ahm_gym.model.encoders import load_encoder
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.defaults import with_learning_rate
from ahm_gym.pretraining.inputs import open_images
from ahm_gym.pretraining.mask_source import canonical
from ahm_gym.pretraining.policy_options import folder_name, split_options
from ahm_gym.pretraining.training import Training
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.provenance import commit, hardware, versions
from ahm_gym.runs.settings import flattened, to_json
from ahm_gym.runs.storage import file_name, locked, make_folder, write_atomically

OPEN = (
    "data", "data_root", "policies", "labels", "seeds", "tasks", "baselines", "jobs", "slurm", "time_budget", "device",
    "out",
)  # fmt: skip
"""Settings that may change between sessions of a benchmark: they affect how much is run, not the results."""
WITHOUT_EFFECT = ("data_workers", "checkpoint_every")
"""Settings of pretraining and fine-tuning that do not affect results."""
OF_AGENTS = ("agent_options", "masking_steps", "num_workers", "ray", "reconstructor")
"""Settings of pretraining that apply to learning agents only."""
OF_SCORES = ("guided_fraction", "guided_ramp", "spread_fraction", "spread_ramp")
"""Settings of pretraining that the reference ignores, so that it stays plain random masking."""

Datasets: TypeAlias = dict[str, tuple[str | None, ImageDataset]]
"""Name -> the value given as `data`, and the opened data."""


def run_benchmark(config: BenchmarkConfig, *, command: str = "") -> Path:
    """Runs the jobs that are missing, writes the report, and returns its folder.

    Finished jobs are in `rows.jsonl` and are never run again; after a stop, the same call continues.
    The report lists the `command` of every session, so that others can repeat the benchmark.

    Raises:
        InputError: if settings or data cannot be used, or the folder holds another benchmark; nothing is written.
        RunError: if jobs failed, after all others have been run and reported.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved and reported.
    """
    interrupt = Interrupt(math.inf if config.time_budget is None else time.time() + 60 * config.time_budget)
    config = replace(
        config, pretrain=with_learning_rate(config.pretrain), policies=tuple(map(canonical, config.policies))
    )
    check(config)
    options = cluster_options(config)
    pick_device(config.device)
    datasets = open_all(config)
    check_settings(config, datasets)
    check_policies(plan(config, datasets))
    make_folder(config.out, "`out`")
    with locked(config.out):
        groups = plan(config, datasets)  # again: another session may have finished some jobs by now
        write_settings(config, datasets, command)
        return run_planned(config, groups, interrupt, options, command)


def cluster_options(config: BenchmarkConfig) -> ClusterOptions | None:
    """What the jobs ask a cluster for; None if they run here.

    Raises:
        InputError: if submitit or SLURM is missing.
    """
    if config.slurm is None:
        return None
    need_submitit()
    from ahm_gym.benchmark.cluster import check_cluster

    options = read_options(config.slurm)
    check_cluster(options)
    return options


def outcomes_of(
    config: BenchmarkConfig, groups: list[Group], interrupt: Interrupt, options: ClusterOptions | None
) -> Iterator[Row | Failure]:
    """Runs these groups where the settings say, and yields the row or the failure of every job."""
    if options is None:
        return run_groups(groups, config.jobs, interrupt)
    from ahm_gym.benchmark.cluster import Cluster

    return Cluster(groups, options, interrupt).run()


def run_planned(
    config: BenchmarkConfig,
    groups: list[Group],
    interrupt: Interrupt,
    options: ClusterOptions | None = None,
    command: str = "",
) -> Path:
    """Runs these groups and writes the report; see `run_benchmark`."""
    parallel = config.jobs if options is None else max(min(options.parallel, len(groups)), 1)
    progress = BenchmarkProgress(config.out, groups, parallel)
    failures = []
    with interrupt:
        for outcome in outcomes_of(config, groups, interrupt, options):
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                append_row(config.out, outcome)
            progress.show(outcome)
    if read_lines(config.out):
        write_report(config.out)
    left = f"{progress.left} of {progress.total} jobs are left; "
    if options is None:
        left += "run the same command again to continue"
    else:
        left += (
            f"those on the cluster go on, and this collects their rows: {command or 'the same call again'}"
        )
    if interrupt.signal is not None:
        raise Interrupted(f"stopped: {left}.", interrupt.signal)
    if failures:
        listed = "; ".join(f"{failure.job}: {failure.reason}" for failure in failures)
        raise RunError(f"{len(failures)} jobs failed, the rest is reported in {config.out}: {listed}")
    if progress.left:
        say(f"The time is up: {left}.")
    return config.out


def plan(config: BenchmarkConfig, datasets: Datasets) -> list[Group]:
    """The missing jobs, grouped by encoder: seed by seed, the untrained encoder and random masks first.

    Raises:
        InputError: if `labels` do not fit the data, or two policies would share a folder.
    """
    done = {row.key for row in read_lines(config.out)}
    has_decoder = check_network(config)
    policies = list(dict.fromkeys([UNTRAINED, *config.baselines, REFERENCE, *config.policies]))
    if len({folder_name(policy) for policy in policies}) < len(policies):
        raise InputError(
            f"`policies={','.join(policies)}`: two of them would be stored under one name; rename a run, or "
            "leave one out."
        )
    groups = []
    for seed in range(config.seeds):
        for name, (spec, dataset) in datasets.items():
            counts = {count_labels(label, dataset): label for label in reversed(config.labels)}
            for policy in policies:
                jobs = [] if policy in BASELINES else [Job("pretrain", name, policy, seed)]
                jobs += [
                    Job(kind, name, policy, seed, count, amount)
                    for kind in kinds_of_score(config, policy, has_decoder)
                    for count, amount in sorted(counts.items())
                ]
                missing = tuple(job for job in jobs if job.key not in done)
                if missing:
                    pretraining = pretraining_of(config, spec, name, policy, seed)
                    given = (pretraining, config.finetune, name, missing, config.out, commit())
                    groups.append(Group(*given, has_decoder=has_decoder))
    return groups


def check_network(config: BenchmarkConfig) -> bool:
    """Whether the network has a decoder of its own; builds it, and checks the U-Net of the baselines.

    Raises:
        InputError: if the model is unknown, the image size does not fit one of the two, or no task is left.
    """
    shape = {
        "image_size": config.pretrain.shape,
        "patch_size": config.pretrain.patch_size,
    }
    if config.pretrain.plans is not None:
        raise InputError(
            "a benchmark trains the same network from scratch, and does not know the sizes in `plans`: leave it out."
        )
    if "unet_scratch" in config.baselines and "finetune" in config.tasks:
        try:
            check_halvings(shape["image_size"], unet.STRIDE, "the U-Net")
        except InputError as error:
            raise InputError(f"{error} Or leave the U-Net out: `baselines=raw_patches`.") from error
    has_decoder = as_encoder(load_encoder(None, model=config.pretrain.model, **shape)).has_decoder
    if set(config.tasks) == {"plain"} and (has_decoder or config.pretrain.volumes):
        why = (
            f"{config.pretrain.model} has its own decoder"
            if has_decoder
            else "that of volumes is plain anyway"
        )
        raise InputError(
            f"`tasks=plain` goes with a vision transformer and images; {why}: choose `tasks=finetune`."
        )
    return has_decoder


def kinds_of_score(config: BenchmarkConfig, policy: str, has_decoder: bool) -> list[str]:
    """The kinds of score that a policy or a baseline has."""
    kinds = list(dict.fromkeys(config.tasks))
    if policy in BASELINES:
        baseline = BASELINES[policy]
        # A benchmark of U-Nets has its own network from scratch.
        return [kind for kind in kinds if kind in baseline.kinds and baseline.model != config.pretrain.model]
    return [kind for kind in kinds if kind != "plain" or not (has_decoder or config.pretrain.volumes)]


def pretraining_of(
    config: BenchmarkConfig, spec: str | None, name: str, policy: str, seed: int
) -> PretrainConfig:
    """The settings of one pretraining; policies share all settings that apply to them.

    An option of the policy itself replaces the one that all agents share.
    """
    learner, own = split_options(policy)
    left_out = set() if learner in agents() else set(OF_AGENTS)
    if policy == REFERENCE:
        left_out |= set(OF_SCORES)
    set_by_policy = {pair.partition("=")[0] for pair in own}
    shared = config.pretrain.agent_options
    return replace(
        config.pretrain,
        data=spec,
        data_root=config.data_root,
        policy=policy,
        seed=seed,
        device=config.device,
        run_dir=config.out / "runs" / name / f"{folder_name(policy)}-{seed}",
        **{
            "agent_options": tuple(p for p in shared if p.partition("=")[0] not in set_by_policy),
            **{field: getattr(PretrainConfig, field) for field in left_out},
        },
    )


def open_all(config: BenchmarkConfig) -> Datasets:
    """Opens, and if necessary prepares, all data sets before any job starts.

    Raises:
        InputError: if data cannot be used, or two sets have the same name.
    """
    datasets: Datasets = {}
    for given in config.data or (None,):
        spec = None if given is None else absolute(given, config.data_root)[0]
        dataset = open_images(
            replace(config.pretrain, data=spec, data_root=config.data_root), need_labels=True
        )
        name = file_name(dataset.name)
        if name in datasets:
            raise InputError(f"`data` has two sets with the name {name}: rename one of them.")
        if "probe" in config.tasks and not dataset.indices("val", labelled=True):
            raise InputError(
                f"{name} has no labelled val images, which the probe needs: choose other `tasks`, or add some."
            )
        if not dataset.indices("test", labelled=True):
            raise InputError(f"{name} has no labelled test images, which a benchmark needs: add some.")
        datasets[name] = spec, dataset
    return datasets


def count_labels(label: str, dataset: ImageDataset) -> int:
    """The number of labelled training images for a count such as 10 or a fraction such as 0.1.

    Raises:
        InputError: if it is neither, or the data has fewer.
    """
    available = len(dataset.indices("train", labelled=True))
    try:
        value = float(label)
        count = max(round(value * available), 1) if "." in label else int(label)
    except ValueError:
        value, count = math.nan, 0
    if not 1 <= count <= available or not value > 0:
        raise InputError(
            f"`labels={label}`: {dataset.name} has {available} labelled training images; choose a count from 1 to "
            f"{available}, or a fraction with a decimal point, such as 0.1 or 1.0."
        )
    return count


def check_policies(groups: list[Group]) -> None:
    """Builds the pretraining of each policy and data set once, so that bad settings are found before any job runs.

    Raises:
        InputError: if a policy or a setting of pretraining cannot be used.
    """
    seen = set()
    for group in groups:
        policy = group.pretraining.policy
        if policy not in NOT_PRETRAINED and (group.data, policy) not in seen:
            seen.add((group.data, policy))
            Training(group.pretraining)


def check_settings(config: BenchmarkConfig, datasets: Datasets) -> None:
    """Checks that rows in the folder come from the same settings and data.

    Raises:
        InputError: if the folder is not of a benchmark, or has rows of other settings or data.
    """
    saved = saved_settings(config.out)
    if saved is None:
        return
    # A setting that is newer than the folder had its default there.
    usual, before, now = (
        flattened(settings, SET_BY_THE_BENCHMARK)
        for settings in (settings_of(BenchmarkConfig()), saved, settings_of(config))
    )
    kept_settings = usual | before
    for name, value in now.items():
        if (kept := kept_settings[name]) != value:
            raise InputError(
                f"`{name}={value}` differs from the {kept} of the benchmark in {config.out}: use the same value, "
                "or choose another `out`."
            )
    for name, (_, dataset) in datasets.items():
        digest = dataset.digest()  # reads all labels
        if saved["data"].get(name, digest) != digest:
            raise InputError(
                f"`data={name}` is not the {name} that the benchmark in {config.out} has rows of: restore that one, "
                "rename this one, or choose another `out`."
            )


def saved_settings(out: Path) -> dict[str, Any] | None:
    """The `config.json` in the folder of a benchmark; None for a new folder.

    Raises:
        InputError: if the folder is not of a benchmark, or the file cannot be read.
    """
    path = out / "config.json"
    other = InputError(f"{out} is not the folder of a benchmark: choose another `out`.")
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(item.name[0] != "." for item in out.iterdir())):
            raise other
        return None
    saved = read_settings(out)
    if saved.get("kind") != "benchmark":
        raise other
    return saved


def settings_of(config: BenchmarkConfig) -> dict[str, Any]:
    """The settings that all rows of a folder share."""
    values = {name: value for name, value in to_json(config).items() if name not in OPEN}
    for program, names in SET_BY_THE_BENCHMARK.items():
        left_out = (*names, *WITHOUT_EFFECT)
        values[program] = {name: value for name, value in values[program].items() if name not in left_out}
    values["pretrain"]["image_size"] = list(config.pretrain.shape)
    return values | {"probe_draws": NUM_DRAWS}


def write_settings(config: BenchmarkConfig, datasets: Datasets, command: str) -> None:
    """Writes the settings, the data and all commands so far, and removes an incomplete row left by a crash."""
    saved = {"data": {}, "patients": {}, "command": ""} | (saved_settings(config.out) or {})
    if (config.out / "rows.jsonl").exists():
        rows = "".join(row.line() for row in read_lines(config.out))
        write_atomically(config.out / "rows.jsonl", rows)
    commands = dict.fromkeys([*saved["command"].splitlines(), command])
    described = {
        "kind": "benchmark",
        **settings_of(config),
        "data": saved["data"] | {name: dataset.digest() for name, (_, dataset) in datasets.items()},
        "patients": saved["patients"]
        | {name: dataset.patients for name, (_, dataset) in datasets.items() if dataset.patients},
        "command": "\n".join(filter(None, commands)),
        "machine": {"hardware": hardware(pick_device(config.device)), "versions": versions()},
    }
    write_atomically(config.out / "config.json", json.dumps(described, indent=2) + "\n")

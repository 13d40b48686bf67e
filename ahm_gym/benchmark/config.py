"""The settings of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ahm_gym.benchmark.cluster_options import read_options
from ahm_gym.benchmark.rows import BASELINES, KINDS, PROBES
from ahm_gym.errors import InputError, check_numbers
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.segmentation.config import FinetuneConfig

TASKS: tuple[str, ...] = tuple(KINDS)
DEFAULT_TASKS: tuple[str, ...] = ("finetune", "plain", "frozen", "probe")
MAX_SEEDS: int = 1000
PRETRAINING = PretrainConfig(steps=300)
# Rows of earlier benchmarks leave missed structures out of HD95.
FINETUNING = FinetuneConfig(steps=100, missed_distance="leave-out")
SET_BY_THE_BENCHMARK: dict[str, tuple[str, ...]] = {
    "pretrain": ("data", "data_root", "policy", "epochs", "seed", "device", "run_dir"),
    "finetune": (
        "encoder", "data", "data_root", "patient_regex", "labels", "labelled_patients", "model", "image_size",
        "spacing", "patch_size", "seed",
        "device", "run_dir", "decoder", "freeze", "compare",
    ),
}  # fmt: skip
"""Settings of pretraining and fine-tuning that the benchmark chooses for each job."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Compare mask policies under one budget.

    Every policy gets the same updates, images and labels; the untrained encoder and random masks are always included.
    Finished work is never run again: the same command continues, and more data, policies, labels or seeds add to it.
    Every setting of pretraining and fine-tuning can be given, such as --pretrain.steps and --finetune.steps. Short
    forms are --pretrain-steps, --finetune-steps and, for pretraining alone, the bare name: --batch-size.
    """

    data: tuple[str, ...] = ()
    """Labelled data sets, each as for pretraining. Default: the MNI152 brain."""
    data_root: Path | None = None
    """Folder in which relative names of data are looked up, before that of AHM_DATA and the current folder."""
    policies: tuple[str, ...] = ("random", "a3c")
    """Mask policies and agents to compare, by their names in pretraining, with spaces or commas between them.
    Options may follow a colon: a3c:entropy_coef=0.1,width=64 is a policy of its own beside a3c. After a colon, a part
    with an equals sign is an option of that policy, and one without is the next policy."""
    labels: tuple[str, ...] = ("10",)
    """Numbers of labelled training images: counts such as 10, or fractions such as 0.1."""
    seeds: int = 2
    """Number of seeds: 0, 1, ... of weights, images, masks and the choice of labels."""
    tasks: tuple[str, ...] = DEFAULT_TASKS
    """How encoders are evaluated: finetune; plain, the same with a decoder that sees the features alone; frozen, where
    only this decoder is trained; probe, a linear map of each patch; pixel_probe, a linear map of each pixel."""
    baselines: tuple[str, ...] = tuple(BASELINES)
    """What encoders are compared with, beside the untrained one: unet_scratch, a U-Net fine-tuned from scratch;
    raw_patches, the mean and deviation of each patch."""
    pretrain: PretrainConfig = PRETRAINING
    """Pretraining, the same for every policy. Settings of agents apply to the learning agents only."""
    finetune: FinetuneConfig = FINETUNING
    """Fine-tuning, the same for every encoder."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses a GPU if there is one."""
    jobs: int = 1
    """Number of encoders trained at the same time, each in its own process; 1 starts no process."""
    slurm: str | None = None
    """Run each encoder as a job of a SLURM cluster, with these options of sbatch or submitit:
    partition=gpu,gpus=1,time=120, where time is in minutes; or local, the same on this machine. Needs the extra
    cluster, and a folder that all machines share. None: run everything here."""
    time_budget: float | None = None
    """Minutes after which no new work is started and running work is saved. None: no limit."""
    out: Path = Path("runs/benchmark")
    """Folder of the rows, the pictures and the report."""


def check(config: BenchmarkConfig) -> None:
    """Checks what can be checked without opening the data.

    Raises:
        InputError: if a setting is out of range, or is one that the benchmark chooses itself.
    """
    check_numbers("count", seeds=config.seeds, jobs=config.jobs)
    if config.seeds > MAX_SEEDS:
        raise InputError(f"`seeds={config.seeds}` is out of range: choose at most {MAX_SEEDS:,}.")
    for program in ("pretrain", "finetune"):
        nested = getattr(config, program)
        for name in ("steps", "batch_size", "checkpoint_every"):
            check_numbers("count", **{f"{program}.{name}": getattr(nested, name)})
        check_numbers("size", **{f"{program}.learning_rate": nested.learning_rate})
        for name in SET_BY_THE_BENCHMARK[program]:
            if name == "epochs" and nested.epochs is not None:
                raise InputError(
                    "`pretrain.epochs` would be another number of updates on each data set: choose `pretrain.steps`."
                )
            if getattr(nested, name) != getattr(type(nested), name):
                raise InputError(
                    f"`{program}.{name}` is set by the benchmark for each job: leave it out; `data`, `policies`, "
                    "`labels`, `seeds`, `tasks`, `device` and `out` of the benchmark determine it."
                )
    if config.finetune.split == "val" and set(PROBES) & set(config.tasks):
        raise InputError(
            "`finetune.split=val` keeps test images unseen, and the probe scores them: choose `tasks=finetune`."
        )
    if config.slurm is not None:
        _check_slurm(config, config.slurm)
    if config.time_budget is not None and not config.time_budget > 0:
        raise InputError(f"`time_budget` is {config.time_budget}: choose a number of minutes above 0.")
    for name in ("tasks", "labels"):
        if not getattr(config, name):
            raise InputError(f"`{name}` is empty: name at least one.")
    if not set(config.baselines) <= set(BASELINES):
        raise InputError(f"`baselines={','.join(config.baselines)}`: choose from {', '.join(BASELINES)}.")
    if not set(config.tasks) <= set(TASKS):
        raise InputError(f"`tasks={','.join(config.tasks)}`: choose from {', '.join(TASKS)}.")


def _check_slurm(config: BenchmarkConfig, options: str) -> None:
    if config.jobs != 1:
        raise InputError(
            f"`jobs={config.jobs}` is for this machine alone: leave it out with `slurm`, whose option "
            "array_parallelism is the largest number of jobs at the same time."
        )
    if config.time_budget is not None:
        raise InputError(
            f"`time_budget={config.time_budget:g}` does not reach the jobs of a cluster: leave it out with `slurm`, "
            "whose option time limits each of them; Ctrl-C only ends the wait for them."
        )
    read_options(options)

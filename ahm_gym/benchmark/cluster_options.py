"""The options of the jobs of a benchmark on a cluster, as the setting `slurm` gives them."""

from __future__ import annotations

from dataclasses import dataclass

from ahm_gym.errors import InputError, check_numbers, load_package, unknown_name

LOCAL: str = "local"
"""In the place of options: the same path on this machine, without SLURM."""
NUMBERS: tuple[str, ...] = (
    "time", "cpus_per_task", "cpus_per_gpu", "array_parallelism", "signal_delay_s", "max_num_timeout",
)  # fmt: skip
"""Options that are whole numbers; `time` is in minutes."""
TEXTS: tuple[str, ...] = (
    "partition", "account", "qos", "gpus", "gpus_per_node", "gpus_per_task", "gres", "mem", "mem_per_cpu",
    "mem_per_gpu", "constraint", "nodelist", "exclude", "exclusive", "dependency", "reservation", "licenses", "nice",
    "begin", "job_name", "comment", "mail_type", "mail_user",
)  # fmt: skip
"""Options that are texts. `nodes` and `ntasks` are not among them: a job is one process."""
OF_SBATCH_ALONE: tuple[str, ...] = ("gpus", "reservation", "licenses", "nice", "begin")
"""Options that submitit does not know; it passes them to sbatch as they are."""
OF_LOCAL_JOBS: tuple[str, ...] = ("time", "array_parallelism", "signal_delay_s", "max_num_timeout")
ALIASES: dict[str, str] = {"timeout_min": "time", "mem_gb": "mem", "name": "job_name"}
"""What submitit calls options by on every cluster, and their names in sbatch."""


@dataclass(frozen=True)
class ClusterOptions:
    """What each job of a benchmark asks the cluster for."""

    local: bool
    """Whether the jobs run on this machine, without SLURM."""
    values: dict[str, int | str]
    """The options by their names in sbatch, with underscores."""

    @property
    def parallel(self) -> int:
        """The largest number of jobs that run at the same time."""
        given = self.values.get("array_parallelism", 1 if self.local else 256)
        assert isinstance(given, int), "checked when it was read"
        return given


def need_submitit() -> None:
    """Raises InputError if submitit is missing."""
    load_package("submitit", "`slurm` needs submitit", "cluster", ", or use `jobs` instead")


def read_options(text: str) -> ClusterOptions:
    """The options in a text such as `partition=gpu,gpus=1,time=120`, or `local`.

    A part without an equals sign belongs to the value before it, as in `nodelist=a1,a2`. Names may have hyphens,
    as for sbatch, or underscores, as for submitit.

    Raises:
        InputError: if an option is unknown or has no value, a number is none, or `time` is missing.
    """
    parts = [part.strip() for part in text.split(",")]
    local = parts[0] == LOCAL
    given: list[list[str]] = []
    for part in parts[local:]:
        name, equals, value = part.partition("=")
        if equals:
            given.append([name, value])
        elif given:
            given[-1][1] += f",{part}"
        else:
            raise InputError(
                f"`slurm={text}`: {part!r} is no option: write options such as partition=gpu,gpus=1,time=120, or local."
            )
    values = dict(_option(name, value, local) for name, value in given)
    if not local and "time" not in values:
        raise InputError(
            f"`slurm={text}` has no time limit, and SLURM's own is often too short: add time=MINUTES, such as time=120."
        )
    return ClusterOptions(local, values)


def _option(given: str, value: str, local: bool) -> tuple[str, int | str]:
    """The name of an option in sbatch, and its value."""
    name = given.strip().lstrip("-").replace("-", "_").removeprefix("slurm_")
    if name == "mem_gb":
        value = f"{value}G"
    name = ALIASES.get(name, name)
    if name not in (*NUMBERS, *TEXTS) or not value:
        if name in (*NUMBERS, *TEXTS):
            raise InputError(f"`slurm` gives {given} no value: write {given}=VALUE, or leave it out.")
        raise unknown_name("option of `slurm`", given, (*NUMBERS, *TEXTS, *ALIASES))
    if local and name not in OF_LOCAL_JOBS:
        raise InputError(
            f"`slurm=local` runs the jobs on this machine, where {given} means nothing: leave it out; "
            f"known there are {', '.join(OF_LOCAL_JOBS)}."
        )
    if name not in NUMBERS:
        return name, value
    if not value.isdecimal():
        unit = " of minutes" if name == "time" else ""
        raise InputError(f"`slurm` has {given}={value}: choose a whole number{unit}, 1 or more.")
    check_numbers("count", **{f"slurm.{given}": int(value)})
    return name, int(value)

"""The command line: `ahm-gym pretrain`, `finetune`, `predict` and the other commands in `PROGRAMS`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ahm_gym.benchmark.config import BenchmarkConfig
from ahm_gym.device.launch import check_alone, launched, quiet
from ahm_gym.errors import InputError, Interrupted, RunError, disk_failure, is_out_of_memory, printable, say
from ahm_gym.flags import (
    WITH_NESTED,
    flags_in,
    nested_flag,
    scans_first,
    shown_settings,
    split_at_commas,
    split_numbers,
    with_flags,
)
from ahm_gym.look.config import LookConfig
from ahm_gym.mask_benchmark.config import MaskBenchConfig
from ahm_gym.pretraining.config import Pretrain
from ahm_gym.runs.places import with_homes
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.settings import as_config
from ahm_gym.segmentation.config import (
    FEW_PATIENTS,
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    Finetune,
    FinetuneConfig,
    PredictConfig,
    ProbeConfig,
)
from ahm_gym.sweeping.config import SweepConfig

DESCRIPTION = "Self-supervised pretraining for medical image segmentation in which the mask is learned."


@dataclasses.dataclass(frozen=True)
class Report:
    """Rewrite the report of a fine-tuning run, an evaluation, a benchmark, MaskBench or a sweep from its files."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run, of the evaluation, of the benchmark, of MaskBench or of the sweep."""
    compare: str | None = None
    """What a run or an evaluation is compared with: another one, or none for the run from scratch in its folder.
    Default: what the run itself was compared with."""


def pretrain(settings: Pretrain, argv: list[str]) -> None:
    """Pretrains, then prints what was written and what to do next."""
    from ahm_gym.pretraining.recipes import is_recipe_run, run_program

    run = run_program(settings, flags_in(argv))
    if is_recipe_run(run):
        print(f"\nWrote {run}/: one folder per stage, each with figures/masks.png, figures/curves.png")
    else:
        print(f"\nWrote {run}/: encoder/, figures/masks.png, figures/curves.png, metrics.jsonl")
    print(f"Next: ahm-gym finetune --encoder {shlex.quote(str(run))}")


def finetune(settings: Finetune, argv: list[str]) -> None:
    """Fine-tunes, then prints the scores."""
    from ahm_gym.model.encoders import is_planned
    from ahm_gym.segmentation.inputs import with_run_dir
    from ahm_gym.segmentation.program import is_complete, run_finetune

    config = as_config(FinetuneConfig, settings)
    if settings.resume and is_complete(config.run_dir):
        print(f"{config.run_dir} is already finished.")
    config = config if settings.resume else with_run_dir(config, "finetune")
    command = shlex.join(["ahm-gym", *argv])
    results = run_finetune(config, resume=settings.resume, given=flags_in(argv), command=command)
    print(f"\n{results['num_cases']} {results['split']} cases, {results['labels']} labelled training images")
    show_scores(results)
    if best := results.get("best"):
        chosen = results["config"].get("select", "last")
        print(
            f"Best Dice on val {shown(best['dice'])} at update {best['step']}; scored: the {chosen} segmenter"
        )
    print(
        f"Wrote {config.run_dir}/: results.json, figures/overlays.png, report.html, segmenter/, metrics.jsonl"
    )
    if results["config"].get("compare") is not None:
        return
    if results["config"]["encoder"] == "none":
        volumes = " --volumes" * (len(results["config"]["image_size"]) == 3)
        print(f"Next: ahm-gym pretrain{volumes} {same_images(results['config'])}")
        print("then this command again with --encoder and the folder of that run")
    elif not is_planned(Path(str(config.run_dir), "segmenter", "encoder")):
        print(f"Next, to compare: the same command with --encoder none {same_images(results['config'])}")
        print("and another --run-dir if you gave one; or with --compare none, for both in one report")


def show_scores(results: dict[str, Any]) -> None:
    """Prints the scores of a segmentation for every class, how sure they are, and the classes that are missing."""
    unit, names = results["hd95_unit"], class_names(results)
    tolerance = f"{results.get('surface_tolerance', 1.0):g} {unit}"
    for name, row in [*results["per_class"].items(), ("mean", results)]:
        dice, iou, distance, share = (shown(row.get(metric)) for metric in ("dice", "iou", "hd95", "nsd"))
        title = "mean" if name == "mean" else names.get(name, f"class {name}")
        print(
            f"{title}: Dice {dice}, IoU {iou}, HD95 {distance} {unit}, surface Dice {share} (within {tolerance})"
        )
    show_reliability(results)
    if absent := results.get("absent_classes"):
        listed = ", ".join(names.get(str(index), f"class {index}") for index in absent)
        which = "label" if results["split"] == "all" else f"{results['split']} label"
        print(f"No {which} contains {listed}: it is left out of the mean.")


def show_reliability(results: dict[str, Any]) -> None:
    """Prints the interval of the Dice over patients, and how often a structure was missed or falsely found."""
    interval = results.get("intervals", {}).get("dice")
    if interval is not None:
        low, high = map(shown, interval)
        patients = results["num_patients"]
        few = " (too narrow, because they are few)" if patients < FEW_PATIENTS else ""
        print(f"95 % interval of the mean Dice over {patients} patients: {low} to {high}{few}")
    if results.get("missed") or results.get("false_alarms"):
        counted = "the diagonal" if results["missed_distance"] == "diagonal" else "nothing"
        print(
            f"Structures missed: {results['missed']}, found where there are none: {results['false_alarms']}; in the "
            f"mean HD95 each counts as {counted}."
        )


def probe(settings: ProbeConfig, argv: list[str]) -> None:
    """Probes an encoder, then prints the score."""
    from ahm_gym.segmentation.inputs import with_run_dir
    from ahm_gym.segmentation.probe_run import run_probe

    config = with_run_dir(settings, "probe")
    results = run_probe(config)
    images = f"{results['num_images']} test images, {results['labels']} labelled training images"
    if config.head == "patch":
        print(f"\nPatch Dice {shown(results['patch_dice'])} on {images}")
    else:
        print(f"\nPixels, {images}")
        show_pixel_scores(results)
    print(f"Wrote {config.run_dir}/results.json")
    print("Next, to fine-tune: ahm-gym finetune with the same flags, and another --run-dir if you gave one")


def show_pixel_scores(results: dict[str, Any]) -> None:
    """Prints the scores of a pixel probe for every class, and what is missing from them."""
    names = class_names(results)
    for name, row in [*results["per_class"].items(), ("mean", results)]:
        ap, dice, loss = (shown(row[metric]) for metric in ("ap", "dice", "log_loss"))
        chance = f" (chance: {shown(row['share'])})" if name != "mean" else ""
        title = "mean" if name == "mean" else names.get(name, f"class {name}")
        print(f"{title}: average precision {ap}{chance}, Dice {dice}, log-loss {loss}")
    if absent := results["absent_classes"]:
        listed = ", ".join(names.get(str(index), f"class {index}") for index in absent)
        print(f"No labelled training image contains {listed}: its average precision is that of chance.")


def predict(settings: PredictConfig, argv: list[str]) -> None:
    """Segments scans, then says what was written."""
    from ahm_gym.data.wording import counted
    from ahm_gym.segmentation.prediction import run_predict

    rows = run_predict(settings)
    maps = [f"{name}/" for name in ("probabilities", "uncertainty") if getattr(settings, name)]
    print(
        f"\nWrote {settings.out}/: {', '.join([counted(len(rows), 'mask'), *maps, 'areas.csv', 'overlays.png'])}"
    )


def evaluate(settings: EvaluateConfig, argv: list[str]) -> None:
    """Scores runs on other images, then prints the scores."""
    from ahm_gym.data.wording import counted
    from ahm_gym.segmentation.evaluate_runs import run_evaluate

    results = run_evaluate(settings, shlex.join(["ahm-gym", *argv]))
    print(
        f"\n{counted(results['num_cases'], 'case')} of {printable(results['data'])}, {results['split']} images"
    )
    show_scores(results)
    print(f"Wrote {settings.out}/: results.json, overlays.png, report.html")


def export(settings: ExportConfig, argv: list[str]) -> None:
    """Exports a network, then says where it is."""
    from ahm_gym.segmentation.export import run_export

    print(f"\nWrote {run_export(settings)}")


def embed(settings: EmbedConfig, argv: list[str]) -> None:
    """Embeds images, then says how many features were written."""
    from ahm_gym.segmentation.embedding import run_embed

    shape = run_embed(settings)
    print(f"\nWrote {settings.out}: {shape[0]} images, {' x '.join(map(str, shape[1:]))} features each")


def look(settings: LookConfig, argv: list[str]) -> None:
    """Shows what is understood of a data set, then says where the page is."""
    from ahm_gym.look.program import run_look

    page = run_look(settings)
    print(f"\nWrote {page}")
    description = settings.out / "dataset.json"
    if description.is_file():
        print(f"and {description}: correct it where it is wrong, and give it as --data")


def benchmark(settings: BenchmarkConfig, argv: list[str]) -> None:
    """Runs the missing jobs of a benchmark, then writes its report."""
    from ahm_gym.benchmark.run import run_benchmark
    from ahm_gym.pretraining.policy_options import split_policies

    config: BenchmarkConfig = as_config(BenchmarkConfig, settings)
    listed = {name: split_at_commas(getattr(config, name)) for name in ("labels", "tasks", "baselines")}
    listed["policies"] = split_policies(config.policies)
    out = run_benchmark(dataclasses.replace(config, **listed), command=shlex.join(["ahm-gym", *argv]))
    print(f"\nWrote {out}/: report.html, leaderboard.md, leaderboard.csv, rows.jsonl")


def sweep(settings: SweepConfig, argv: list[str]) -> None:
    """Runs the missing trials of a sweep, then writes its report."""
    from ahm_gym.sweeping.program import run_sweep

    out = run_sweep(as_config(SweepConfig, settings), command=shlex.join(["ahm-gym", *argv]))
    print(f"\nWrote {out}/: report.html with the best command to copy, trials.csv, trials.md")


def maskbench(settings: MaskBenchConfig, argv: list[str]) -> None:
    """Runs the missing jobs of MaskBench, then writes its report."""
    from ahm_gym.mask_benchmark.run import run_maskbench
    from ahm_gym.pretraining.policy_options import split_policies

    config = dataclasses.replace(
        settings, policies=split_policies(settings.policies), rewards=split_at_commas(settings.rewards)
    )
    out = run_maskbench(config, command=shlex.join(["ahm-gym", *argv]))
    if (out / "report.html").is_file():
        print(f"\nWrote {out}/: report.html, maskbench.md, maskbench.csv, improvement.csv, rows.jsonl")


def report(settings: Report, argv: list[str]) -> None:
    """Rewrites the report of a run, an evaluation, a benchmark or a sweep."""
    if (settings.folder / "results.json").is_file() or is_run(settings.folder):
        from ahm_gym.segmentation.report import write_report

        print(f"Wrote {write_report(settings.folder, settings.compare)}")
        return
    if settings.compare is not None:
        raise InputError(
            f"`compare={settings.compare}` is for a fine-tuning run or an evaluation, and {settings.folder} is "
            "neither: leave it out."
        )
    if kind_of(settings.folder) == "sweep":
        from ahm_gym.sweeping.report import write_report as write_sweep

        print(f"Wrote {write_sweep(settings.folder)}")
        return
    if kind_of(settings.folder) == "maskbench":
        from ahm_gym.mask_benchmark.report import write_mask_report

        write_mask_report(settings.folder)
        print(f"Wrote {settings.folder}/: report.html, maskbench.md, maskbench.csv, improvement.csv")
        return
    from ahm_gym.benchmark.report import write_report as write_benchmark

    write_benchmark(settings.folder)
    print(f"Wrote {settings.folder}/: report.html, leaderboard.md, leaderboard.csv")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a fine-tuning run, finished or not."""
    return (folder / "segmenter").is_dir()


def kind_of(folder: Path) -> str | None:
    """The kind of what a folder holds, by its settings; None without them."""
    path = folder / "config.json"
    return read_object(path).get("kind") if path.is_file() else None


PROGRAMS: dict[str, tuple[type[Any], Callable[[Any, list[str]], None]]] = {
    "look": (LookConfig, look),
    "pretrain": (Pretrain, pretrain),
    "finetune": (Finetune, finetune),
    "probe": (ProbeConfig, probe),
    "predict": (PredictConfig, predict),
    "evaluate": (EvaluateConfig, evaluate),
    "export": (ExportConfig, export),
    "embed": (EmbedConfig, embed),
    "benchmark": (BenchmarkConfig, benchmark),
    "sweep": (SweepConfig, sweep),
    "maskbench": (MaskBenchConfig, maskbench),
    "report": (Report, report),
}
"""The settings and the function of every command."""
DIVIDED: tuple[str, ...] = ("pretrain", "finetune")
"""The commands whose work several processes of torchrun divide."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parses a command line and runs its command.

    Args:
        argv: the arguments; default: those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else ""
    kind = PROGRAMS[name][0] if name in PROGRAMS else None
    given = scans_first(argv, PROGRAMS[name][0]) if name in ("predict", "evaluate") else argv
    args = split_numbers([nested_flag(one, kind) for one in given] if kind in WITH_NESTED else given)
    commands = {name: shown_settings(kind) for name, (kind, _) in PROGRAMS.items()}
    every: Any = functools.reduce(
        operator.or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items())
    )
    with command_line(), quiet():
        if name not in DIVIDED:
            check_alone(f"ahm-gym {name}".strip())
        settings = tyro.cli(every, args=args, prog="ahm-gym", description=DESCRIPTION)
        PROGRAMS[name][1](with_homes(settings), argv)


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Turns a failure that the user can fix into one sentence on standard error and an exit code.

    The code is 2 for bad input, a full disk or too little memory, 1 for a failed run, 130 for Ctrl-C and 143 for
    SIGTERM.
    """
    try:
        yield
    except Interrupted as error:
        say_once(str(error))
        raise SystemExit(error.exit_code) from None
    except (InputError, RunError) as error:
        fail(2 if isinstance(error, InputError) else 1, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(2, "out of memory: choose a smaller --batch-size, --image-size or --model.")
    except PermissionError as error:
        if not error.filename:
            raise
        fail(
            2,
            f"{error.filename}: {error.strerror}: change its permissions or those of its folder, or choose another.",
        )
    except BrokenPipeError:  # as in `ahm-gym --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        told = disk_failure(error)
        if told is None:
            raise
        fail(2, f"{told}, or choose another --run-dir.")
    except KeyboardInterrupt:
        fail(130, "interrupted.")


def say_once(message: str, start: str = "") -> None:
    """Says a sentence on standard error, with flags for the settings, if no other process of torchrun has said it."""
    if launched():
        from ahm_gym.device import ranks

        if not ranks.first_to_say(message):
            return
    say(start + with_flags(message))


def fail(code: int, message: str) -> None:
    """Ends the program with one sentence on standard error."""
    say_once(message, "error: ")
    raise SystemExit(code) from None


def same_images(settings: dict[str, Any]) -> str:
    """The flags for the same images and an encoder of the same shape."""
    spacing = settings.get("spacing")
    sizes = spacing if isinstance(spacing, (list, tuple)) else [] if spacing is None else [spacing]
    flags = {"--data": settings["data"] and shlex.quote(settings["data"]), "--model": settings["model"]}
    flags |= {
        "--image-size": " ".join(map(str, settings["image_size"])),
        "--patch-size": settings["patch_size"],
        "--spacing": " ".join(f"{size:g}" for size in sizes) or None,
    }
    return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)


def class_names(results: dict[str, Any]) -> dict[str, str]:
    """The names of classes, safe in a terminal; they may come from a file of the data."""
    return {index: printable(name) for index, name in results.get("class_names", {}).items()}


def shown(value: float | None) -> str:
    """A score with three decimals."""
    return "undefined" if value is None else f"{value:.3f}"

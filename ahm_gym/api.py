"""The Python API of `import ahm_gym`. Its functions raise `InputError` or `RunError`; they never exit."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gymnasium as gym
from torch import nn

from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.mask_benchmark import run as maskbench_run
from ahm_gym.mask_benchmark.config import MaskBenchConfig
from ahm_gym.mask_benchmark.report import read_scores
from ahm_gym.model import encoders
from ahm_gym.pretraining import recipes
from ahm_gym.pretraining.config import Pretrain
from ahm_gym.runs.places import expanded, with_homes
from ahm_gym.runs.settings import as_config, from_json
from ahm_gym.segmentation import embedding, evaluate_runs, prediction, probe_run
from ahm_gym.segmentation import export as exporting
from ahm_gym.segmentation.config import (
    EmbedConfig,
    EvaluateConfig,
    ExportConfig,
    Finetune,
    FinetuneConfig,
    PredictConfig,
    ProbeConfig,
)
from ahm_gym.segmentation.inputs import with_run_dir
from ahm_gym.segmentation.program import run_finetune
from ahm_gym.sweeping.config import SweepConfig

Settings = ParamSpec("Settings")
Config = TypeVar("Config")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RunResult:
    """The folder of a run. A result can be passed as the path of that folder."""

    run_dir: Path

    def __fspath__(self) -> str:
        return str(self.run_dir)

    def __str__(self) -> str:
        return str(self.run_dir)


@dataclass(frozen=True)
class PretrainResult(RunResult):
    """The files of a pretraining run."""

    encoder: Path
    """The exported encoder. `load_encoder` reads it; timm also reads a vision transformer."""
    agent: Path | None
    """The trained agent, usable as policy `agent:RUN_DIR`; None if a mask policy chose the masks."""
    masks: Path
    """Picture of the masks over the course of training."""
    curves: Path
    """Plot of losses and rewards over the course of training."""
    metrics: Path
    """Losses, rewards and other metrics as JSON lines."""
    stages: tuple[Path, ...] = ()
    """The runs of a recipe's stages, in order; the fields above describe the last one."""


@dataclass(frozen=True)
class FinetuneResult(RunResult):
    """The scores and files of a fine-tuning run."""

    dice: float | None
    """Mean Dice over cases and classes, 0 to 1; None if no case contains a class."""
    scores: dict[str, Any]
    """The content of `results.json`: Dice, IoU and HD95 for every class and case."""
    segmenter: Path
    """The trained segmenter."""
    overlays: Path
    """Picture of labels and predictions for some cases, from worst to best."""
    report: Path
    """One page of what the run comes to, for people who read only that."""


@dataclass(frozen=True)
class ProbeResult(RunResult):
    """The scores of a probe."""

    patch_dice: float | None
    """Dice over patches, 0 to 1; None if no test image contains a class, or with `head="pixel"`."""
    ap: float | None
    """Average precision over pixels, 0 to 1; None if no test image contains a class, or with `head="patch"`."""
    scores: dict[str, Any]
    """The content of `results.json`."""


@dataclass(frozen=True)
class PredictResult(RunResult):
    """The masks of scans, in the folder `run_dir`."""

    rows: list[dict[str, Any]]
    """A row for each scan: its file, the names of its mask and maps in the folder, and the pixels of each class."""
    areas: Path
    """Table (CSV) of the pixels of each class, with areas or volumes."""


@dataclass(frozen=True)
class EvaluateResult(RunResult):
    """The scores of fine-tuned runs on other images, in the folder `run_dir`."""

    dice: float | None
    """Mean Dice over cases and classes, 0 to 1; None if no case contains a class."""
    scores: dict[str, Any]
    """The content of `results.json`."""
    overlays: Path
    """Picture of labels and predictions for some cases, from worst to best."""
    report: Path
    """One page of what the scores come to, for people who read only that."""


@dataclass(frozen=True)
class SweepResult(RunResult):
    """The best trial of a sweep so far, and the files in the folder `run_dir`."""

    score: float | None
    """Its score on val; None if no trial has one yet."""
    best: dict[str, Any]
    """Its searched settings by name; choices are texts."""
    trials: Path
    """Table (CSV) of all trials."""
    report: Path
    """Page with the trials, what matters, and the command of the best one."""


@dataclass(frozen=True)
class MaskBenchResult(RunResult):
    """The scores and files of a MaskBench, in the folder `run_dir`."""

    scores: dict[str, dict[str, float]]
    """Reward -> policy -> mean score over autoencoders and seeds: 0 is random masks, 1 the oracle. The best policy
    comes first; one that lacks an autoencoder is left out."""
    report: Path
    """One page with tables and learning curves; missing if the time was up before the first score."""


def with_settings_of(
    kind: Callable[Settings, Config],
) -> Callable[[Callable[[Config, set[str]], Result]], Callable[Settings, Result]]:
    """Makes a program accept its settings as keyword arguments.

    The program itself takes two arguments: an instance of `kind`, and the names of the settings that were given.
    """

    def decorate(program: Callable[[Config, set[str]], Result]) -> Callable[Settings, Result]:
        signature = inspect.signature(kind)

        @functools.wraps(program)
        def call(*args: Settings.args, **kwargs: Settings.kwargs) -> Result:
            for name in kwargs.keys() - signature.parameters.keys():
                raise unknown_name("setting", name, signature.parameters)
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise InputError(
                    f"{program.__name__}() cannot be called: {error}; give its settings by name."
                ) from error
            values = {name: _as_text(value) for name, value in given.items()}
            settings: Any = from_json(kind, values, f"the call of {program.__name__}()")  # type: ignore[arg-type]
            return program(with_homes(settings), set(given))

        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(program).return_annotation
        )
        return call

    return decorate


def _as_text(value: Any) -> Any:
    """A path as text, also in a list or tuple; other values as they are."""
    if isinstance(value, (list, tuple)):
        return [_as_text(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@with_settings_of(Pretrain)
def pretrain(settings: Pretrain, given: set[str]) -> PretrainResult:
    """Pretrains an encoder with a learned mask: `pretrain(data="scans/", steps=2000)`.

    The keyword arguments are the fields of `ahm_gym.pretraining.config.Pretrain`.

    Raises:
        InputError: if settings or data cannot be used; no folder is left behind.
        RunError: if the run cannot continue; its last checkpoint is valid.
    """
    run_dir = recipes.run_program(settings, given).absolute()
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    stages = tuple(run_dir / name for name in config.get("stages", ()))
    last = stages[-1] if stages else run_dir
    agent = last / "agent"
    return PretrainResult(
        run_dir=run_dir,
        encoder=last / "encoder",
        agent=agent if agent.is_dir() else None,
        masks=last / "figures" / "masks.png",
        curves=last / "figures" / "curves.png",
        metrics=last / "metrics.jsonl",
        stages=stages,
    )


@with_settings_of(Finetune)
def finetune(settings: Finetune, given: set[str]) -> FinetuneResult:
    """Fine-tunes an encoder for segmentation and scores it: `finetune(encoder=run, labels=10)`.

    The keyword arguments are the fields of `ahm_gym.segmentation.config.Finetune`.

    Raises:
        InputError: if settings or data cannot be used; no folder is left behind.
        RunError: if the loss is not finite; the last checkpoint is valid.
    """
    config: FinetuneConfig = as_config(FinetuneConfig, settings)
    config = config if settings.resume else with_run_dir(config, "finetune")
    scores = run_finetune(config, resume=settings.resume, given=given)
    assert config.run_dir is not None, "chosen above, or needed to resume"
    run_dir = config.run_dir.absolute()
    return FinetuneResult(
        run_dir=run_dir,
        dice=scores["dice"],
        scores=scores,
        segmenter=run_dir / "segmenter",
        overlays=run_dir / "figures" / "overlays.png",
        report=run_dir / "report.html",
    )


@with_settings_of(ProbeConfig)
def probe(settings: ProbeConfig, given: set[str]) -> ProbeResult:
    """Evaluates a frozen encoder with a linear map from its features: `probe(encoder=run, labels=10)`.

    The keyword arguments are the fields of `ahm_gym.segmentation.config.ProbeConfig`.

    Raises:
        InputError: if settings or data cannot be used; no folder is left behind.
    """
    config = with_run_dir(settings, "probe")
    scores = probe_run.run_probe(config)
    assert config.run_dir is not None, "chosen above"
    return ProbeResult(config.run_dir.absolute(), scores.get("patch_dice"), scores.get("ap"), scores)


@with_settings_of(PredictConfig)
def predict(settings: PredictConfig, given: set[str]) -> PredictResult:
    """Segments new scans with a fine-tuned run or several: `predict(scans="new/", run=run, out="masks")`.

    The keyword arguments are the fields of `ahm_gym.segmentation.config.PredictConfig`.

    Raises:
        InputError: if a run or a scan cannot be used, or the folder holds masks of other runs or options.
    """
    rows = prediction.run_predict(settings)
    return PredictResult(settings.out.absolute(), rows, settings.out.absolute() / "areas.csv")


@with_settings_of(EvaluateConfig)
def evaluate(settings: EvaluateConfig, given: set[str]) -> EvaluateResult:
    """Scores a fine-tuned run or several on other labelled images: `evaluate(scans="site_b/", run=run)`.

    The keyword arguments are the fields of `ahm_gym.segmentation.config.EvaluateConfig`.

    Raises:
        InputError: if the runs or the images cannot be used, or do not fit each other; nothing is written.
    """
    scores = evaluate_runs.run_evaluate(settings)
    out = settings.out.absolute()
    return EvaluateResult(out, scores["dice"], scores, out / "overlays.png", out / "report.html")


@with_settings_of(ExportConfig)
def export(settings: ExportConfig, given: set[str]) -> Path:
    """Exports a segmenter or an encoder, and returns its path: `export(run=run, out="model.onnx")`.

    The keyword arguments are the fields of `ahm_gym.segmentation.config.ExportConfig`.

    Raises:
        InputError: if the run or the format cannot be used; nothing is written.
        RunError: if the exported network does not give the numbers of the original one.
    """
    return exporting.run_export(settings).absolute()


@with_settings_of(EmbedConfig)
def embed(settings: EmbedConfig, given: set[str]) -> Path:
    """Writes the features of images, and returns the file: `embed(scans="scans/", run=run, out="features.npz")`.

    The keyword arguments are the fields of `ahm_gym.segmentation.config.EmbedConfig`.

    Raises:
        InputError: if the run, the images or the file cannot be used; nothing is written.
    """
    embedding.run_embed(settings)
    return settings.out.absolute()


@with_settings_of(SweepConfig)
def sweep(settings: SweepConfig, given: set[str]) -> SweepResult:
    """Searches settings by their score on val: `sweep(data="scans/", search=["learning_rate=1e-4..1e-2:log"])`.

    The keyword arguments are the fields of `ahm_gym.sweeping.config.SweepConfig`; `pretrain` and `finetune` are dicts.
    A sweep in `out` is continued. It needs Optuna, which comes with the extra `sweep`.

    Raises:
        InputError: if settings or data cannot be used, or Optuna is not installed; nothing is written.
        RunError: if no trial has a score.
    """
    from ahm_gym.sweeping.program import best_of, run_sweep

    out = run_sweep(settings).absolute()
    score, values = best_of(out)
    return SweepResult(out, score, values, out / "trials.csv", out / "report.html")


@with_settings_of(MaskBenchConfig)
def maskbench(settings: MaskBenchConfig, given: set[str]) -> MaskBenchResult:
    """Scores policies on frozen autoencoders, without labels: `maskbench(policies=["a3c", "my_package:Policy"])`.

    The keyword arguments are the fields of `ahm_gym.mask_benchmark.config.MaskBenchConfig`.

    Raises:
        InputError: if settings or data cannot be used, or the folder holds another benchmark.
        RunError: if jobs failed, after all others have been run and reported.
    """
    out = maskbench_run.run_maskbench(settings).absolute()
    return MaskBenchResult(out, read_scores(out), out / "report.html")


def load_encoder(run: str | os.PathLike[str]) -> nn.Module:
    """Loads an encoder, in evaluation mode.

    Args:
        run: folder of a pretraining run, or its `encoder` folder.

    Raises:
        InputError: if the folder holds no encoder.
    """
    return encoders.load_encoder(expanded(run)).eval()


def make_vec(num_envs: int = 16, *, form: str = "Masking", **options: Any) -> MaskingVectorEnv:
    """Makes a masking environment with `gymnasium.make_vec`.

    Args:
        num_envs: number of images in a batch.
        form: form of the actions: Masking, MultiBinaryMasking, SequentialMasking, GroupMasking or
            RectangleMasking.
        options: keyword arguments of `ahm_gym.envs.MaskingVectorEnv`.

    Raises:
        InputError: if the form is unknown, an option is out of range, or the data cannot be used.
    """
    forms = [
        name[4:-3]
        for name, spec in gym.registry.items()
        if name.startswith("AHM/") and spec.vector_entry_point is not None
    ]
    if form not in forms:
        raise unknown_name("form of the actions", form, forms)
    env = gym.make_vec(f"ahm_gym:AHM/{form}-v0", num_envs=num_envs, **options)
    assert isinstance(env, MaskingVectorEnv)
    return env

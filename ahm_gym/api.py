"""The Python API: what `import ahm_gym` offers. Functions raise `InputError` and `RunError`, and never exit."""

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
from ahm_gym.errors import unknown_name
from ahm_gym.model import encoders
from ahm_gym.pretraining import recipes
from ahm_gym.pretraining.config import Pretrain
from ahm_gym.runs.settings import as_config, from_json
from ahm_gym.segmentation import finetune as finetuning
from ahm_gym.segmentation.config import Finetune, FinetuneConfig, ProbeConfig
from ahm_gym.segmentation.inputs import with_run_dir

Settings = ParamSpec("Settings")
Config = TypeVar("Config")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining run has written. It stands for its run folder wherever a path is expected."""

    run_dir: Path
    encoder: Path
    """The exported encoder: `load_encoder` reads it, and of a vision transformer timm does too."""
    agent: Path | None
    """The trained agent, to mask with as policy `agent:RUN_DIR`; None of a mask policy."""
    masks: Path
    """Picture of what was masked over training."""
    curves: Path
    """Picture of losses and rewards over training."""
    metrics: Path
    """The same as JSON lines."""
    stages: tuple[Path, ...] = ()
    """The runs of a recipe; the last one is described above."""

    def __fspath__(self) -> str:
        return str(self.run_dir)


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning run has found and written."""

    run_dir: Path
    dice: float | None
    """Mean over cases and classes, 0 to 1; None where no case has a class."""
    scores: dict[str, Any]
    """Everything in `results.json`: Dice, IoU and HD95 of every class and case."""
    segmenter: Path
    """The trained segmenter."""
    overlays: Path
    """Picture of the labels and predictions of some cases, from the worst to the best."""

    def __fspath__(self) -> str:
        return str(self.run_dir)


@dataclass(frozen=True)
class ProbeResult:
    """What a probe has found and written."""

    run_dir: Path
    patch_dice: float | None
    """Dice over patches, 0 to 1; None where no test image has a class."""
    scores: dict[str, Any]
    """Everything in `results.json`."""


def with_settings_of(
    kind: Callable[Settings, Config],
) -> Callable[[Callable[[Config, set[str]], Result]], Callable[Settings, Result]]:
    """Lets a function of settings, and of the names of those that were given, take them as keyword arguments."""

    def decorate(program: Callable[[Config, set[str]], Result]) -> Callable[Settings, Result]:
        signature = inspect.signature(kind)

        @functools.wraps(program)
        def call(*args: Settings.args, **kwargs: Settings.kwargs) -> Result:
            for name in kwargs.keys() - signature.parameters.keys():
                raise unknown_name("setting", name, signature.parameters)
            given = signature.bind(*args, **kwargs).arguments
            values = {
                name: os.fspath(value) if isinstance(value, os.PathLike) else value
                for name, value in given.items()
            }
            settings: Any = from_json(kind, values, f"the call of {program.__name__}()")  # type: ignore[arg-type]
            return program(settings, set(given))

        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(program).return_annotation
        )
        return call

    return decorate


@with_settings_of(Pretrain)
def pretrain(settings: Pretrain, given: set[str]) -> PretrainResult:
    """Pretrains an encoder with a learned mask: `pretrain(data="scans/", steps=2000)`.

    The keyword arguments are the fields of `ahm_gym.pretraining.config.Pretrain`.

    Raises:
        InputError: for settings or data that cannot be used; no folder is left behind.
        RunError: where the run cannot go on; its last checkpoint is good.
    """
    run_dir = recipes.run_program(settings, given)
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
        InputError: for settings or data that cannot be used; no folder is left behind.
        RunError: where the loss is not finite; the last checkpoint is good.
    """
    config: FinetuneConfig = as_config(FinetuneConfig, settings)
    config = config if settings.resume else with_run_dir(config, "finetune")
    scores = finetuning.finetune(config, resume=settings.resume, given=given)
    assert config.run_dir is not None, "chosen above, or needed to resume"
    return FinetuneResult(
        run_dir=config.run_dir,
        dice=scores["dice"],
        scores=scores,
        segmenter=config.run_dir / "segmenter",
        overlays=config.run_dir / "figures" / "overlays.png",
    )


@with_settings_of(ProbeConfig)
def probe(settings: ProbeConfig, given: set[str]) -> ProbeResult:
    """Evaluates a frozen encoder by a linear map from its patch features: `probe(encoder=run, labels=10)`.

    The keyword arguments are the fields of `ahm_gym.segmentation.config.ProbeConfig`.

    Raises:
        InputError: for settings or data that cannot be used; no folder is left behind.
    """
    config = with_run_dir(settings, "probe")
    scores = finetuning.run_probe(config)
    assert config.run_dir is not None, "chosen above"
    return ProbeResult(config.run_dir, scores["patch_dice"], scores)


def load_encoder(run: str | os.PathLike[str]) -> nn.Module:
    """The encoder of a pretraining run, or of its `encoder` folder, in evaluation mode.

    Raises:
        InputError: where the folder holds none.
    """
    return encoders.load_encoder(Path(run)).eval()


def make_vec(num_envs: int = 16, *, form: str = "Masking", **options: Any) -> MaskingVectorEnv:
    """A masking environment of `num_envs` images, as `gymnasium.make_vec` makes it.

    Args:
        num_envs: images in a batch.
        form: of the action: Masking, MultiBinaryMasking, SequentialMasking, GroupMasking or RectangleMasking.
        options: keyword arguments of `ahm_gym.envs.MaskingVectorEnv`.

    Raises:
        InputError: for an option out of range, or data that cannot be used.
    """
    env = gym.make_vec(f"ahm_gym:AHM/{form}-v0", num_envs=num_envs, **options)
    assert isinstance(env, MaskingVectorEnv)
    return env

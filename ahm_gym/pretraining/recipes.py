"""Recipes: several pretraining runs, one after the other, in one run folder."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ahm_gym.agents import AGENTS
from ahm_gym.device import ranks
from ahm_gym.device.launch import check_alone, check_restarts
from ahm_gym.errors import InputError, Interrupted, unknown_name
from ahm_gym.pretraining.config import Pretrain, PretrainConfig
from ahm_gym.pretraining.defaults import with_preset
from ahm_gym.pretraining.inputs import run_stem, with_absolute_paths
from ahm_gym.pretraining.run import pretrain
from ahm_gym.pretraining.training import Training
from ahm_gym.runs.folder import RunFolder, free_run_dir, resume_flags
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.schema import read_object
from ahm_gym.runs.settings import as_config, from_json, same, to_json
from ahm_gym.runs.storage import recover_all, write_atomically
from ahm_gym.runs.weights_and_biases import project_of


@dataclass(frozen=True)
class Stage:
    """One run of a recipe; its policy and its reconstructor may name an earlier stage."""

    name: str
    config: PretrainConfig


UNET: PretrainConfig = PretrainConfig(model="unet", batch_size=12, guided_fraction=1.0, spread_fraction=0.0)
"""Settings of all stages of ahm2025; as published, the policy chooses every masked patch."""

RECIPES: dict[str, tuple[Stage, ...]] = {
    "ahm2025": (
        Stage("1-reconstructor", replace(UNET, policy="random", steps=600)),
        Stage(
            "2-agent",
            replace(
                UNET, policy="ahm2025", reward="ahm2025", steps=600, reconstructor=Path("1-reconstructor")
            ),
        ),
        Stage("3-pretraining", replace(UNET, policy="agent:2-agent", steps=1000)),
    )
}
"""ahm2025 is the method of AHM (Xu, Liu, Xu, Lukasiewicz, IEEE TMI 2025); see docs/ahm2025.md."""

SET_BY_RECIPE: tuple[str, ...] = (
    "policy", "model", "init", "reconstructor", "target", "guided_fraction", "guided_ramp",
    "spread_fraction", "spread_ramp", "masking_steps",
)  # fmt: skip
"""Settings that the recipe sets itself."""
OF_THE_AGENT: tuple[str, ...] = ("reward", "num_workers", "ray", "agent_options")
"""Settings that apply only to the stage with a learning agent."""
OF_THE_AUTOENCODER: tuple[str, ...] = ("joint_labels", "joint_weight")
"""Settings that apply only to stages that train the autoencoder."""


def run_recipe(
    name: str | None,
    config: PretrainConfig,
    *,
    resume: bool = False,
    given: Container[str] = (),
    wandb: str | None = None,
) -> Path:
    """Runs the stages of a recipe in order; returns the run folder, which has one folder for each stage.

    Args:
        name: name in `RECIPES`; None uses that of the run to resume.
        config: settings for all stages; those that were given replace the recipe's own.
        resume: continue the run in `config.run_dir` exactly from the last checkpoint of its current stage.
        given: names of settings that were given explicitly, even if they have their default values.
        wandb: project on Weights & Biases to which each stage is logged as a run; None: none.

    Raises:
        InputError: if settings cannot be used, or the recipe sets them itself; no folder is left behind.
        RunError: if a stage cannot continue; its last checkpoint is good.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    project_of(None, wandb)
    config = with_absolute_paths(config)
    chosen = _chosen(config, given)
    if resume:
        run = RunFolder.open(config.run_dir, "recipe")
        kept, settings = run.config.get("recipe"), run.config.get("settings")
        if not isinstance(kept, str) or not isinstance(settings, dict):
            raise InputError(f"{run.path}/config.json does not name a recipe and its settings: restore it.")
        name = _same_recipe(name, kept)
        _check_agreement(chosen, settings)
        stages = configure(name, settings, run.path)
    else:
        name = name or ""
        path = config.run_dir or free_run_dir(run_stem(replace(config, policy=name)))
        stages = configure(name, chosen, path)
        _rehearse(stages)
        record = {"kind": "recipe", "recipe": name, "stages": [stage.name for stage in stages]}
        run = RunFolder.create(path, {**record, "settings": chosen})
    _run_stages(name, stages, run.path, wandb)
    return run.path


def run_program(settings: Pretrain, given: Container[str]) -> Path:
    """Runs a recipe or a single pretraining, as the settings ask for; returns the run folder.

    Raises:
        InputError: if settings or data cannot be used; no folder is left behind.
        RunError: if the run cannot continue; its last checkpoint is good.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    settings = with_preset(settings, given)
    config: PretrainConfig = as_config(PretrainConfig, settings)
    check_restarts(settings.resume)
    options: dict[str, Any] = {"resume": settings.resume, "given": given, "wandb": settings.wandb}
    if settings.recipe is not None or (settings.resume and is_recipe_run(settings.run_dir)):
        check_alone("a recipe")
        return run_recipe(settings.recipe, config, **options)
    with ranks.started():
        return pretrain(config, **options)


def is_recipe_run(path: Path | None) -> bool:
    """Whether this is the run folder of a recipe."""
    if path is None or not (path / "config.json").is_file():
        return False
    try:
        RunFolder.open(path, "recipe")
    except InputError:
        return False
    return True


def configure(name: str, settings: dict[str, Any], run_dir: Path) -> list[Stage]:
    """The stages of a recipe in a run folder, with these settings (JSON values) in place of the recipe's own.

    Raises:
        InputError: if the recipe is unknown or sets one of the settings itself.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    for key in SET_BY_RECIPE:
        if key in settings:
            raise InputError(f"`{key}` does not go with `recipe={name}`, which sets it: leave it out.")
    stages = []
    for stage in RECIPES[name]:
        own = stage.config
        learns = own.policy in AGENTS
        left_out = (() if learns else OF_THE_AGENT) + (
            () if own.reconstructor is None else OF_THE_AUTOENCODER
        )
        taken = {key: value for key, value in settings.items() if key not in left_out}
        restored = from_json(PretrainConfig, taken, f"the settings of recipe {name}")
        policy, colon, earlier = own.policy.partition(":")
        config = replace(
            own,
            **{key: getattr(restored, key) for key in taken},
            policy=f"{policy}:{run_dir / earlier}" if colon else policy,
            reconstructor=None if own.reconstructor is None else run_dir / own.reconstructor,
            run_dir=run_dir / stage.name,
        )
        stages.append(Stage(stage.name, config))
    return stages


def _run_stages(name: str, stages: list[Stage], path: Path, wandb: str | None) -> None:
    interrupt = Interrupt()
    wandb = project_of(path / stages[0].name, wandb)
    for number, stage in enumerate(stages, start=1):
        folder = path / stage.name
        recover_all(folder)
        begun = (folder / "config.json").is_file()
        if begun:
            _follow_move(folder / "config.json", stage.config)
        config = PretrainConfig(run_dir=folder) if begun else stage.config
        title = f"{name} {number}/{len(stages)} {stage.name.partition('-')[2]}"
        try:
            pretrain(config, resume=begun, title=title, interrupt=interrupt, wandb=wandb)
        except Interrupted as error:
            raise _stopped(stage, path, error.exit_code - 128) from None
        if interrupt.requested and stage is not stages[-1]:
            raise _stopped(stage, path, interrupt.signal or 2)


def _follow_move(saved: Path, config: PretrainConfig) -> None:
    """Updates the paths to earlier stages, in case the run folder was moved."""
    kept = read_object(saved)
    now = {key: to_json(config)[key] for key in ("policy", "reconstructor")}
    if kept | now != kept:
        write_atomically(saved, json.dumps(kept | now, indent=2))


def _stopped(stage: Stage, path: Path, signal_number: int) -> Interrupted:
    return Interrupted(f"stopped in stage {stage.name}; continue with: {resume_flags(path)}", signal_number)


def _rehearse(stages: list[Stage]) -> None:
    """Creates the parts of every stage that needs no earlier one, so that bad settings leave no folder behind."""
    for stage in stages:
        if ":" not in stage.config.policy:
            Training(replace(stage.config, reconstructor=None))


def _chosen(config: PretrainConfig, given: Container[str]) -> dict[str, Any]:
    """The settings that differ from the defaults or were given explicitly, as JSON values."""
    values = to_json(config)
    return {
        item.name: list(value) if isinstance(value := values[item.name], tuple) else value
        for item in fields(config)
        if item.name != "run_dir" and (item.name in given or getattr(config, item.name) != item.default)
    }


def _same_recipe(asked: str | None, kept: str) -> str:
    if asked not in (None, kept):
        raise InputError(f"`recipe={asked}` differs from the {kept} of this run: leave it out.")
    return kept


def _check_agreement(chosen: dict[str, Any], kept: dict[str, Any]) -> None:
    for key, value in chosen.items():
        if key not in kept or not same(kept[key], value):
            raise InputError(
                f"`{key}` differs from what this run was started with, and a run keeps its settings: "
                "leave it out, or start a new run in another `run_dir`."
            )

"""The frozen autoencoders: several points of one pretraining run with random masks."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ahm_gym.data import ImageDataset
from ahm_gym.data.prepare import cache_folder
from ahm_gym.errors import Interrupted, say
from ahm_gym.mask_benchmark.config import MaskBenchConfig
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.published import PretrainState
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.inputs import starting_autoencoder
from ahm_gym.pretraining.training import Training
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.schema import checked, fits
from ahm_gym.runs.storage import (
    check_loaded,
    check_trained,
    load_state,
    locked,
    make_folder,
    recover_folder,
    remove,
    replace_folder,
    save_state,
)

SAVE_EVERY: int = 100
"""Updates after which pretraining can continue after a stop."""


def pretraining_of(config: MaskBenchConfig, spec: str | None) -> PretrainConfig:
    """The settings of the pretraining run; its seed is 0."""
    return PretrainConfig(
        data=spec,
        data_root=config.data_root,
        policy="random",
        steps=config.pretrain_steps,
        batch_size=config.pretrain_batch_size,
        volumes=config.volumes,
        spacing=config.spacing,
        image_size=config.image_size,
        patch_size=config.patch_size,
        model=config.model,
        mask_ratio=config.mask_ratio,
        data_workers=0,
        device=config.device,
    )


def folder_of(config: MaskBenchConfig, name: str, dataset: ImageDataset) -> Path:
    """The folder of the autoencoders of a data set, named by a digest of the images and the settings of pretraining.

    It is in AHM_CACHE if that is set, and otherwise in `out`.
    """
    names = ("pretrain_steps", "pretrain_batch_size", "patch_size", "model", "mask_ratio")
    described: dict[str, Any] = {name: getattr(config, name) for name in names}
    described |= {
        "image_size": list(pretraining_of(config, None).shape),
        "data": dataset.content_digest(),
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    place = cache_folder() / "maskbench" if os.environ.get("AHM_CACHE") else config.out / "autoencoders"
    return place / f"{name}-{digest}"


def make_autoencoders(config: MaskBenchConfig, spec: str | None, folder: Path, interrupt: Interrupt) -> None:
    """Pretrains the autoencoders that are missing in the folder; an interrupted run continues.

    The weights depend neither on stops nor on which points are kept, because a run resumes exactly.

    Raises:
        Interrupted: after a request to stop.
        RunError: if the loss is not finite.
    """
    kept = {percent: updates_at(config, percent) for percent in config.checkpoints}
    make_folder(folder, "`out`")
    with locked(folder):
        for place in folder.glob("step-*"):
            recover_folder(place)
        if all((folder / f"step-{step}" / "state.json").is_file() for step in kept.values()):
            return
        say(f"note: {folder.name} is pretrained with random masks for {config.pretrain_steps} updates, once.")
        training = Training(pretraining_of(config, spec))
        points = sorted({*kept.values(), *range(SAVE_EVERY, config.pretrain_steps, SAVE_EVERY)})
        points = [step for step in points if step <= max(kept.values())]
        done, passing = 0, []
        try:
            for step in points:
                place = folder / f"step-{step}"
                if not (place / "state.json").is_file():
                    _train(training, folder, done, step, interrupt)
                    passing += [] if step in kept.values() else [place]
                done = step
            for place in passing:
                remove(place)
        finally:
            training.close()


def _train(training: Training, folder: Path, done: int, step: int, interrupt: Interrupt) -> None:
    """Makes the updates from `done` to `step` and saves the state."""
    if done:
        place = folder / f"step-{done}"
        with fits(place):
            training.load_state_dict(load_state(place))
    seed = None if done else training.config.seed
    training.agent.learn(
        training.make_env, step - done, seed=seed, callback=lambda metrics: interrupt.requested
    )
    if training.pretrainer.updates < step:
        raise Interrupted(
            f"stopped in pretraining, at {training.pretrainer.updates} of {training.config.steps} updates; the same "
            "command continues.",
            interrupt.signal or 2,
        )
    training.pretrainer.check()
    check_trained(training.pretrainer.autoencoder.state_dict(), step)
    state = training.state_dict() | {"sums": {}, "counts": {}}
    replace_folder(folder / f"step-{step}", lambda place: save_state(place, state))


def updates_at(config: MaskBenchConfig, percent: int) -> int:
    """The number of updates at that percentage of pretraining, at least 1."""
    return max(1, round(config.pretrain_steps * percent / 100))


def load_frozen(
    config: MaskBenchConfig, spec: str | None, channels: int, folder: Path, percent: int
) -> Autoencoder:
    """The autoencoder as it was after that percentage of pretraining.

    Raises:
        InputError: if its file is missing or damaged.
    """
    place = folder / f"step-{updates_at(config, percent)}"
    autoencoder = starting_autoencoder(pretraining_of(config, spec), channels, fresh=False)
    weights = checked(PretrainState, load_state(place), place).pretrainer.autoencoder
    check_loaded(weights, place)
    with fits(place):
        autoencoder.load_state_dict(weights)
    return autoencoder.eval()


def digest_of(autoencoder: Autoencoder) -> str:
    """Twelve hexadecimal digits that tell autoencoders apart by their weights."""
    digest = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]

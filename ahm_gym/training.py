"""The one loop: any policy or agent masks in the environment, and the run survives."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import save_for_hf

from ahm_gym import figures
from ahm_gym.acting import Actor, AgentActor, make_actor
from ahm_gym.autoencoder import MaskedAutoencoder, build_autoencoder
from ahm_gym.checkpoints import load_published
from ahm_gym.data import ImageDataset, open_data
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.envs.rendering import render_panels
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.judging import judge
from ahm_gym.masking import PatchBatch, check_guided_fraction, select_patches
from ahm_gym.pretraining import Pretrainer
from ahm_gym.progress import Progress
from ahm_gym.runs import Interrupt, RunFolder
from ahm_gym.settings import image_size_of, merge_resumed, pick_device, to_json

NUM_JUDGED = 64
NUM_SHOWN = 4
SNAPSHOTS = (0.0, 0.1, 0.3, 0.6, 1.0)
"""When masks are kept for the picture, as shares of the run."""


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run; `examples/pretrain.py` documents each."""

    data: str | None = None
    data_root: Path | None = None
    policy: str = "a3c"
    steps: int = 1200
    batch_size: int = 64
    image_size: tuple[int, ...] = (64,)
    patch_size: int = 8
    model: str = "tiny"
    init: Path | None = None
    normalise_target: bool = False
    learning_rate: float = 1e-3
    mask_ratio: float = 0.75
    reward: str = "relative"
    guided_fraction: float | None = None
    masking_steps: int = 1
    num_workers: int = 1
    data_workers: int = 0
    seed: int = 0
    device: str = "auto"
    run_dir: Path | None = None
    checkpoint_every: int = 200


def pretrain(config: PretrainConfig, *, resume: bool = False) -> Path:
    """Pretrains an encoder; gives back the run folder.

    With `resume` the run in `config.run_dir` goes on with its own settings, exactly where its last
    checkpoint stands.

    Raises:
        InputError: for settings or data that cannot be used; no folder is left behind.
        RunError: where the run cannot go on; its last checkpoint is good.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    run = None
    if resume:
        if config.run_dir is None:
            raise InputError("--resume needs --run-dir: name the folder of the run to go on with.")
        run = RunFolder.open(config.run_dir, "pretrain")
        config = merge_resumed(config, run.config, "pretrain")
        if run.checkpoint_step() == config.steps:
            return run.path
    training = Training(config)
    if run is None:
        run = RunFolder.create(config.run_dir or free_run_dir(config), training.describe())
    try:
        training.run(run)
    finally:
        run.close()
    return run.path


def free_run_dir(config: PretrainConfig) -> Path:
    """The first free `runs/DATA-POLICY-N`."""
    data = "mni152" if config.data is None else Path(config.data.replace(":", "-")).stem
    stem = f"{data}-{config.policy.partition(':')[0]}"
    number = 1
    while (path := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return path


@dataclass
class EnvFactory:
    """Makes a worker's environment around the shared pretrainer; picklable."""

    dataset: ImageDataset
    pretrainer: Pretrainer
    options: dict[str, Any]
    shared: bool

    def __call__(self) -> MaskingVectorEnv:
        pretrainer = self.pretrainer.attach() if self.shared else self.pretrainer
        return MaskingVectorEnv(data=self.dataset, pretrainer=pretrainer, **self.options)


class Training:
    """Everything that a run is made of; building it checks all settings and touches no run folder."""

    def __init__(self, config: PretrainConfig) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(config, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is {getattr(config, name)}: choose at least 1.")
        self.config = config
        self.device = pick_device(config.device)
        image_size = image_size_of(config.image_size)
        if config.num_workers > 1 and self.device.type != "cpu":
            raise InputError(
                "--num-workers above 1 shares weights in main memory: choose --device cpu or 1 worker."
            )
        self.dataset = open_data(config.data, root=config.data_root, image_size=image_size)
        autoencoder = build_autoencoder(
            config.model,
            image_size=image_size,
            patch_size=config.patch_size,
            channels=self.dataset.channels,
            seed=config.seed,
            normalise_target=config.normalise_target,
        )
        self.load_report = None if config.init is None else load_published(autoencoder, config.init)
        self.pretrainer = Pretrainer(
            autoencoder, num_steps=config.steps, learning_rate=config.learning_rate, device=self.device
        )
        self.actor: Actor = make_actor(
            config.policy, autoencoder, config.model, num_workers=config.num_workers, device=self.device
        )
        if config.guided_fraction is not None:
            check_guided_fraction(config.guided_fraction)
        self.factory = EnvFactory(self.dataset, self.pretrainer, self._env_options(), shared=False)
        self.env = self.factory()
        indices = self.dataset.indices("val") or self.dataset.indices("train")
        picked = np.linspace(0, len(indices) - 1, min(NUM_JUDGED, len(indices))).round().astype(int)
        self.judged = self.dataset.resized([indices[i] for i in picked], image_size).to(self.device)

    def _env_options(self) -> dict[str, Any]:
        config = self.config
        fraction = config.guided_fraction
        return {
            "num_envs": config.batch_size,
            "mask_ratio": config.mask_ratio,
            "reward": config.reward,
            "masking_steps": config.masking_steps,
            "guided_fraction": self.actor.guided_fraction if fraction is None else fraction,
            "data_workers": config.data_workers,
        }

    def describe(self) -> dict[str, Any]:
        """What `config.json` holds: the settings, and what they came to."""
        return {
            "kind": "pretrain",
            **to_json(self.config),
            "image_size": list(self.pretrainer.autoencoder.image_size),
            "channels": self.dataset.channels,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }

    def run(self, run: RunFolder) -> None:
        """Trains to the last step, from the newest checkpoint of `run` where it has one."""
        found = run.load_checkpoint()
        start = 0 if found is None else found[0]
        recorder = Recorder(self, run, start)
        if found is None:
            recorder.judge()
            recorder.snapshot()
        else:
            self.load_state_dict(found[1])
            recorder.sums.update(found[1]["sums"])
        seed = self.config.seed if start == 0 else None
        if self.config.num_workers > 1:
            self._share()
            # The workers' draws are not saved: go on with new ones instead of the same ones again.
            seed = self.config.seed + start
        if found is None:
            self.env.reset(seed=self.config.seed)
            recorder.checkpoint()
        with Interrupt() as recorder.interrupt, recorder.progress:
            self.actor.learn(self._make_env, self.config.steps - start, seed=seed, callback=recorder)
        if recorder.step < self.config.steps:
            raise Interrupted(
                f"stopped at step {recorder.step}; go on with: --resume --run-dir {run.path}",
                recorder.interrupt.signal or 2,
            )

    @property
    def _make_env(self) -> Any:
        return self.factory if self.factory.shared else lambda: self.env

    def _share(self) -> None:
        self.pretrainer.share_memory(torch.multiprocessing.get_context("spawn").Lock())
        self.factory = EnvFactory(self.dataset, self.pretrainer, self._env_options(), shared=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "pretrainer": self.pretrainer.state_dict(),
            "actor": self.actor.state_dict(),
            "env": None if self.factory.shared else self.env.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pretrainer.load_state_dict(state["pretrainer"])
        self.actor.load_state_dict(state["actor"])
        if state["env"] is not None:
            self.env.load_state_dict(state["env"])


class Recorder:
    """The callback of a run: metrics, judgement, pictures and checkpoints at their steps."""

    def __init__(self, training: Training, run: RunFolder, start: int) -> None:
        config = training.config
        self.training, self.path, self.run, self.step = training, run.path, run, start
        self.log_every = max(1, min(config.steps // 100, 20))
        self.judge_every = max(1, config.steps // 20)
        self.snapshot_steps = {round(share * config.steps) for share in SNAPSHOTS}
        self.sums: dict[str, float] = defaultdict(float)
        self.progress = Progress(
            "pretraining", total=config.steps, start=start, images_per_step=config.batch_size
        )
        self.interrupt: Interrupt = Interrupt()
        self.saved_at = start
        self.since = time.monotonic()

    def __call__(self, metrics: dict[str, float]) -> bool:
        self.step += 1
        for name, value in metrics.items():
            self.sums[name] += value
        self.sums["count"] += 1
        if self.step % self.log_every == 0:
            self._log()
        self.progress.advance(self.step, loss=metrics["loss"], reward=metrics["reward"])
        last = self.step == self.training.config.steps
        if self.step % self.judge_every == 0 or last:
            self.judge()
        if self.step in self.snapshot_steps:
            self.snapshot()
        stop = self.interrupt.requested and not last
        if self.step % self.training.config.checkpoint_every == 0 or last or stop:
            self.checkpoint()
        return stop

    def _log(self) -> None:
        count = self.sums.pop("count")
        now = time.monotonic()
        averages = {name: value / count for name, value in self.sums.items()}
        rate = count * self.training.config.batch_size / max(now - self.since, 1e-9)
        self.run.log(self.step, averages | {"images_per_second": rate})
        self.sums.clear()
        self.since = now

    def judge(self) -> None:
        """Logs how well the scores match the true patch loss, on validation images."""
        training = self.training
        autoencoder = training.pretrainer.autoencoder
        progress = self.step / training.config.steps
        self.run.log(
            self.step,
            judge(training.actor.score, autoencoder, training.judged, training.env.num_masked, progress),
        )

    def snapshot(self) -> None:
        """Keeps the masks of the same few validation images as they are now."""
        panels = draw_panels(self.training, self.step / self.training.config.steps)
        figures.save_snapshot(self._snapshots, self.step, panels)

    def checkpoint(self) -> None:
        """Saves pictures and exports, then the state: a checkpoint never stands without them."""
        training = self.training
        snapshots = figures.load_snapshots(self._snapshots, self.step)
        title = f"{training.dataset.name}, {training.config.policy}"
        figures.draw_masks(snapshots, title).savefig(self.path / "figures" / "masks.png")
        figures.draw_curves(self.run.metrics()).savefig(self.path / "figures" / "curves.png")
        autoencoder = training.pretrainer.autoencoder
        with training.pretrainer.locked():
            self.run.replace("encoder", lambda folder: export_encoder(autoencoder, training.dataset, folder))
        actor = training.actor
        if isinstance(actor, AgentActor):
            self.run.replace("agent", lambda folder: actor.export(folder, autoencoder))
        self.run.save_checkpoint(self.step, training.state_dict() | {"sums": dict(self.sums)})

    @property
    def _snapshots(self) -> Path:
        return self.path / "figures" / "snapshots"


def export_encoder(autoencoder: MaskedAutoencoder, dataset: ImageDataset, folder: Path) -> None:
    """Writes the encoder so that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it."""
    statistics = {"mean": tuple(dataset.mean), "std": tuple(dataset.std)}
    save_for_hf(autoencoder.encoder, str(folder), safe_serialization=True, data_config=statistics)


def draw_panels(training: Training, progress: float) -> np.ndarray:
    """Panels (N, h, w, 3) of the first few judged images, masked as the run would mask them now."""
    autoencoder = training.pretrainer.autoencoder.eval()
    images = training.judged[:: max(1, len(training.judged) // NUM_SHOWN)][:NUM_SHOWN]
    with torch.no_grad():
        embeddings = autoencoder.embed(images)
    scores = training.actor.score(PatchBatch(images, embeddings, autoencoder.grid, progress)).float().cpu()
    fraction = training.env.guided_fraction
    share = fraction(progress) if callable(fraction) else fraction
    num_masked = training.env.num_masked
    generator = torch.Generator().manual_seed(0)
    mask, guided = select_patches(scores, num_masked, round(share * num_masked), generator)
    with torch.no_grad():
        result = autoencoder(images, mask.to(images.device))
    filled = autoencoder.reconstruct(images, mask.to(images.device), result.prediction)
    display = training.dataset.denormalise(images.cpu()).clamp(0, 1)
    shown = training.dataset.denormalise(filled.cpu()).clamp(0, 1)
    return np.stack(
        [
            render_panels(display[i], mask[i], guided[i], shown[i], scores[i], autoencoder.grid)
            for i in range(len(images))
        ]
    )

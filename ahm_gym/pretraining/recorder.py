"""What a pretraining run writes while it goes: metrics, judgements, pictures, checkpoints."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ahm_gym.envs.rendering import render_panels
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.schedules import share_at
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.encoders import export_encoder
from ahm_gym.pretraining import figures
from ahm_gym.pretraining.frozen import save_agent
from ahm_gym.pretraining.mask_quality import judge
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.progress import Progress

if TYPE_CHECKING:
    from ahm_gym.pretraining.run import Training

NUM_SHOWN = 4
MIN_JUDGE_EVERY = 5
"""Updates; a short run would judge more than it trains otherwise."""
SNAPSHOTS = (0.0, 0.1, 0.3, 0.6, 1.0)
"""When masks are kept for the picture, as shares of the run."""


def off_the_clock(work: Callable[[Recorder], None]) -> Callable[[Recorder], None]:
    """The same work, whose time does not count as time of training."""

    @functools.wraps(work)
    def timed(recorder: Recorder) -> None:
        began = time.monotonic()
        work(recorder)
        recorder.since += time.monotonic() - began

    return timed


class Recorder:
    """The callback of a run: metrics, judgement, pictures and checkpoints at their steps."""

    def __init__(self, training: Training, run: RunFolder, start: int) -> None:
        config = training.config
        self.training, self.path, self.run, self.step, self.start = training, run.path, run, start, start
        self.log_every = max(1, min(config.steps // 100, 20))
        self.judge_every = max(MIN_JUDGE_EVERY, config.steps // 20)
        self.snapshot_steps = {round(share * config.steps) for share in SNAPSHOTS}
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        """Updates since the last line that told each metric: an agent that chose nothing tells of no learning."""
        self.progress = Progress(
            training.title, total=config.steps, start=start, images_per_step=config.batch_size
        )
        self.interrupt: Interrupt = Interrupt()
        self.saved_at = start
        self.timed = 0
        """Updates in the time since `since`; those of an earlier session count above, but not here."""
        self.since = time.monotonic()

    def __call__(self, metrics: dict[str, float]) -> bool:
        self.step += 1
        self.timed += 1
        for name, value in metrics.items():
            self.sums[name] += value
            self.counts[name] += 1
        last = self.step == self.training.config.steps
        if self.step % self.log_every == 0 or last:
            self._log()
        shown = {name: metrics[name] for name in ("loss", "reward") if name in metrics}
        self.progress.advance(self.step, **shown)
        if self.step % self.judge_every == 0 or last:
            self.judge()
        if self.step in self.snapshot_steps:
            self.snapshot()
        if self.step % self.training.config.checkpoint_every == 0 or last:
            self.checkpoint()
        return self.interrupt.requested and not last

    def next_pause(self, done: int) -> int:
        """Updates of this session after which workers must rest, for what is saved and drawn to belong together."""
        step = self.start + done
        regular = [
            every * (step // every + 1) for every in (self.judge_every, self.training.config.checkpoint_every)
        ]
        return min(*regular, *(s for s in self.snapshot_steps if s > step)) - self.start

    def _log(self) -> None:
        now = time.monotonic()
        averages = {name: value / self.counts[name] for name, value in self.sums.items()}
        rate = self.timed * self.training.config.batch_size / max(now - self.since, 1e-9)
        self.run.log(self.step, averages | {"images_per_second": rate})
        self.sums.clear()
        self.counts.clear()
        self.timed, self.since = 0, now

    @off_the_clock
    def judge(self) -> None:
        """Logs how well the scores match the true patch loss, on validation images and at the final mask ratio."""
        training = self.training
        autoencoder = training.pretrainer.autoencoder
        progress = self.step / training.config.steps
        self.run.log(
            self.step,
            judge(
                training.actor.score,
                autoencoder,
                training.judged,
                training.num_judged_masked,
                progress,
            ),
        )

    @off_the_clock
    def snapshot(self) -> None:
        """Keeps the masks of the same few validation images as they are now."""
        panels = draw_panels(self.training, self.step / self.training.config.steps)
        figures.save_snapshot(self._snapshots, self.step, panels)

    @off_the_clock
    def checkpoint(self) -> None:
        """Saves pictures and exports, then the state: a checkpoint never stands without them."""
        training = self.training
        snapshots = figures.load_snapshots(self._snapshots, self.step)
        title = f"{training.dataset.name}, {training.config.policy}"
        figures.draw_masks(snapshots, title).savefig(self.path / "figures" / "masks.png")
        figures.draw_curves(self.run.metrics()).savefig(self.path / "figures" / "curves.png")
        autoencoder = training.pretrainer.autoencoder
        statistics = {"mean": training.dataset.mean, "std": training.dataset.std}
        self.run.replace("encoder", lambda folder: export_encoder(autoencoder.encoder, folder, **statistics))
        if not isinstance(training.actor, PolicyAgent):
            made = (training.config.policy, training.agent_options, training.actor, training.config.model)
            self.run.replace("agent", lambda folder: save_agent(folder, *made, autoencoder))
        since_log = {"sums": dict(self.sums), "counts": dict(self.counts)}
        self.run.save_checkpoint(self.step, training.state_dict() | since_log)

    @property
    def _snapshots(self) -> Path:
        return self.path / "figures" / "snapshots"


def draw_panels(training: Training, progress: float) -> np.ndarray:
    """Panels (N, h, w, 3) of a few judged images, masked as the run would mask them now, at its final ratio."""
    autoencoder = training.pretrainer.autoencoder.eval()
    images = training.judged[:: max(1, len(training.judged) // NUM_SHOWN)][:NUM_SHOWN]
    with torch.no_grad():
        embeddings = autoencoder.embed(images)
    num_masked = training.num_judged_masked
    mask_ratio = num_masked / autoencoder.num_patches
    patches = PatchBatch(images, embeddings, autoencoder.grid, progress, mask_ratio)
    scores = training.actor.score(patches).float().cpu()
    masks = draw_masks(
        scores,
        autoencoder.grid,
        num_masked,
        torch.Generator().manual_seed(0),
        guided_fraction=share_at(training.guided_fraction, progress, "guided fraction"),
        spread_fraction=share_at(training.spread_fraction, progress, "spread fraction"),
    )
    masked, guided = masks.masked, masks.guided
    with torch.no_grad():
        result = autoencoder(images, masks)
    filled = autoencoder.reconstruct(images, masked.to(images.device), result.prediction)
    display = training.dataset.denormalise(images.cpu()).clamp(0, 1)
    shown = training.dataset.denormalise(filled.cpu()).clamp(0, 1)
    return np.stack(
        [
            render_panels(display[i], masked[i], guided[i], shown[i], scores[i], autoencoder.grid)
            for i in range(len(images))
        ]
    )

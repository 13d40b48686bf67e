"""Writes the metrics, the pictures and the checkpoints of a pretraining run."""

from __future__ import annotations

import functools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ahm_gym.device import ranks
from ahm_gym.pretraining import figures
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.inspection import Inspection
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.progress import Progress

MIN_INSPECT_EVERY: int = 5
"""Minimum number of updates between two inspections; otherwise a short run would inspect more than it trains."""
SNAPSHOTS: tuple[float, ...] = (0.0, 0.1, 0.3, 0.6, 1.0)
"""When snapshots of the masks are saved for the picture, as shares of the run."""
DRAW_EVERY: float = 30.0
"""Minimum number of seconds between two drawings of the pictures: one takes as long as many small updates."""


def off_the_clock(work: Callable[[Recorder], None]) -> Callable[[Recorder], None]:
    """Decorates a method of the recorder so that its time does not count as training time."""

    @functools.wraps(work)
    def timed(recorder: Recorder) -> None:
        began = time.monotonic()
        work(recorder)
        recorder.since += time.monotonic() - began

    return timed


class Recorder:
    """The callback of a run: it logs, inspects, draws and saves when each is due.

    Args:
        config: settings of the run.
        run: folder of the run.
        inspection: measures and draws the masks.
        save: function that exports the encoder and the agent and writes a checkpoint; it is called with the step and
            the state of the recorder.
        start: step from which the run starts.
        title: title of the progress bar.
        interrupt: reports whether the run has to stop.
        measured: returns metrics of the last update that the agent does not know.
    """

    def __init__(
        self,
        config: PretrainConfig,
        run: RunFolder,
        inspection: Inspection,
        save: Callable[[int, dict[str, Any]], None],
        *,
        start: int = 0,
        title: str = "pretraining",
        interrupt: Interrupt | None = None,
        measured: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.config: PretrainConfig = config
        self.run: RunFolder = run
        self.inspection: Inspection = inspection
        self.save: Callable[[int, dict[str, Any]], None] = save
        self.start: int = start
        self.step: int = start
        self.interrupt: Interrupt = interrupt or Interrupt()
        self.measured: Callable[[], dict[str, float]] = measured
        self.log_every: int = max(1, min(config.steps // 100, 20))
        self.inspect_every: int = max(MIN_INSPECT_EVERY, config.steps // 20)
        self.snapshot_steps: set[int] = {round(share * config.steps) for share in SNAPSHOTS}
        self.sums: dict[str, float] = defaultdict(float)
        """Sum of each metric since the last line of the log."""
        self.counts: Counter[str] = Counter()
        """Number of updates in each sum; not every update reports every metric."""
        self.progress: Progress = Progress(
            title, total=config.steps, start=start, images_per_step=config.batch_size
        )
        self.timed: int = 0
        """Number of updates since `since`; unlike `counts`, without those before the run was resumed."""
        self.since: float = time.monotonic()
        """When the present interval of the log started, in seconds."""
        self.drawn: float = -math.inf
        """When the pictures were last drawn, in seconds."""

    def __call__(self, metrics: dict[str, float]) -> bool:
        """Records one update; returns whether the run has to stop, which all ranks do after the same update."""
        self.step += 1
        self.timed += 1
        for name, value in (metrics | self.measured()).items():
            self.sums[name] += value
            self.counts[name] += 1
        last = self.step == self.config.steps
        if self.step % self.log_every == 0 or last:
            self._log()
        shown = {name: metrics[name] for name in ("loss", "reward") if name in metrics}
        self.progress.advance(self.step, **shown)
        if self.step % self.inspect_every == 0 or last:
            self.inspect()
        if self.step in self.snapshot_steps:
            self.snapshot()
        if self.step % self.config.checkpoint_every == 0 or last:
            self.checkpoint()
        return bool(ranks.largest(self.interrupt.requested)) and not last

    def has_to_stop(self) -> bool:
        """Whether a stop was requested before the last step."""
        return self.interrupt.requested and self.step < self.config.steps

    def next_pause(self, done: int) -> int:
        """Number of updates since the start after which workers must pause, for a consistent state to save and draw."""
        step = self.start + done
        regular = [
            every * (step // every + 1) for every in (self.inspect_every, self.config.checkpoint_every)
        ]
        return min(*regular, *(s for s in self.snapshot_steps if s > step)) - self.start

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the sums of a checkpoint."""
        self.sums.update(state["sums"])
        self.counts.update(state["counts"])

    def _log(self) -> None:
        now = time.monotonic()
        averages = {name: value / self.counts[name] for name, value in self.sums.items()}
        rate = self.timed * self.config.batch_size / max(now - self.since, 1e-9)
        self.run.log(self.step, averages | {"images_per_second": rate})
        self.sums.clear()
        self.counts.clear()
        self.timed, self.since = 0, now

    @off_the_clock
    def inspect(self) -> None:
        """Logs how good the masks of the validation images are."""
        self.run.log(self.step, self.inspection.quality(self.step / self.config.steps))

    @off_the_clock
    def snapshot(self) -> None:
        """Saves pictures of the masks of a few validation images."""
        panels = self.inspection.panels(self.step / self.config.steps)
        figures.save_snapshot(self._snapshots, self.step, panels)

    @off_the_clock
    def checkpoint(self) -> None:
        """Saves a checkpoint; draws the pictures first, if they are due or the run stops here."""
        stops = self.interrupt.requested or self.step == self.config.steps
        if stops or time.monotonic() - self.drawn >= DRAW_EVERY:
            self._draw()
        self.save(self.step, {"sums": dict(self.sums), "counts": dict(self.counts)})

    def _draw(self) -> None:
        snapshots = figures.load_snapshots(self._snapshots, self.step)
        title = f"{self.inspection.dataset.name}, {self.config.policy}"
        if snapshots:
            picture = figures.draw_masks(snapshots, title, volumes=self.config.volumes)
            picture.savefig(self.run.path / "figures" / "masks.png")
        figures.draw_curves(self.run.metrics()).savefig(self.run.path / "figures" / "curves.png")
        self.drawn = time.monotonic()

    @property
    def _snapshots(self) -> Path:
        return self.run.path / "figures" / "snapshots"


class Follower(Recorder):
    """The callback of every rank but the first (`ahm_gym.device.ranks`): it counts updates, and writes nothing."""

    def inspect(self) -> None:
        return

    def snapshot(self) -> None:
        return

    def checkpoint(self) -> None:
        return

    def _log(self) -> None:
        return

"""Fine-tuning for segmentation: a run with its loop and its evaluation."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Container
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ahm_gym._compat  # noqa: F401

import torch
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.data.draws import describe_draw, report_draw
from ahm_gym.data.labelled import LabelledBatches, choose_labelled
from ahm_gym.data.sample import Split
from ahm_gym.data.sources import warnings_about
from ahm_gym.device import ranks
from ahm_gym.device.choice import pick_device
from ahm_gym.device.cuda_graphs import Gradients
from ahm_gym.device.launch import begins
from ahm_gym.device.transfers import to_device
from ahm_gym.errors import Interrupted, RunError, say
from ahm_gym.model.decoders import SegmentationLoss
from ahm_gym.model.pretrainer import cosine_schedule
from ahm_gym.runs.folder import RunFolder, resume_flags
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.progress import Progress
from ahm_gym.runs.provenance import check_origin, origin_of
from ahm_gym.runs.schema import Schema, checked, fits, read_object
from ahm_gym.runs.settings import MOVABLE, merge_resumed, to_json
from ahm_gym.runs.storage import check_loaded, check_trained, locked, write_atomically
from ahm_gym.segmentation.case_pictures import write_case_pictures
from ahm_gym.segmentation.comparison import NONE, check_comparable, read_results
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.evaluation import choose_split, draw_cases, evaluate, group_cases
from ahm_gym.segmentation.fixed_map import fixed_map_dice
from ahm_gym.segmentation.inputs import (
    open_labelled,
    resolve,
    shape_of,
    spelled_out,
    starting_encoder,
    with_run_dir,
)
from ahm_gym.segmentation.segmenter import (
    Segmenter,
    build_segmenter,
    load_segmenter,
    parameter_groups,
    save_segmenter,
)
from ahm_gym.segmentation.validation import (
    BestSegmenter,
    chosen_segmenter,
    dice_on,
    draw_curve,
    read_score,
    validation_interval,
)

WARMUP: float = 0.1
"""Share of the updates during which the learning rate rises."""
MAX_GRAD_NORM: float = 1.0
"""Gradients with a larger norm are scaled down to this norm."""


class FinetuneState(Schema):
    """The state in a checkpoint of a fine-tuning run."""

    segmenter: dict[str, Tensor]
    optimizer: dict[str, Any]
    losses: list[float]


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    given: Container[str] = (),
    interrupt: Interrupt | None = None,
) -> dict[str, Any]:
    """Fine-tunes a segmenter and evaluates it; returns the content of `results.json`.

    Args:
        config: settings of the run.
        resume: continue the run in `config.run_dir` exactly from its last checkpoint, with its own settings. If the
            run is finished, only its results are returned. Under torchrun, begin it if it is not there.
        given: names of settings that were given explicitly. When resuming, they must have the values of the run, and
            so must all settings that differ from the defaults.
        interrupt: what can stop the run; it may have a deadline.

    Raises:
        InputError: if settings or data cannot be used; no folder is left behind.
        RunError: if the loss is not finite; the last checkpoint is good.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    found = ranks.from_first(functools.partial(find_run, config, resume, given))
    run, config = found.run, found.config
    if found.results is not None:
        return found.results
    finetuning = Finetuning(config, None if run is None else run.path / "segmenter")
    if run is None:
        path = config.run_dir
        assert path is not None, "chosen in find_run"
        run = ranks.from_first(lambda: RunFolder.create(path, finetuning.describe()))
    with ExitStack() as opened:
        opened.enter_context(closing(run))
        if ranks.is_first():
            opened.enter_context(locked(run.path))
            if found.run is not None:
                dataset = finetuning.dataset
                check_origin(run.config, dataset.content_digest(), config.data or dataset.name)
                run.follow({name: value for name, value in to_json(config).items() if name in MOVABLE})
        finetuning.train(run, interrupt or Interrupt())
        return ranks.from_first(functools.partial(finetuning.score, run))


@dataclass(frozen=True)
class Found:
    """What is known of a run before it is trained."""

    run: RunFolder | None
    """The run to resume, if there is one."""
    config: FinetuneConfig
    results: dict[str, Any] | None = None
    """The content of `results.json`, if the run is finished."""


def find_run(config: FinetuneConfig, resume: bool, given: Container[str]) -> Found:
    """The run to resume, or to begin; the arguments are those of `finetune`.

    Under torchrun, which repeats a command line, `resume` begins a run that is not there.
    """
    if not resume or begins(config.run_dir):
        return Found(None, resolve(with_run_dir(config, "finetune")))
    run = RunFolder.open(config.run_dir, "finetune")
    config = merge_resumed(spelled_out(config), run.config, given)
    results = read_object(run.path / "results.json") if is_finished(run.path) else None
    return Found(run, config, results)


def is_finished(run_dir: Path | None) -> bool:
    """Whether the run in this folder has written its results."""
    return run_dir is not None and (run_dir / "results.json").is_file()


def found_nothing(results: dict[str, Any]) -> bool:
    """Whether the Dice of every class that has one is 0.000."""
    values = [scores["dice"] for scores in results["per_class"].values() if scores["dice"] is not None]
    return bool(values) and max(values) < 0.0005


class Finetuning:
    """The parts of a fine-tuning run; creating them checks all settings and writes nothing.

    Args:
        config: settings that have been through `resolve`.
        exported: segmenter folder of the run to resume, which then does not need its original encoder.
    """

    def __init__(self, config: FinetuneConfig, exported: Path | None = None) -> None:
        ranks.check_batch(config.batch_size)
        ranks.check_device(config.device)
        self.device: torch.device = pick_device(config.device)
        with ranks.in_turn():
            self.dataset: ImageDataset = open_labelled(config)
        self.split: Split = choose_split(self.dataset, config.split)
        self.validate_every: int = validation_interval(config, self.dataset)
        indices = choose_labelled(self.dataset, config.labels, config.seed, config.labelled_patients)
        self.draw: dict[str, Any] = describe_draw(
            self.dataset, indices, labelled_patients=config.labelled_patients, seed=config.seed
        )
        self.batches: LabelledBatches = LabelledBatches(
            self.dataset,
            indices,
            batch_size=config.batch_size,
            image_size=shape_of(config)[0],
            seed=config.seed,
            native_resolution=config.native_resolution,
            augmentation=config.augmentation,
        )
        if exported is not None and (exported / "config.json").is_file():
            segmenter = load_segmenter(exported)
        else:
            segmenter = build_segmenter(
                starting_encoder(config, self.dataset),
                self.dataset.num_classes,
                freeze=config.freeze,
                decoder=config.decoder,
                seed=config.seed,
            )
        ranks.check_statistics(segmenter)
        self.config: FinetuneConfig = replace(config, decoder=segmenter.decoder_name)
        self.segmenter: Segmenter = segmenter.to(self.device)
        ranks.synchronise(self.segmenter)
        self.optimizer: torch.optim.AdamW = torch.optim.AdamW(
            parameter_groups(self.segmenter, config.encoder_rate), fused=True
        )
        self.loss: SegmentationLoss = SegmentationLoss()
        parameters = list(self.segmenter.parameters())
        self._passes = Gradients(self._loss, parameters, MAX_GRAD_NORM, over_ranks=True)
        self.losses: list[float] = []
        """Losses since the last line of the log."""
        if exported is None and config.compare not in (None, NONE):
            other = read_results(Path(config.compare))
            check_comparable(self.known_before(), other, config.compare)

    def known_before(self) -> dict[str, Any]:
        """The entries of `results.json` that are known before the run and decide what it can be compared with."""
        config = self.config
        cases = [{"case": case} for case in group_cases(self.dataset, self.split)]
        return {
            "split": self.split,
            "surface_tolerance": config.surface_tolerance,
            "missed_distance": config.missed_distance,
            "cases": cases,
            "per_class": self.dataset.class_names,
            "draw": self.draw,
            "config": self.describe(),
        }

    def describe(self) -> dict[str, Any]:
        """The content of `config.json`: the settings, and the properties of the data."""
        return {
            "kind": "finetune",
            **to_json(self.config),
            "channels": self.dataset.channels,
            "num_classes": self.dataset.num_classes,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            **({"processing": self.dataset.processing} if self.dataset.processing else {}),
            **origin_of(self.dataset.content_digest()),
        }

    def train(self, run: RunFolder, interrupt: Interrupt) -> None:
        """Trains to the last step, starting from the newest checkpoint of `run` if it has one."""
        config = self.config
        found = ranks.from_first(run.load_checkpoint)
        start = 0 if found is None else found[0]
        if found is None:
            self._checkpoint(run, 0)
        else:
            source = run.path / "checkpoint"
            checked(FinetuneState, found[1], source)
            with fits(source):
                self._load_state_dict(found[1])
            check_loaded(self.segmenter.state_dict(), source)
        say(self.dataset)
        best = BestSegmenter(run)
        report_draw(self.dataset, self.draw, config.labels)
        log_every = max(1, min(config.steps // 50, 20))
        bar = Progress("fine-tuning", total=config.steps, start=start, images_per_step=config.batch_size)
        with interrupt, bar:
            for step in range(start + 1, config.steps + 1):
                self.losses.append(self.update(step))
                bar.advance(step, loss=self.losses[-1])
                row = self._metrics() if step % log_every == 0 else {}
                if self._validates(step):
                    dice = ranks.from_first(self.validate)
                    row |= {} if dice is None else {"val/dice": dice}
                    if ranks.is_first():
                        best.offer(self.segmenter, step, dice, self.dataset)
                if row and ranks.is_first():
                    run.log(step, row)
                stop = bool(ranks.largest(interrupt.requested))
                if step % config.checkpoint_every == 0 or step == config.steps or stop:
                    self._checkpoint(run, step)
                if stop:
                    signal = ranks.largest(interrupt.signal or 0) or 2
                    raise Interrupted(
                        f"stopped at step {step}; continue with: {resume_flags(run.path)}", signal
                    )

    def _metrics(self) -> dict[str, float]:
        """The mean loss since the last line of the log, and the learning rate."""
        rate = self.optimizer.param_groups[-1]["lr"]
        row = {"loss": sum(self.losses) / len(self.losses), "learning_rate": rate}
        self.losses.clear()
        return row

    def _validates(self, step: int) -> bool:
        return self.validate_every > 0 and (step % self.validate_every == 0 or step == self.config.steps)

    def validate(self) -> float | None:
        """The mean Dice on val, 0 to 1; None if no val label has a class. Draws no random numbers."""
        native = self.config.native_resolution
        return dice_on(self.segmenter, self.dataset, "val", native_resolution=native)

    def update(self, step: int) -> float:
        """Makes update number `step`, counted from 1; returns the loss before it.

        Raises:
            RunError: if the loss or its gradient is not finite; the weights then stay unchanged.
        """
        config = self.config
        images, labels = self.batches[step - 1]
        self.segmenter.train()
        images = to_device(ranks.own(images), self.device)
        loss, norm = self._passes(images, to_device(labels, self.device))
        value, size = torch.stack((loss, norm)).tolist()  # waits for a GPU only once
        if not (math.isfinite(value) and math.isfinite(size)):
            raise RunError(
                f"the loss is {value} (gradient norm {size}) at step {step}: lower "
                "`learning_rate`; the last checkpoint is good."
            )
        rate = config.learning_rate * cosine_schedule(step - 1, config.steps, WARMUP)
        for group in self.optimizer.param_groups:
            learns = group.get("new", True) or step > config.frozen_steps
            group["lr"] = rate * group["lr_scale"] if learns else 0.0
        self.optimizer.step()
        return value

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The loss of the whole batch, of which the labels are given, and the images of this rank."""
        with self.segmenter.autocast():
            logits = self.segmenter(images)
        return (self.loss(ranks.gathered(logits.float()), labels),)

    def score(self, run: RunFolder) -> dict[str, Any]:
        """Evaluates the chosen segmenter; writes the figures and `results.json`, and returns the latter."""
        config, native = self.config, self.config.native_resolution
        best = read_score(run.path)
        segmenter = chosen_segmenter(self.segmenter, run.path, config.select, self.split)
        scores = evaluate(
            segmenter,
            self.dataset,
            self.split,
            native_resolution=native,
            surface_tolerance=config.surface_tolerance,
            missed_distance=config.missed_distance,
        )
        results = {
            "split": self.split,
            "labels": len(self.batches.indices),
            "data": self.dataset.describe_patients() | {"files": self.warnings()},
            "draw": self.draw,
            "best": best,
            "fixed_map_dice": fixed_map_dice(self.dataset, self.batches.indices, self.split),
            **scores,
            "config": run.config,
        }
        if found_nothing(results):
            say(
                f"note: the Dice is 0.000 for every class, so nothing was learned: {config.steps} updates may be too "
                "few, or the labelled images show too little of the structure.",
            )
        write_atomically(run.path / "results.json", json.dumps(results, indent=2) + "\n")
        figure = draw_cases(segmenter, self.dataset, results, native_resolution=native)
        (run.path / "figures").mkdir(exist_ok=True)
        figure.savefig(run.path / "figures" / "overlays.png")
        curve = draw_curve(run.metrics(), best, self.config.select)
        curve.savefig(run.path / "figures" / "curve.png")
        write_case_pictures(segmenter, self.dataset, results, run.path, native_resolution=native)
        return results

    def warnings(self) -> list[str]:
        """What was left out of the folder of the images, and what may be wrong with it."""
        return warnings_about(self.config.data, self.config.data_root, shape_of(self.config)[0])

    def _checkpoint(self, run: RunFolder, step: int) -> None:
        if not ranks.is_first():
            return
        check_trained(self.segmenter.state_dict(), step)
        statistics = {"mean": self.dataset.mean, "std": self.dataset.std}
        run.replace("segmenter", lambda folder: save_segmenter(self.segmenter, folder, **statistics))
        state = {"segmenter": self.segmenter.state_dict(), "optimizer": self.optimizer.state_dict()}
        run.save_checkpoint(step, state | {"losses": self.losses})

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self.segmenter.load_state_dict(state["segmenter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])

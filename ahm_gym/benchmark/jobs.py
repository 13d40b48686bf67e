"""The jobs of a benchmark: one pretraining, or one evaluation of its encoder; each yields one row."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ahm_gym.benchmark.evaluations import (
    probe_draws,
    scores_of_finetuning,
    scores_of_pixel_probe,
    scores_of_probe,
)
from ahm_gym.benchmark.memory import peak_memory_mib, reset_peak_memory
from ahm_gym.benchmark.rows import (
    BASELINES,
    NOT_PRETRAINED,
    PROBES,
    UNTRAINED,
    PretrainRow,
    Row,
    ScoreRow,
    read_row,
)
from ahm_gym.benchmark.throughput import flops_per_image, matmul_limit
from ahm_gym.data import ImageDataset
from ahm_gym.device.choice import pick_device
from ahm_gym.errors import Interrupted, reason_of
from ahm_gym.masking.schedules import typical_mask_ratio
from ahm_gym.masking.selection import count_masked
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.published import load_autoencoder
from ahm_gym.pretraining import figures
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.inputs import open_images, starting_autoencoder
from ahm_gym.pretraining.mask_quality import reconstruction_psnr
from ahm_gym.pretraining.policy_options import folder_name
from ahm_gym.pretraining.run import pretrain
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.provenance import hardware
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.config import FinetuneConfig
from ahm_gym.segmentation.finetune import finetune

HEALTH = ("loss", "spearman", "excess", "overlap", "entropy", "masked_foreground")
"""Figures of the masks on validation images, as pretraining last recorded them."""


@dataclass(frozen=True)
class Job:
    """One pretraining, or one evaluation of its encoder. A job yields one row."""

    kind: str
    """pretrain, or one of `KINDS`."""
    data: str
    """Name of the data set."""
    policy: str
    seed: int
    labels: int | None = None
    """Number of labelled images of an evaluation."""
    amount: str | None = None
    """That number as requested: a count or a fraction."""

    @property
    def key(self) -> tuple[str, str, str, int, int | None]:
        return self.kind, self.data, self.policy, self.seed, self.labels

    @property
    def pace(self) -> str:
        """What the jobs that take about as long have in common; see `BaseRow.pace`."""
        return self.kind

    def __str__(self) -> str:
        labels = "" if self.labels is None else f", {self.labels} labels"
        return f"{self.data}, {self.policy}, seed {self.seed}: {self.kind}{labels}"


@dataclass(frozen=True)
class Failure:
    """A job that failed and so yields no row."""

    job: Job
    reason: str


@dataclass(frozen=True)
class Group:
    """The jobs of one encoder that have no row yet; its pretraining comes first if it is among them."""

    pretraining: PretrainConfig
    """Settings with the run folder; the policy may be scratch."""
    finetuning: FinetuneConfig
    """Settings that all encoders share; each job sets the encoder, the images and the labels."""
    data: str
    jobs: tuple[Job, ...]
    out: Path
    """Folder of the benchmark."""
    commit: str
    """The commit at the start, also in processes that start after files have changed."""
    has_decoder: bool = False
    """Whether the network has a decoder of its own, and so needs no other."""

    def __str__(self) -> str:
        return f"{self.data}, {self.pretraining.policy}, seed {self.pretraining.seed}"


def run_group(group: Group, interrupt: Interrupt) -> Iterator[Row | Failure]:
    """Yields the row or the failure of each job as it ends, and stops yielding after a request to stop.

    If a job fails, the others continue; if pretraining fails, all jobs of the group fail.

    Raises:
        Interrupted: after a request to stop, with the state of the pretraining saved.
    """
    jobs = list(group.jobs)
    if group.pretraining.policy in BASELINES:
        yield from run_evaluations(group, jobs, interrupt)
        return
    try:
        pretrained = pretraining_row(group, interrupt)
    except Interrupted:
        raise
    except Exception as error:
        yield from (Failure(job, reason_of(error)) for job in jobs)
        return
    if jobs[0].kind == "pretrain":
        jobs.pop(0)
        yield pretrained
    yield from run_evaluations(group, jobs, interrupt)


def run_evaluations(group: Group, jobs: list[Job], interrupt: Interrupt) -> Iterator[Row | Failure]:
    """Yields the row or the failure of each evaluation as it ends; see `run_group`."""
    for job in jobs:
        if interrupt.requested:
            return
        try:
            yield evaluate(group, job, interrupt)
        except Interrupted:
            raise
        except Exception as error:
            yield Failure(job, reason_of(error))


def origin(group: Group) -> dict[str, Any]:
    """The commit and the hardware that a row comes from."""
    return {"commit": group.commit, "hardware": hardware(pick_device(group.pretraining.device))}


def pretraining_row(group: Group, interrupt: Interrupt) -> PretrainRow:
    """Pretrains and measures the encoder of the group, unless this has been done.

    The row is kept in the run folder and marks the encoder as finished; the checkpoint is deleted.
    """
    config = group.pretraining
    assert config.run_dir is not None, "the plan names it"
    path = config.run_dir / "row.json"
    if path.exists():
        shutil.rmtree(config.run_dir / "checkpoint", ignore_errors=True)
        return read_row(path)
    job = Job("pretrain", group.data, config.policy, config.seed)
    if config.policy == UNTRAINED:
        psnr = psnr_of(*open_autoencoder(config))
        return PretrainRow(**vars(job), seconds=0.0, psnr=psnr, **origin(group))
    memory = train(config, interrupt)
    rows = RunFolder.open(config.run_dir, "pretrain").metrics()
    last = {name: row[name] for row in rows for name in row}
    seconds = seconds_of(rows, config.batch_size)
    rate = config.steps * config.batch_size / seconds
    autoencoder, num_masked, dataset = open_autoencoder(config)
    row = PretrainRow(
        **vars(job),
        seconds=seconds,
        images_per_second=rate,
        limit_share=rate * flops_per_image(autoencoder, num_masked) / matmul_limit(autoencoder.device),
        peak_memory_mib=memory,
        psnr=psnr_of(autoencoder, num_masked, dataset),
        **{name: last.get(f"val/{name}") for name in HEALTH},
        **origin(group),
    )
    if config.seed == 0:
        keep_masks(config.run_dir, picture_folder(group))
    write_atomically(path, row.model_dump_json(exclude_unset=True))
    shutil.rmtree(config.run_dir / "checkpoint")
    return row


def train(config: PretrainConfig, interrupt: Interrupt) -> float | None:
    """Pretrains, or resumes an earlier session.

    Returns:
        The peak memory in MiB, on a CPU that of the whole process; None if the run was finished already.
    """
    assert config.run_dir is not None, "the plan names it"
    begun = (config.run_dir / "config.json").exists()
    if not begun:
        shutil.rmtree(config.run_dir, ignore_errors=True)  # left by a crash before the run began
    elif RunFolder.open(config.run_dir, "pretrain").has_finished():
        return None
    device = pick_device(config.device)
    reset_peak_memory(device)
    # A run resumes with the settings in its folder, even if this session has others, such as another device.
    pretrain(PretrainConfig(run_dir=config.run_dir) if begun else config, resume=begun, interrupt=interrupt)
    return peak_memory_mib(device)


def seconds_of(metrics: list[dict[str, Any]], batch_size: int) -> float:
    """Seconds of training over all sessions of a run, without evaluation, pictures and checkpoints."""
    logged = [row for row in metrics if "images_per_second" in row]
    steps = np.diff([0] + [row["step"] for row in logged])
    return float(sum(batch_size * n / row["images_per_second"] for n, row in zip(steps, logged, strict=True)))


def open_autoencoder(config: PretrainConfig) -> tuple[Autoencoder, int, ImageDataset]:
    """The autoencoder of a run or an untrained one, the number of masked patches, and the images."""
    dataset = open_images(config)
    autoencoder = starting_autoencoder(config, dataset.channels, fresh=False).to(pick_device(config.device))
    if config.policy != UNTRAINED:
        assert config.run_dir is not None, "the plan names it"
        load_autoencoder(autoencoder, config.run_dir)
    return autoencoder, count_masked(autoencoder.num_patches, typical_mask_ratio(config.mask_ratio)), dataset


def psnr_of(autoencoder: Autoencoder, num_masked: int, dataset: ImageDataset) -> float | None:
    """PSNR of the reconstructions of test images under random masks, in dB; None if no pixels are predicted."""
    if not autoencoder.target.shows_pixels:
        return None
    indices = dataset.indices("test") or dataset.indices("val") or dataset.indices("train")
    return reconstruction_psnr(autoencoder, dataset, indices, num_masked)


def evaluate(group: Group, job: Job, interrupt: Interrupt) -> ScoreRow:
    """Fine-tunes or probes the encoder; the row has the scores of every case."""
    began = time.perf_counter()
    config = group.pretraining
    assert config.run_dir is not None, "the plan names it"
    run_dir = config.run_dir.with_name(f"{config.run_dir.name}-{job.kind}-{job.labels}")
    settings = replace(
        group.finetuning,
        encoder="none" if config.policy in NOT_PRETRAINED else str(config.run_dir),
        data=config.data,
        data_root=config.data_root,
        patient_regex=config.patient_regex,
        labels=job.labels,
        model=BASELINES[config.policy].model if config.policy in BASELINES else config.model,
        image_size=config.shape,
        spacing=config.spacing,
        patch_size=config.patch_size,
        seed=config.seed,
        device=config.device,
        freeze=job.kind == "frozen",
        decoder="plain" if job.kind in ("plain", "frozen") and not group.has_decoder else None,
        run_dir=run_dir,
    )
    if settings.select == "last" and settings.validate_every is None:
        settings = replace(settings, validate_every=0)  # nothing in a row depends on it
    shutil.rmtree(
        run_dir, ignore_errors=True
    )  # of an interrupted evaluation, which is short enough to start again
    if job.kind == "probe":
        scores = scores_of_probe(probe_draws(settings, interrupt))
    elif job.kind == "pixel_probe":
        scores = scores_of_pixel_probe(probe_draws(settings, interrupt, PROBES[job.kind]))
    else:
        scores = scores_of_finetuning(finetune(settings, interrupt=interrupt))
        if job.kind == "finetune" and job.seed == 0:
            picture = picture_folder(group) / f"segmentations-{job.labels}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(picture, (run_dir / "figures" / "overlays.png").read_bytes())
        shutil.rmtree(run_dir)
    seconds = time.perf_counter() - began
    return ScoreRow(**vars(job), seconds=seconds, **scores, **origin(group))


def picture_folder(group: Group) -> Path:
    """Folder of the pictures of a policy on a data set."""
    return group.out / "pictures" / group.data / folder_name(group.pretraining.policy)


def keep_masks(run_dir: Path, folder: Path) -> None:
    """Writes the masks of a run at several steps as pictures `step-N.png`, with the images below each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for step, panels in figures.load_snapshots(run_dir / "figures" / "snapshots").items():
        content = io.BytesIO()
        Image.fromarray(np.concatenate(list(panels))).save(content, "PNG")
        write_atomically(folder / f"step-{step}.png", content.getvalue())

"""Compares variants of pretraining with random masks, by the probe on validation images.

`python benchmarks/variants.py --data hc18_128.npz --variants "half: --policy a3c" "none: --policy a3c
--guided-fraction 0"` pretrains every variant with every seed, one thread each. It prints two scores of a ridge
regression from frozen features on validation images: the share of the variance of the label fractions that it explains
with all training labels, and its patch Dice with few labels, averaged over many draws; each with the paired difference
to random masks. A variant is a name and flags of `ahm-gym pretrain`; `random` is always included. Unlike
`ahm-gym benchmark`, variants may differ in any setting, and test scores are neither stored nor shown. Finished runs are
not run again.
"""

from __future__ import annotations

import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from programs import interval, last_metric, pretrain

from ahm_gym.data import ImageDataset, open_data
from ahm_gym.model.encoders import find_encoder, load_encoder
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.probe import Probe

RANDOM = "random: --policy random"
Scores = dict[str, float]


@dataclass(frozen=True)
class Arguments:
    """Compare settings of pretraining before results on test images are reported."""

    variants: tuple[str, ...]
    """Variants as "NAME: FLAGS", with flags of ahm-gym pretrain."""
    data: str = "hc18_128.npz"
    """Labelled images, as for ahm-gym pretrain."""
    flags: str = ""
    """Flags of ahm-gym pretrain for all variants, random too, with an equals sign: "--flags=--batch-size 32"."""
    steps: int = 1000
    """Updates of the autoencoder, with 64 images each by default."""
    seeds: int = 2
    """Seeds 0, 1, ..."""
    labels: int = 20
    """Labelled images of the probe."""
    draws: int = 25
    """Draws of labelled images that the probe is averaged over."""
    jobs: int = 2
    """Runs at the same time, one thread each."""
    out: Path = Path("runs/variants")
    """Folder of the runs, with one subfolder for each set of images and flags."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    variants = dict(line.split(":", 1) for line in (RANDOM, *arguments.variants))
    runs = [(seed, name) for seed in range(arguments.seeds) for name in variants]

    def run(key: tuple[int, str]) -> Path:
        seed, name = key
        folder = folder_of(arguments) / f"{name}-{seed}"
        options = [*shlex.split(arguments.flags), *shlex.split(variants[name])]
        pretrain(folder, arguments.steps, [*options, "--seed", str(seed), "--data", arguments.data])
        return folder

    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = dict(zip(runs, pool.map(run, runs), strict=True))
    datasets: dict[tuple[int, ...], ImageDataset] = {}
    scores = {key: evaluate(folder, arguments, datasets) for key, folder in folders.items()}
    print(
        f"\n{Path(arguments.data).stem} {arguments.flags}, {arguments.steps} updates, {arguments.seeds} seeds"
    )
    print(
        "| variant | val R2, all labels | against random | val patch Dice | against random | val loss | Spearman "
        "| masked foreground |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in variants:
        compared_scores = " | ".join(compared(name, key, scores, arguments.seeds) for key in ("r2", "dice"))
        health = (
            np.mean([last_metric(folders[seed, name], f"val/{key}") for seed in range(arguments.seeds)])
            for key in ("loss", "spearman", "masked_foreground")
        )
        shown = " | ".join(f"{value:.3f}" for value in health)
        print(f"| {name} | {compared_scores} | {shown} |")


def compared(name: str, key: str, scores: dict[tuple[int, str], Scores], seeds: int) -> str:
    """Two columns of the table: the mean of a score over the seeds, and its paired difference to random masks."""
    own = [scores[seed, name][key] for seed in range(seeds)]
    paired = [score - scores[seed, "random"][key] for seed, score in enumerate(own)]
    return f"{np.mean(own):.4f} | {interval(paired)}"


def folder_of(arguments: Arguments) -> Path:
    flags = "_".join(shlex.split(arguments.flags)).replace("/", "-")
    return arguments.out / f"{Path(arguments.data).stem}-{arguments.steps}{flags}"


def evaluate(run_dir: Path, arguments: Arguments, datasets: dict[tuple[int, ...], ImageDataset]) -> Scores:
    """The scores of a run's encoder on validation images, which are also stored in its folder."""
    path = run_dir / f"evaluated-{arguments.labels}-{arguments.draws}.json"
    if path.exists():
        return json.loads(path.read_text())
    size = find_encoder(run_dir).image_size
    if size not in datasets:
        datasets[size] = open_data(arguments.data, image_size=size, need_labels=True)
    probe = Probe(load_encoder(run_dir), datasets[size])
    draws = [probe(labels=arguments.labels, seed=seed)["val_patch_dice"] for seed in range(arguments.draws)]
    scores = {"r2": probe()["val_r2"], "dice": float(np.mean(draws))}
    write_atomically(path, json.dumps(scores))
    return scores


if __name__ == "__main__":
    main()

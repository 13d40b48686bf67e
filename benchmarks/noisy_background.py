"""Measures which rewards chase noise: A3C on images with unpredictable noise in the background.

`python benchmarks/noisy_background.py --data hc18_128.npz` reduces the contrast of the images to make room for noise,
adds noise to every pixel of class 0, and pretrains with each reward and seed, one thread each. It prints the share of
noise among the patches that the agent scores highest (a quarter of each validation image). Chance is the share of noise
among all patches. Finished runs are kept.
"""

from __future__ import annotations

import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from programs import interval, last_metric, pretrain

from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.sample import SPLITS
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.published import load_autoencoder
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies import make_policy
from ahm_gym.runs.storage import write_atomically
from ahm_gym.segmentation.probe import label_fractions

SIZE, PATCH_SIZE = (64, 64), 8
CONTRAST = 0.15
"""Factor on the range of the images."""


@dataclass(frozen=True)
class Arguments:
    """A3C with several rewards on a noisy background."""

    data: str = "hc18_128.npz"
    """Labelled images, as for ahm-gym pretrain."""
    rewards: tuple[str, ...] = ("loss", "progress")
    """Rewards to compare; differences are to the first."""
    deviation: float = 0.1
    """Standard deviation of the noise, on images with a range of 0.15; much more than 0.1 is clipped."""
    seeds: int = 3
    """Seeds 0, 1, ..."""
    steps: int = 500
    """Updates of the autoencoder, with 32 images each and half of the masked patches guided."""
    jobs: int = 2
    """Runs at the same time, one thread each."""
    out: Path = Path("runs/noisy-background")
    """Folder of the images and runs."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    noisy = arguments.out / f"noise-{arguments.deviation}-{Path(arguments.data).stem}.npz"
    if not noisy.exists():
        write_noisy(open_data(arguments.data, image_size=SIZE, need_labels=True), noisy, arguments.deviation)
    runs = list(itertools.product(range(arguments.seeds), arguments.rewards))

    def run(key: tuple[int, str]) -> Path:
        seed, reward = key
        folder = arguments.out / f"{noisy.stem}-{arguments.steps}-{reward}-{seed}"
        options = ["--data", str(noisy), "--policy", "a3c", "--reward", reward, "--seed", str(seed)]
        options += ["--batch-size", "32", "--guided-fraction", "0.5", "--spread-fraction", "0"]
        pretrain(folder, arguments.steps, options)
        return folder

    with ThreadPoolExecutor(arguments.jobs) as pool:
        folders = dict(zip(runs, pool.map(run, runs), strict=True))
    report(arguments, open_data(str(noisy), image_size=SIZE), folders)


def write_noisy(dataset: ImageDataset, path: Path, deviation: float) -> None:
    """Saves the images around grey, with fixed noise on all pixels of class 0."""
    rng = np.random.default_rng(0)
    arrays: dict[str, list[np.ndarray]] = {}
    for split in SPLITS:
        for index in dataset.indices(split, labelled=True):
            sample = dataset.sample(index)
            assert sample.label is not None, "only labelled samples are taken"
            size = (sample.image.shape[1], sample.image.shape[2])
            label = torch.nn.functional.interpolate(
                sample.label[None, None].float(), size, mode="nearest-exact"
            )
            label = label[0, 0].numpy().astype(np.uint8)
            image = sample.image.permute(1, 2, 0).numpy()
            # Around grey: half of the noise on black would be clipped.
            image = 0.5 + CONTRAST * (image - 0.5)
            image = image + deviation * rng.standard_normal(image.shape) * (label == 0)[..., None]
            arrays.setdefault(f"{split}_images", []).append(
                (255 * image.clip(0, 1)).astype(np.uint8).squeeze()
            )
            arrays.setdefault(f"{split}_label", []).append(label)
    stacked: dict[str, Any] = {name: np.stack(values) for name, values in arrays.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **stacked)
    write_atomically(path, content.getvalue())


def report(arguments: Arguments, dataset: ImageDataset, folders: dict[tuple[int, str], Path]) -> None:
    val = dataset.indices("val", labelled=True)
    labels = [dataset.sample(index).label for index in val]
    background = torch.stack(
        [
            label_fractions(label, dataset.num_classes, SIZE, PATCH_SIZE)[:, 0]
            for label in labels
            if label is not None
        ]
    )
    noise = background > 0.5  # B L
    shares = {key: share_of_noise(folder, dataset, val, noise) for key, folder in folders.items()}
    chance = float(noise.double().mean())
    print(
        f"\n{arguments.data}, noise {arguments.deviation}, {arguments.steps} updates; by chance {chance:.3f}"
    )
    print(f"| reward | noise among the highest quarter | against {arguments.rewards[0]} | Spearman |")
    print("|---|---|---|---|")
    for reward in arguments.rewards:
        own = [shares[seed, reward] for seed in range(arguments.seeds)]
        paired = [share - shares[seed, arguments.rewards[0]] for seed, share in enumerate(own)]
        spearman = np.mean(
            [last_metric(folders[seed, reward], "val/spearman") for seed in range(arguments.seeds)]
        )
        listed = ", ".join(f"{share:.3f}" for share in own)
        print(f"| {reward} | {np.mean(own):.3f} ({listed}) | {interval(paired)} | {spearman:.3f} |")


def share_of_noise(folder: Path, dataset: ImageDataset, val: list[int], noise: torch.Tensor) -> float:
    """The share of noise among the quarter of the patches that the trained agent scores highest."""
    autoencoder = build_autoencoder("tiny", image_size=SIZE, patch_size=PATCH_SIZE, channels=dataset.channels)
    load_autoencoder(autoencoder, folder)
    images = dataset.resized(val, SIZE)
    with torch.no_grad():
        patches = PatchBatch(images, autoencoder.embed(images), autoencoder.grid, 1.0)
        scores = make_policy(f"agent:{folder}", autoencoder).score(patches, torch.Generator().manual_seed(0))
    highest = scores.argsort(dim=1, descending=True)[:, : noise.shape[1] // 4]
    return float(noise.gather(1, highest).double().mean())


if __name__ == "__main__":
    main()

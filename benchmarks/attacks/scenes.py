"""Small folders of images and finished runs that the attacks start from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def labelled_folder(folder: Path, images: int = 12, side: int = 48) -> None:
    """Writes `images/` and `labels/` with discs of random places and sizes, each of a patient of its own."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    generator = np.random.default_rng(0)
    for index in range(images):
        label = np.zeros((side, side), np.uint8)
        centre = tuple(int(place) for place in generator.integers(side // 4, 3 * side // 4, 2))
        cv2.circle(label, centre, int(generator.integers(4, side // 4)), 1, -1)
        image = 60 + 90 * label + generator.integers(0, 50, (side, side))
        cv2.imwrite(str(folder / "images" / f"patient{index:03d}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / "labels" / f"patient{index:03d}.png"), label)


def small_run(run: Path, data: Path) -> None:
    """Pretrains for a few updates with the default agent."""
    from ahm_gym import cli

    settings = ["--steps", "4", "--batch-size", "4", "--image-size", "32", "--checkpoint-every", "2"]
    cli.main(["pretrain", "--data", str(data), *settings, "--data-workers", "0", "--run-dir", str(run)])


def small_segmenter(segmenter: Path, run: Path, data: Path) -> None:
    """Fine-tunes a run for a few updates."""
    from ahm_gym import cli

    settings = ["--steps", "4", "--batch-size", "2", "--checkpoint-every", "2"]
    cli.main(["finetune", "--encoder", str(run), "--data", str(data), *settings, "--run-dir", str(segmenter)])


def commands(scene: Path, place: Path) -> dict[str, list[str]]:
    """For every command, arguments with which it ends in success within seconds; it writes into `place`."""
    data, out = scene / "data", place / "run"
    few = "--batch-size 2 --checkpoint-every 2 --steps"
    return {
        name: f"{name} {settings}".split()
        for name, settings in {
            "look": f"--out {out} {data}",
            "pretrain": f"--run-dir {out} --data {data} --image-size 32 --data-workers 0 {few} 3",
            "finetune": f"--run-dir {out} --encoder {scene / 'run'} --data {data} {few} 3",
            "probe": f"--run-dir {out} --encoder {scene / 'run'} --data {data}",
            "predict": f"--out {out} --run {scene / 'segmenter'} {data / 'images'}",
            "evaluate": f"--out {out} --run {scene / 'segmenter'} {data}",
            "export": f"--out {place / 'network.onnx'} --run {scene / 'segmenter'}",
            "embed": f"--out {place / 'features.npz'} --run {scene / 'run'} {data / 'images'}",
            "benchmark": f"--out {out} --data {data} --policies random --seeds 1 --labels 2 --tasks probe "
            "--pretrain-steps 1 --batch-size 2 --image-size 32 --jobs 1",
        }.items()
    }


def build(scene: Path) -> None:
    """Writes images, a run on them and a segmenter into a folder."""
    labelled_folder(scene / "data")
    small_run(scene / "run", scene / "data")
    small_segmenter(scene / "segmenter", scene / "run", scene / "data")

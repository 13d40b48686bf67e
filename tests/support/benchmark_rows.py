"""Writes the folder of a finished benchmark, with made-up numbers and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ahm_gym.benchmark.report import write_report

POLICIES = ("scratch", "random", "block", "grid", "a3c", "ppo", "hpm", "attention")
GAIN = dict(zip(POLICIES, (-0.06, 0, 0.004, -0.03, 0.012, 0.002, 0.03, 0.0), strict=True))
"""The Dice that each policy gains over random masks."""
COST = dict(zip(POLICIES, (0, 1, 1.02, 1.03, 1.6, 2.4, 1.35, 1.15), strict=True))
BASE = {"hc18_128": 0.93, "isic2016_128": 0.82, "monusac_128": 0.61}
CLASSES = {"hc18_128": 1, "isic2016_128": 1, "monusac_128": 2}


DATA = ("hc18_128", "monusac_128")
FEW = ("scratch", "random", "grid", "a3c")


def write_benchmark(out: Path) -> Path:
    """Writes a small finished benchmark with masks at steps 1, 50 and 100."""
    write_rows(out, list(make_rows(DATA, FEW, seeds=3, cases=12)))
    draw_pictures(out, DATA, FEW, (1, 50, 100))
    return out


def make_rows(
    data: Sequence[str] = tuple(BASE),
    policies: Sequence[str] = POLICIES,
    seeds: int = 3,
    labels: Sequence[int] = (10, 50),
    kinds: Sequence[str] = ("finetune", "frozen", "probe"),
    cases: int = 60,
) -> Iterator[dict[str, Any]]:
    """Yields rows as a benchmark would append them; effects of seeds and cases are crossed."""
    for name in data:
        rng = np.random.default_rng(len(name))
        difficulty = rng.normal(0, 0.05, (1, cases, CLASSES[name]))
        for seed in range(seeds):
            noise = {label: rng.normal(0, 0.008) for label in labels}
            for policy in policies:
                yield _pretraining(rng, name, policy, seed)
                for kind in kinds:
                    for label in labels:
                        gain = GAIN[policy] * (1.6 if label == 10 else 0.7) + rng.normal(0, 0.004)
                        mean = BASE[name] + gain + noise[label] - (0.09 if label == 10 else 0.0)
                        mean -= {"finetune": 0, "frozen": 0.05, "probe": 0.12}[kind]
                        spread = difficulty[0] + rng.normal(0, 0.02, difficulty[0].shape)
                        yield _scores(rng, name, policy, seed, kind, label, np.clip(mean + spread, 0, 1))


def _pretraining(rng: np.random.Generator, data: str, policy: str, seed: int) -> dict[str, Any]:
    row = {"kind": "pretrain", "data": data, "policy": policy, "seed": seed}
    if policy == "scratch":
        names = (
            "images_per_second",
            "limit_share",
            "peak_memory_mib",
            "loss",
            "psnr",
            "spearman",
            "excess",
            "overlap",
        )
        return row | {"seconds": 0} | dict.fromkeys((*names, "entropy", "masked_foreground"))
    seconds = 210 * COST[policy] * rng.uniform(0.97, 1.03)
    return row | {
        "seconds": seconds,
        "images_per_second": 80000 / seconds,
        "limit_share": 60 / seconds,
        "peak_memory_mib": 800 * COST[policy] ** 0.3,
        "loss": 0.3 + rng.normal(0, 0.01),
        "psnr": 21.5 + rng.normal(0, 0.3),
        "spearman": rng.uniform(-0.1, 0.6),
        "excess": rng.uniform(0, 0.4),
        "overlap": rng.uniform(0.7, 0.9),
        "entropy": rng.uniform(0.8, 1),
        "masked_foreground": rng.uniform(0.7, 0.8),
    }


def _scores(
    rng: np.random.Generator, data: str, policy: str, seed: int, kind: str, labels: int, dice: np.ndarray
) -> dict[str, Any]:
    iou = dice / (2 - dice)
    hd95 = 40 * (1 - dice) * rng.uniform(0.8, 1.2, dice.shape)
    metrics = {"dice": dice} if kind == "probe" else {"dice": dice, "iou": iou, "hd95": hd95}
    cases = {
        f"case-{i:03}": {name: values[i].round(4).tolist() for name, values in metrics.items()}
        for i in range(len(dice))
    }
    return {
        "kind": kind,
        "data": data,
        "policy": policy,
        "seed": seed,
        "labels": labels,
        "split": "test",
        "seconds": 60.0,
        "dice": dice.mean(),
        "iou": None if kind == "probe" else iou.mean(),
        "hd95": None if kind == "probe" else hd95.mean(),
        "hd95_unit": None if kind == "probe" else "pixels",
        "num_classes": CLASSES[data] + 1,
        "cases": cases,
    }


def write_rows(out: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the folder of a benchmark with these rows and made-up settings."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "pretrain": {"steps": 2000, "batch_size": 32, "image_size": 128, "patch_size": 16},
        "finetune": {"steps": 400},
        "model": "tiny",
        "command": "python examples/benchmark.py --data hc18_128 isic2016_128 --seeds 3",
        "machine": {
            "commit": "0123abc",
            "hardware": "2 cores of an Intel Xeon",
            "versions": {"torch": "2.13.0", "timm": "1.0.31"},
        },
    }
    (out / "config.json").write_text(json.dumps(config))
    return out


def report(folder: Path, rows: Iterable[dict[str, Any]]) -> tuple[str, str]:
    """The Markdown and the HTML of a report on these rows."""
    written = write_report(write_rows(folder, list(rows)))
    return written.markdown.read_text(), written.html.read_text()


def board(folder: Path) -> list[dict[str, str]]:
    """The rows of a report's CSV, by column."""
    return list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text())))


def draw_pictures(out: Path, data: Sequence[str], policies: Sequence[str], steps: Sequence[int]) -> None:
    """Draws masks at these steps, and segmentations with 10 and 50 labels, for every policy."""
    rng = np.random.default_rng(0)
    for name in data:
        images = [_phantom(rng, 128) for _ in range(4)]
        for policy in policies:
            folder = out / "pictures" / name / policy
            folder.mkdir(parents=True, exist_ok=True)
            if policy != "scratch":
                for step in steps:
                    panels = [_panels(rng, image, step / max(steps)) for image in images]
                    Image.fromarray(np.vstack(panels)).save(folder / f"step-{step}.png")
            for labels in (10, 50):
                shown = np.hstack([_outlined(images[i % 4], 0.4 + 0.02 * i) for i in range(8)])
                Image.fromarray(shown).save(folder / f"segmentations-{labels}.png")


def _phantom(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle = rng.uniform(0, 3)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.hypot(u / 0.42, v / 0.3)
    grey = 40 + 90 * (radius < 1) + 90 * (abs(radius - 1) < 0.06) + 25 * np.sin(9 * x) * np.cos(11 * y)
    return np.clip(grey + rng.normal(0, 10, grey.shape), 0, 255).astype(np.uint8)


def _panels(rng: np.random.Generator, image: np.ndarray, share: float) -> np.ndarray:
    """Image, mask, reconstruction and scores side by side."""
    size = image.shape[0]
    patch = np.ones((size // 8, size // 8))
    means = image.reshape(8, size // 8, 8, size // 8).mean((1, 3))
    scores = rng.random((8, 8)) + share * means / 128
    masked = np.kron(scores > np.quantile(scores, 0.25), patch) > 0
    guided = np.kron(scores > np.quantile(scores, 1 - 0.7 * share), patch) > 0
    grey = np.repeat(image[..., None], 3, 2)
    hidden = grey.copy()
    hidden[masked] = (45, 45, 52)
    hidden[masked & guided] = (214, 118, 40)
    filled = np.where(masked, np.kron(means, patch), image).astype(np.uint8)
    shown = np.kron(255 * (scores - scores.min()) / np.ptp(scores), patch).astype(np.uint8)
    parts = [grey, hidden, np.repeat(filled[..., None], 3, 2), np.repeat(shown[..., None], 3, 2)]
    gap = np.full((size, 2, 3), 255, dtype=np.uint8)
    row = np.hstack([piece for part in parts for piece in (part, gap)][:-1])
    return np.vstack([row, np.full((2, row.shape[1], 3), 255, dtype=np.uint8)])


def _outlined(image: np.ndarray, radius: float) -> np.ndarray:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] / image.shape[0] - 0.5
    colour = np.repeat(image[..., None], 3, 2)
    colour[abs(np.hypot(x, y) - radius / 1.2) < 0.01] = (228, 26, 28)
    colour[:, -3:] = 255
    return np.vstack([np.repeat(image[..., None], 3, 2), colour])

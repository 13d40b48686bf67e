"""What short runs of every policy and agent give, compared with what the same runs gave before.

A change that is not meant to alter results must leave `digests.json` as it is. After one that is, record the runs
again with `RECORD_DIGESTS=1 python -m pytest tests/project/test_digests.py` and say in the commit why they differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import run, write_discs
from safetensors.torch import load_file

RECORD = Path(__file__).with_name("digests.json")
SMALL = ("--image-size", 32, "--batch-size", 8, "--device", "cpu")
TOLERANCE = 0.05
"""Relative, on another processor or with another torch, where the last bits of a product differ."""

RUNS: Mapping[str, tuple[object, ...]] = {
    name: ("--policy", name, "--steps", 12)
    for name in (
        "random", "spread", "block", "grid", "hard_patches", "teacher_loss", "attention", "attention_low",
        "attention_hints", "adamae", "curriculum", "thompson", "oracle_hard", "low_loss", "textured", "flat",
        "patch_ppo", "group", "ppo", "dqn",
    )
} | {
    "a3c": ("--policy", "a3c", "--steps", 40),
    "a3c-steps": ("--policy", "a3c", "--steps", 12, "--masking-steps", 3, "--initial-mask-ratio", 0.5),
    "a3c-relative": ("--policy", "a3c", "--steps", 12, "--reward", "relative", "--agent-options", "credit=image"),
    "unet": ("--policy", "a3c", "--steps", 12, "--model", "unet", "--target", "normalised"),
}  # fmt: skip
"""Pretraining runs by name, and the flags that make them."""

Found = dict[str, Any]


def digest_of(*folders: Path) -> str:
    """Of the bits of all tensors in the safetensors files of these folders, whatever they are called."""
    tensors = [
        value
        for folder in folders
        for path in folder.rglob("*.safetensors")
        for value in load_file(path).values()
    ]
    assert tensors
    digests = [hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in tensors]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]


def last_metrics(folder: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for row in rows for name, value in row.items()}
    return {name: last[name] for name in ("loss", "reward", "val/loss") if last.get(name) is not None}


def call(folder: Path, program: str, *flags: object) -> None:
    done = run(program, *flags, cwd=folder)
    assert done.returncode == 0, done.stderr


def pretrain_all(folder: Path) -> Iterator[tuple[str, Found]]:
    data = ("--data", folder / "discs.npz", *SMALL)
    for name, flags in RUNS.items():
        call(folder, "pretrain.py", *data, *flags, "--run-dir", folder / name)
    call(
        folder,
        "pretrain.py",
        *data,
        "--policy",
        "agent:a3c",
        "--steps",
        12,
        "--run-dir",
        folder / "agent-a3c",
    )
    for name in (*RUNS, "agent-a3c"):
        digest = digest_of(folder / name / "encoder", folder / name / "agent")
        yield name, {"digest": digest, "scores": last_metrics(folder / name)}
    recipe = folder / "ahm2025"
    call(folder, "pretrain.py", *data, "--recipe", "ahm2025", "--steps", 4, "--run-dir", recipe)
    yield (
        "ahm2025",
        {
            "digest": digest_of(recipe / "2-agent" / "agent", recipe / "3-pretraining" / "encoder"),
            "scores": last_metrics(recipe / "3-pretraining"),
        },
    )


def segment_all(folder: Path) -> Iterator[tuple[str, Found]]:
    few = ("--labels", 4, "--device", "cpu")
    steps = (*few, "--steps", 12, "--batch-size", 4)
    for name, flags in {
        "finetune-a3c": ("--encoder", folder / "a3c", *steps),
        "finetune-unet": ("--encoder", folder / "unet", *steps),
        "finetune-frozen": ("--encoder", folder / "random", *steps, "--freeze", "--native-resolution"),
        "finetune-none": ("--data", folder / "discs.npz", "--image-size", 32, *steps),
    }.items():
        call(folder, "segment.py", *flags, "--run-dir", folder / name)
        results = json.loads((folder / name / "results.json").read_text())
        scores = {metric: results[metric] for metric in ("dice", "iou") if results[metric] is not None}
        yield name, {"digest": digest_of(folder / name / "segmenter"), "scores": scores}
    for name, encoder in {"probe-a3c": "a3c", "probe-unet": "unet"}.items():
        call(folder, "segment.py", "--encoder", folder / encoder, "--probe", *few, "--run-dir", folder / name)
        results = json.loads((folder / name / "results.json").read_text())
        scores = {metric: results[metric] for metric in ("patch_dice", "val_r2")}
        yield name, {"digest": text_digest(results["cases"]), "scores": scores}


def benchmark(folder: Path) -> Iterator[tuple[str, Found]]:
    call(
        folder, "benchmark.py", "--data", folder / "discs.npz", "--image-size", 32, "--batch-size", 8, "--labels", "4",
        "--policies", "random,a3c", "--seeds", 1, "--pretrain-steps", 8, "--finetune-steps", 8, "--device", "cpu",
        "--out", folder / "benchmark",
    )  # fmt: skip
    for line in (folder / "benchmark" / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        name = f"benchmark-{row['policy']}-{row['kind']}"
        scores = {metric: row[metric] for metric in ("dice", "psnr", "loss") if row.get(metric) is not None}
        yield name, {"digest": text_digest([scores, row.get("cases")]), "scores": scores}


def text_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def machine() -> str:
    """What decides the last bits of a result."""
    return f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digests")
    write_discs(folder / "discs.npz")
    return folder


@pytest.mark.slow
def test_short_runs_give_what_they_gave_before(folder: Path) -> None:
    found = dict([*pretrain_all(folder), *segment_all(folder), *benchmark(folder)])
    if os.environ.get("RECORD_DIGESTS"):
        RECORD.write_text(json.dumps({"machine": machine(), "runs": found}, indent=2) + "\n")
        return
    record = json.loads(RECORD.read_text())
    assert found.keys() == record["runs"].keys()
    if machine() == record["machine"]:
        changed = [name for name in found if found[name]["digest"] != record["runs"][name]["digest"]]
        assert not changed, f"these runs give other results than before: {', '.join(changed)}"
    else:
        for name, run_found in found.items():
            assert run_found["scores"] == pytest.approx(
                record["runs"][name]["scores"], rel=TOLERANCE, abs=TOLERANCE
            ), name

"""What several ranks gain and exchange: measured on this machine, predicted by a model, and compared.

`python benchmarks/ranks.py` measures updates with 1, 2 and 4 ranks of one thread, which exchange by gloo, and takes
about three minutes on two free cores. The model has three constants of each network, fitted to its cases of 1 rank and
to one of 2 ranks, and the latency and bandwidth of an exchange, measured alone; the other cases check it. It is
compared with seconds and with CPU seconds, which other programs on the machine hardly change.
`python benchmarks/ranks.py --bandwidth 50 --latency 5 --seconds-an-image 1.2e-4` measures nothing, and predicts any
number of ranks of any network on such machines.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import tyro
from exchange_model import (
    Exchange,
    Link,
    Work,
    counted,
    exchanges_of_an_update,
    fitted,
    link_of,
    predicted,
    sent,
)
from torch import nn

from ahm_gym.device import ranks
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.model.pretrainer import build_pretrainer
from ahm_gym.runs.provenance import commit, hardware

SIDE, PATCH = 64, 8
"""Pixels of the images and of their patches that are measured."""
CASES = (("tiny", 64, 30), ("tiny", 256, 10), ("small", 32, 8), ("small", 128, 4))
"""Model, images in an update, and number of updates that are timed."""
LINK_SIZES = (4, 1 << 26)
"""Bytes of the two exchanges by which latency and bandwidth are measured."""


@dataclass(frozen=True)
class Arguments:
    """Measure and predict what several ranks gain."""

    ranks: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks."""
    quick: bool = False
    """Measure the tiny network alone, in few updates."""
    out: Path | None = Path("benchmarks/ranks/measured.jsonl")
    """File to which measured rows are appended; None: they are only printed."""
    bandwidth: float | None = None
    """GB/s that a rank sends; with it nothing is measured."""
    latency: float = 5.0
    """Microseconds of a message."""
    gloo_bandwidth: float = 1.0
    """GB/s that a rank sends of what is decided in main memory: scores, weights and whether to stop."""
    gloo_latency: float = 100.0
    """Microseconds of such a message."""
    seconds_an_image: float = 1.2e-4
    """Seconds that a rank computes for each of its own images."""
    seconds_a_whole_image: float = 0.0
    """Seconds that every rank computes for each image of the whole batch."""
    seconds_an_update: float = 0.0
    """Seconds that every rank computes in an update, however many images it has."""
    least_seconds: float = 0.0
    """Least seconds of an update, such as those of launching the kernels of a GPU one by one."""
    parameters: int = 23_000_000
    """Parameters of the autoencoder."""
    image_size: int = 128
    """Side of an image in pixels."""
    patch_size: int = 8
    """Side of a patch in pixels."""
    batch_size: int | None = None
    """Images in an update; None: 256 for each rank."""
    worker: Path | None = None
    """File to which a rank writes what it measured; for the processes that this program starts."""


def written_bytes() -> int:
    """Bytes that this process has written so far, to sockets too, by Linux; 0 elsewhere."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[3]) if counts.exists() else 0


def step_of(model: str, batch: int) -> tuple[Callable[[], object], int]:
    """An update with random masks, as a run makes it, and the number of parameters that it changes."""
    size = (SIDE, SIDE)
    pretrainer = build_pretrainer(model, size, PATCH, 1, 10_000, seed=0)
    images = torch.randn(2 * batch, 1, *size, generator=torch.Generator().manual_seed(0))
    env = MaskingVectorEnv(batch, data=images, pretrainer=pretrainer, weigh=lambda _, masks, __: masks.weight)
    env.reset(seed=0)
    rng = np.random.default_rng(0)

    def step() -> None:
        env.step(rng.uniform(-1, 1, (batch, env.num_patches)).astype(np.float32))
        ranks.largest(False)

    weights = pretrainer.autoencoder.parameters()
    return step, sum(weight.numel() for weight in weights if weight.requires_grad)


def measure(model: str, batch: int, updates: int) -> dict[str, Any]:
    """The median seconds of an update, and the means of its CPU seconds and of what this rank sends."""
    step, parameters = step_of(model, batch)
    for _ in range(2):
        step()
    times, cpu, written = [], time.process_time(), written_bytes()
    with counted() as exchanges:
        for _ in range(updates):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
    return {
        "model": model, "batch": batch, "ranks": ranks.world_size(), "seconds": statistics.median(times),
        "cpu_seconds": (time.process_time() - cpu) / updates, "updates": updates, "parameters": parameters,
        "sent_by_calls": round(sent(exchanges, ranks.world_size()) / updates),
        "sent_by_the_system": round((written_bytes() - written) / updates),
    }  # fmt: skip


def measure_link() -> dict[str, Any]:
    """The seconds and CPU seconds of two exchanges, of which one has almost no size, and of a mean of gradients."""
    small, large = (torch.zeros(size // 4) for size in LINK_SIZES)
    weights = [nn.Parameter(part) for part in large.chunk(100)]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    found: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for exchange in (
        lambda: dist.all_reduce(small),
        lambda: dist.all_reduce(large),
        lambda: ranks.average_gradients(weights),
    ):
        times, used = [], []
        for _ in range(12):
            dist.all_reduce(torch.zeros(1))  # so that both begin together
            began, cpu = time.perf_counter(), time.process_time()
            exchange()
            times.append(time.perf_counter() - began)
            used.append(time.process_time() - cpu)
        found["seconds"].append(statistics.median(times[2:]))
        found["cpu_seconds"].append(statistics.fmean(used[2:]))
    return {"link": found, "ranks": ranks.world_size()}


def work(arguments: Arguments) -> None:
    """What each rank does: it measures all cases, and rank 0 writes them."""
    assert arguments.worker is not None, "this process is a rank"
    torch.set_num_threads(1)
    with ranks.started():
        rows = [measure_link()] if ranks.world_size() == 2 else []
        for model, batch, updates in CASES:
            if not arguments.quick or model == "tiny":
                rows.append(measure(model, batch, 3 if arguments.quick else updates))
        if ranks.is_first():
            arguments.worker.write_text(json.dumps(rows))


def rows_of(num_ranks: int, quick: bool) -> list[dict[str, Any]]:
    """What the ranks measure that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        given = ["--worker", str(out), *["--quick"] * quick]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", *launch, __file__, *given], env=environment, check=True)
        return json.loads(out.read_text())


def compare(rows: Sequence[dict[str, Any]], cores: int) -> None:
    """Prints what was measured, and how far the model is from it."""
    columns = ("model", "images", "ranks", "images/s", "times that of 1 rank", "MB sent", "counted", "s", "model",
               "error", "CPU s", "model", "error")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for model in dict.fromkeys(row["model"] for row in rows if "model" in row):
        measured = [row for row in rows if row.get("model") == model]
        exchanges = [
            exchanges_of_an_update(row["parameters"], SIDE**2, (SIDE // PATCH) ** 2, row["batch"])
            for row in measured
        ]
        alone = {row["batch"]: row["seconds"] for row in measured if row["ranks"] == 1}
        compared = [
            errors_of(rows, measured, exchanges, *of)
            for of in (("seconds", cores), ("cpu_seconds", math.inf))
        ]
        for row, exchanged, *errors in zip(measured, exchanges, *compared, strict=True):
            gain = alone[row["batch"]] / row["seconds"] if row["batch"] in alone else math.nan
            mb = (sent(exchanged, row["ranks"]) / 1e6, row["sent_by_the_system"] / 1e6)
            print(
                f"| {model} | {row['batch']} | {row['ranks']} | {row['batch'] / row['seconds']:.0f} | {gain:.2f} "
                f"| {mb[0]:.2f} | {mb[1]:.2f} | {' | '.join(errors)} |"
            )


def errors_of(
    rows: Sequence[dict[str, Any]],
    measured: Sequence[dict[str, Any]],
    exchanges: Sequence[list[Exchange]],
    key: str,
    cores: float,
) -> list[str]:
    """Three cells of the table for each row of a network: its seconds at `key`, those of the model, and the error.

    The work is fitted to the rows of 1 rank, and of 2 ranks with the largest batch.
    """
    (link,) = (link_of(LINK_SIZES, row["link"][key], row["ranks"]) for row in rows if "link" in row)
    largest = max(row["batch"] for row in measured)
    known = [row["ranks"] == 1 or (row["ranks"] == 2 and row["batch"] == largest) for row in measured]
    fit = [pair for pair, used in zip(zip(measured, exchanges, strict=True), known, strict=True) if used]
    found = fitted([row for row, _ in fit], [exchanged for _, exchanged in fit], link, cores, key)
    print(
        f"{measured[0]['model']}, {key}: {1e3 * found.update:.1f} ms an update, {1e3 * found.own:.3f} an own image, "
        f"{1e3 * found.whole:.3f} a whole one; {1e6 * link.latency:.0f} us a message, {link.bandwidth / 1e9:.2f} GB/s, "
        f"{1e9 * link.copying:.2f} s to copy 1 GB",
        file=sys.stderr,
    )
    cells = []
    for row, exchanged, used in zip(measured, exchanges, known, strict=True):
        seconds = predicted(found, link, exchanged, row["batch"], row["ranks"], cores)
        error = "fitted" if used else f"{seconds / row[key] - 1:+.0%}"
        cells.append(f"{row[key]:.3f} | {seconds:.3f} | {error}")
    return cells


def predict(arguments: Arguments) -> None:
    """Prints what the model says of other ranks and networks."""
    assert arguments.bandwidth is not None, "checked"
    link = Link(1e-6 * arguments.latency, 1e9 * arguments.bandwidth)
    memory = Link(1e-6 * arguments.gloo_latency, 1e9 * arguments.gloo_bandwidth)
    found = Work(
        arguments.seconds_an_update,
        arguments.seconds_an_image,
        arguments.seconds_a_whole_image,
        arguments.least_seconds,
    )
    num_patches = (arguments.image_size // arguments.patch_size) ** 2
    print(
        "| GPUs | images in an update | s an update | own | whole batch | exchange | images/s | MB sent by a GPU |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number in arguments.ranks:
        batch = arguments.batch_size or 256 * number
        exchanges = exchanges_of_an_update(arguments.parameters, arguments.image_size**2, num_patches, batch)
        by_gloo = [exchange for exchange in exchanges if exchange[0] == "broadcast" or exchange[1] == 1]
        by_link = [exchange for exchange in exchanges if exchange not in by_gloo]
        nothing = Work(0.0, 0.0, 0.0)
        exchanged = predicted(nothing, link, by_link, batch, number) + predicted(
            nothing, memory, by_gloo, batch, number
        )
        computed, whole = found.seconds(batch, number), found.whole * batch
        seconds = computed + exchanged
        print(
            f"| {number} | {batch:,} | {seconds:.3f} | {computed - whole:.3f} | {whole:.3f} | {exchanged:.3f} "
            f"| {batch / seconds:,.0f} | {sent(exchanges, number) / 1e6:,.0f} |"
        )


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.worker is not None:
        work(arguments)
    elif arguments.bandwidth is not None:
        predict(arguments)
    else:
        torch.set_num_threads(1)
        rows = [row for number in arguments.ranks for row in rows_of(number, arguments.quick)]
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            origin = {
                "command": " ".join(sys.argv),
                "commit": commit(),
                "hardware": hardware(torch.device("cpu")),
            }
            with arguments.out.open("a") as file:
                file.writelines(json.dumps(row | origin) + "\n" for row in rows)
        compare(rows, os.cpu_count() or 1)


if __name__ == "__main__":
    main()

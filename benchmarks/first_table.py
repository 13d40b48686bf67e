"""The first table of docs/results.md: untrained, random mask and A3C, judged by the probe and by fine-tuning.

`python benchmarks/first_table.py --data hc18_128.npz` runs the programs of examples/ for every size, policy
and seed, one thread each, and prints the table. Finished parts are not run again.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from cells import interval, result, run


@dataclass(frozen=True)
class Arguments:
    """Pretrain, probe and fine-tune under one budget."""

    data: str = "hc18_128.npz"
    """What --data of the programs takes."""
    data_root: Path | None = None
    """Where it is looked up; the variable AHM_DATA does the same."""
    sizes: tuple[str, ...] = ("64/8", "128/16")
    """Image size / patch size."""
    policies: tuple[str, ...] = ("none", "random", "a3c")
    """What pretrains; none is the untrained encoder."""
    seeds: int = 3
    """Seeds 0, 1, ..."""
    steps: int = 2000
    """Updates of the autoencoder, 64 images each."""
    probe_labels: int = 20
    """Labelled images of the probe."""
    labels: int = 10
    """Labelled images of fine-tuning."""
    jobs: int = 2
    """Runs at a time, one thread each."""
    out: Path = Path("runs/first-table")
    """Where the runs are kept."""


@dataclass(frozen=True)
class Cell:
    size: str
    policy: str
    seed: int

    def folder(self, out: Path, part: str) -> Path:
        return out / f"{self.size.replace('/', '-')}-{self.policy}-{self.seed}-{part}"


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    cells = [
        Cell(*key) for key in itertools.product(arguments.sizes, arguments.policies, range(arguments.seeds))
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda cell: work(cell, arguments), sorted(cells, key=lambda cell: cell.seed)))
    for size in arguments.sizes:
        print(f"\n{arguments.data}, {size}, {arguments.steps} updates, seeds 0-{arguments.seeds - 1}")
        print_table([cell for cell in cells if cell.size == size], arguments)


def work(cell: Cell, arguments: Arguments) -> None:
    """Pretrains, probes and fine-tunes one cell; what is there already stays."""
    image_size, patch_size = cell.size.split("/")
    data = ["--data", arguments.data]
    if arguments.data_root is not None:
        data += ["--data-root", str(arguments.data_root)]
    shape = ["--image-size", image_size, "--patch-size", patch_size]
    seed = ["--seed", str(cell.seed)]
    encoder = cell.folder(arguments.out, "pretrain")
    if cell.policy != "none":
        options = [*data, *shape, *seed, "--policy", cell.policy, "--steps", str(arguments.steps)]
        run("pretrain.py", encoder, encoder / "checkpoint" / f"step-{arguments.steps}", options)
    for part, options in (
        ("probe", ["--probe", "--labels", str(arguments.probe_labels)]),
        ("segment", ["--labels", str(arguments.labels)]),
    ):
        folder = cell.folder(arguments.out, part)
        source = "none" if cell.policy == "none" else str(encoder)
        run(
            "segment.py",
            folder,
            folder / "results.json",
            [*data, *shape, *seed, "--encoder", source, *options],
        )


def print_table(cells: list[Cell], arguments: Arguments) -> None:
    values = {
        cell: (
            result(cell.folder(arguments.out, "probe"), "patch_dice"),
            result(cell.folder(arguments.out, "segment"), "dice"),
        )
        for cell in cells
    }
    print(f"| | probe, {arguments.probe_labels} labels | fine-tuned Dice, {arguments.labels} labels |")
    print("|---|---|---|")
    for policy in arguments.policies:
        columns = list(zip(*(values[cell] for cell in cells if cell.policy == policy), strict=True))
        shown = (f"{np.mean(column):.4f} ({', '.join(f'{v:.4f}' for v in column)})" for column in columns)
        print(f"| {policy} | {' | '.join(shown)} |")
    for policy, reference in itertools.combinations(reversed(arguments.policies), 2):
        pairs = [(cell, Cell(cell.size, reference, cell.seed)) for cell in cells if cell.policy == policy]
        shown = (interval([values[a][i] - values[b][i] for a, b in pairs]) for i in range(2))
        print(f"| {policy} - {reference} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()

"""How long several ranks take for an update: a model of what they compute and exchange, with a few constants.

`ranks.py` measures the constants, and checks the model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import nnls

Exchange = tuple[str, int]
"""The name of an exchange in torch.distributed, and the bytes of the whole tensor."""


@dataclass(frozen=True)
class Link:
    """What joins the ranks."""

    latency: float
    """Seconds of a message of no size."""
    bandwidth: float
    """Bytes that a rank sends in a second."""
    copying: float = 0.0
    """Seconds in which a rank copies a byte of the gradients into one tensor, divides it and copies it back."""

    def seconds(self, exchange: Exchange, num_ranks: int) -> float:
        """Seconds of an exchange: of a ring, or of a binary tree in which one rank sends to all."""
        messages, size = messages_of(exchange, num_ranks)
        copied = self.copying * exchange[1] if exchange[0] == "all_reduce" else 0.0
        return messages * (self.latency + size / self.bandwidth) + copied


def messages_of(exchange: Exchange, num_ranks: int) -> tuple[int, float]:
    """The messages that follow each other, and the bytes of each.

    In a ring a tensor has one part for each rank: parts are added up on one way round, and spread on another.
    """
    name, size = exchange
    if name == "broadcast":
        return math.ceil(math.log2(num_ranks)), size
    return (2 if name == "all_reduce" else 1) * (num_ranks - 1), size / num_ranks


def sent(exchanges: Sequence[Exchange], num_ranks: int) -> float:
    """Bytes that a rank sends in these exchanges, as the mean over the ranks."""
    ways = {"all_reduce": 2, "all_gather": 1, "broadcast": 1}
    return sum(ways[name] * (num_ranks - 1) / num_ranks * size for name, size in exchanges)


def exchanges_of_an_update(
    parameters: int, values: int, num_patches: int, batch: int, *, reward: str = "", features: int = 0
) -> list[Exchange]:
    """What the ranks exchange in an update of the autoencoder, by `ahm_gym.device.ranks`.

    Args:
        parameters: number of parameters of the autoencoder that are learned.
        values: number of values of an image: pixels times channels.
        num_patches: number of patches of an image.
        batch: number of images in the update, of all ranks together.
        reward: reward whose own passes are exchanged: progress or advantage; others have none.
        features: width of the features that hard_patches exchanges; 0 without it.
    """
    patches = 4 * num_patches * batch
    rewards: dict[str, list[Exchange]] = {
        "progress": [("all_gather", 4 * num_patches * math.ceil(batch / 2))],
        "advantage": [("all_gather", 2 * patches)],
    }
    return [
        ("all_gather", 4 * values * batch),  # images
        ("broadcast", patches),  # scores
        ("broadcast", patches),  # weights
        ("all_gather", 2 * patches),  # losses and weights of the patches
        ("all_reduce", 4 * parameters),  # gradients
        ("all_reduce", 1),  # whether to stop
        *rewards.get(reward, []),
        *([("all_gather", patches * features)] if features else []),
    ]


@dataclass(frozen=True)
class Work:
    """Seconds that a rank computes."""

    update: float
    """In every update, such as those of the optimiser."""
    own: float
    """For each image of its own."""
    whole: float
    """For each image of the whole batch."""
    least: float = 0.0
    """Least seconds of the passes of its own images."""

    def seconds(self, batch: int, num_ranks: int) -> float:
        """Seconds of an update of `batch` images, without what is exchanged."""
        return max(self.least, self.update + self.own * batch / num_ranks) + self.whole * batch


def predicted(
    work: Work,
    link: Link,
    exchanges: Sequence[Exchange],
    batch: int,
    num_ranks: int,
    cores: float = math.inf,
) -> float:
    """Seconds of an update; ranks that share a core take turns."""
    exchanged = sum(link.seconds(exchange, num_ranks) for exchange in exchanges) if num_ranks > 1 else 0.0
    return max(1.0, num_ranks / cores) * (work.seconds(batch, num_ranks) + exchanged)


def fitted(
    rows: Sequence[dict[str, Any]], exchanges: Sequence[list[Exchange]], link: Link, cores: float, key: str
) -> Work:
    """The work of a network that explains these rows best, whose seconds are at `key`; none of it is negative."""
    system, left = [], []
    for row, exchanged in zip(rows, exchanges, strict=True):
        turns = max(1.0, row["ranks"] / cores) / row[key]  # relative errors count
        system.append([turns, turns * row["batch"] / row["ranks"], turns * row["batch"]])
        waits = predicted(Work(0.0, 0.0, 0.0), link, exchanged, row["batch"], row["ranks"], cores)
        left.append(1.0 - waits / row[key])
    return Work(*map(float, nnls(np.array(system), np.array(left))[0]))


def link_of(sizes: Sequence[int], seconds: Sequence[float], num_ranks: int) -> Link:
    """The link that explains the seconds of two all-reduces, of few and of many bytes, and of a mean of gradients.

    The gradients have as many bytes as the second.
    """
    (messages, small), (_, large) = (messages_of(("all_reduce", size), num_ranks) for size in sizes)
    each = [second / messages for second in seconds[:2]]
    copying = max(seconds[2] - seconds[1], 0.0) / sizes[1]
    return Link(each[0], (large - small) / max(each[1] - each[0], 1e-9), copying)


@contextlib.contextmanager
def counted() -> Iterator[list[Exchange]]:
    """Inside, the list grows by every exchange of this rank."""
    found: list[Exchange] = []
    own = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast")}

    def counting(name: str) -> Callable[..., Any]:
        def call(first: Any, *arguments: Any) -> Any:
            tensors = [first] if isinstance(first, torch.Tensor) else first
            found.append((name, sum(tensor.nbytes for tensor in tensors)))
            return own[name](first, *arguments)

        return call

    for name in own:
        setattr(dist, name, counting(name))
    try:
        yield found
    finally:
        for name, function in own.items():
            setattr(dist, name, function)

"""Finds images that look nearly the same in different splits, by a 64-bit difference hash (dHash)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

MAX_DISTANCE: int = 2
"""Hashes that differ in more bits are of different images."""
MIN_DEVIATION: float = 0.03
"""Images of less contrast, once shrunk, are left out: they are nearly flat, and all look the same."""
MIN_BITS: int = 8
"""Images are left out, too, if fewer bits are set or unset, as where little stands out from a background."""
MIN_CORRELATION: float = 0.99
"""Of two shrunk images with nearly the same hash; images of different people of one view are less alike."""
SIDE: int = 24


class Twins:
    """Collects images one by one, and then compares those of different splits."""

    def __init__(self) -> None:
        self._hashes: list[int] = []
        self._thumbnails: list[UInt8[np.ndarray, "S S"]] = []

    def add(self, image: Float[Tensor, "C *S"]) -> None:
        """Adds an image in [0, 1], or of a volume the middle slice along its third axis."""
        if image.ndim == 4:
            image = image[..., image.shape[3] // 2]
        grey = np.ascontiguousarray(image.float().mean(dim=0).numpy())
        thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        self._thumbnails.append((255 * thumbnail.clip(0, 1)).round().astype(np.uint8))
        value = difference_hash(grey)
        few = min(value.bit_count(), 64 - value.bit_count()) < MIN_BITS
        self._hashes.append(-1 if few or thumbnail.std() < MIN_DEVIATION else value)

    def pairs(self, splits: Sequence[str], volumes: Sequence[str | None]) -> list[tuple[int, int]]:
        """Indices of each image that is nearly the same as one of an earlier split, and of the first such image.

        Images of one volume are not compared. The order of the splits is that in which they first occur.

        Args:
            splits: the split of each image.
            volumes: the volume of each image.
        """
        order = list(dict.fromkeys(splits))
        found = []
        for position, split in enumerate(order[1:], start=1):
            earlier = [i for i, own in enumerate(splits) if own in order[:position] and self._hashes[i] >= 0]
            later = [i for i, own in enumerate(splits) if own == split and self._hashes[i] >= 0]
            found += self._match(later, earlier, volumes)
        return found

    def _match(
        self, later: list[int], earlier: list[int], volumes: Sequence[str | None]
    ) -> list[tuple[int, int]]:
        """The first alike image of `earlier` for each image of `later` that has one."""
        by_hash: dict[int, list[int]] = {}
        for index in earlier:
            by_hash.setdefault(self._hashes[index], []).append(index)
        known = np.array(sorted(by_hash), dtype=np.uint64)
        asked = np.array(sorted({self._hashes[index] for index in later}), dtype=np.uint64)
        near = near_hashes(asked, known)
        pairs = []
        for index in later:
            others = [other for value in near.get(self._hashes[index], ()) for other in by_hash[value]]
            others = [o for o in others if volumes[index] is None or volumes[o] != volumes[index]]
            twin = next((other for other in others if self._alike(index, other)), None)
            if twin is not None:
                pairs.append((index, twin))
        return pairs

    def _alike(self, one: int, other: int) -> bool:
        """Whether two shrunk images are correlated."""
        values = (self._thumbnails[index].ravel().astype(np.float64) for index in (one, other))
        first, second = (value - value.mean() for value in values)
        return float(first @ second) >= MIN_CORRELATION * float(np.sqrt((first @ first) * (second @ second)))


def difference_hash(grey: Float[np.ndarray, "H W"]) -> int:
    """64 bits: whether each of 8 by 8 pixels of the shrunk image is darker than its neighbour to the right (dHash)."""
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, :-1] < small[:, 1:]).tobytes(), "big")


def near_hashes(asked: np.ndarray, known: np.ndarray) -> dict[int, list[int]]:
    """For each of the asked hashes, the known ones that differ in at most `MAX_DISTANCE` bits; both are sorted.

    All differences are tried, which takes 10 seconds for 30,000 hashes among 100,000, however they are distributed.
    """
    near: dict[int, list[int]] = {}
    if not len(asked) or not len(known):
        return near
    for distance in range(MAX_DISTANCE + 1):
        for bits in combinations(range(64), distance):
            flipped = asked ^ np.uint64(sum(1 << bit for bit in bits))
            places = np.searchsorted(known, flipped).clip(max=len(known) - 1)
            for at in np.flatnonzero(known[places] == flipped):
                near.setdefault(int(asked[at]), []).append(int(flipped[at]))
    return near

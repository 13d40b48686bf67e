"""Volumes that are too small for a window, and logits that are too large for the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ahm_gym.model.decoders import resize

PART_VALUES: int = 2**24
"""Largest number of logits of a volume at its own resolution that are in memory at once."""


def padded_to(
    volumes: Float[Tensor, "B C *S"], size: tuple[int, ...]
) -> tuple[Float[Tensor, "B C *S2"], tuple[slice, ...]]:
    """Volumes that are nowhere shorter than `size`, and where in them the given ones are: in the middle.

    What is added has the smallest value of each channel: it is black, as outside the volumes of training batches.
    """
    missing = [max(wanted - side, 0) for side, wanted in zip(volumes.shape[2:], size, strict=True)]
    if not any(missing):
        return volumes, (slice(None),) * len(missing)
    longer = [side + more for side, more in zip(volumes.shape[2:], missing, strict=True)]
    inside = tuple(
        slice(more // 2, more // 2 + side) for side, more in zip(volumes.shape[2:], missing, strict=True)
    )
    padded = volumes.flatten(2).amin(dim=2).view(*volumes.shape[:2], *[1] * len(size))
    padded = padded.expand(*volumes.shape[:2], *longer).clone()
    padded[(..., *inside)] = volumes
    return padded, inside


def resized_in_parts(
    logits: Float[Tensor, "B K *S"], size: tuple[int, ...]
) -> Iterator[Float[Tensor, "B K *part"]]:
    """Yields `resize` of the logits, of volumes in parts that follow each other along the first axis.

    A part has at most `PART_VALUES` values, or one plane, so that the logits of a large volume at its own resolution
    are never in memory as a whole.
    """
    stored = tuple(logits.shape[2:])
    if len(size) == 2:
        yield resize(logits, size)
        return
    planes = max(1, PART_VALUES // math.prod((*logits.shape[:2], *size[1:])))
    # Linear interpolation of three axes is that of one after the other; torch's convention is that of half pixels.
    places = ((torch.arange(size[0]) + 0.5) * stored[0] / size[0] - 0.5).clamp(0, stored[0] - 1)
    below = places.long()
    above = (below + 1).clamp(max=stored[0] - 1)
    for start in range(0, size[0], planes):
        chosen = slice(start, start + planes)
        share = (places - below)[chosen, None, None]
        part = torch.lerp(logits[:, :, below[chosen]], logits[:, :, above[chosen]], share)
        if stored[1:] != size[1:]:
            flat = functional.interpolate(part.flatten(0, 2)[:, None], size[1:], mode="bilinear")
            part = flat[:, 0].unflatten(0, part.shape[:3])
        yield part

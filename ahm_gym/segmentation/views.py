"""What a frozen encoder is shown of an image or a volume, and the classes of the pixels that it sees."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.data.ignored import areas
from ahm_gym.data.store import cover

NUM_IMAGES: int = 64
"""Number of images that are encoded at once."""
NUM_WINDOWS: int = 8
"""Number of windows of a volume that are encoded at once."""


def windows_over(size: tuple[int, ...], window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The first voxels of windows that lie side by side and cover a volume of `size`, which is in their middle."""
    axes = []
    for side, wanted in zip(size, window, strict=True):
        number = -(-side // wanted)
        first = -((number * wanted - side) // 2)
        axes.append(range(first, first + number * wanted, wanted))
    return list(itertools.product(*axes))


def patches_inside(size: tuple[int, ...], window: tuple[int, ...], patch_size: int) -> Bool[Tensor, "V L"]:
    """Which patches of the windows over a volume of `size` have their middle in it."""
    grid = torch.cartesian_prod(*(torch.arange(side // patch_size) for side in window))
    middles = (grid + 0.5) * patch_size + torch.tensor(windows_over(size, window))[:, None]
    return ((middles >= 0) & (middles < torch.tensor(size))).all(dim=2)


def seen(
    dataset: ImageDataset, indices: Sequence[int], size: tuple[int, ...]
) -> tuple[Float[Tensor, "V C *S"], list[int]]:
    """Normalised views of `size`, and how many there are of each image.

    An image is fitted to the size as a whole: one view. A volume is covered by windows at its own resolution.
    """
    if len(size) == 2:
        return dataset.resized(indices, size), [1] * len(indices)
    windows = {index: windows_over(dataset.size_of(index), size) for index in indices}
    crops = [dataset.crop(index, starts, size) for index in indices for starts in windows[index]]
    return dataset.normalise(torch.stack(crops)), [len(windows[index]) for index in indices]


def labels_seen(dataset: ImageDataset, index: int, size: tuple[int, ...]) -> list[Integer[Tensor, "*S0"]]:
    """The label of a labelled image for each of its views; what is outside a volume is ignored."""
    if len(size) == 3:
        windows = windows_over(dataset.size_of(index), size)
        return [dataset.label_crop(index, starts, size) for starts in windows]
    label = dataset.sample(index).label
    assert label is not None, "only labelled samples are chosen"
    return [label]


def fitted_areas(
    label: Integer[Tensor, "*S0"], num_classes: int, size: tuple[int, ...]
) -> Float[Tensor, "K1 *S"]:
    """The `areas` of a label of `labels_seen`, fitted to `size` as its view is."""
    known = areas(label, num_classes)
    return cover(known, size) if len(size) == 2 else known


def batches_of(indices: Sequence[int], size: tuple[int, ...]) -> list[Sequence[int]]:
    """The images in groups that are small enough for the memory: volumes one by one."""
    together = NUM_IMAGES if len(size) == 2 else 1
    return [indices[start : start + together] for start in range(0, len(indices), together)]


def parts_of(views: Float[Tensor, "V C *S"]) -> tuple[Float[Tensor, "_ C *S"], ...]:
    """The views in groups that an encoder takes at once."""
    return views.split(NUM_IMAGES if views.ndim == 4 else NUM_WINDOWS)

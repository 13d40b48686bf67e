"""Random crops of labelled volumes, some of them on a structure."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ahm_gym.data.ignored import in_structure
from ahm_gym.data.store import ImageDataset
from ahm_gym.data.stream import derive_seed

MAX_PLACES: int = 10_000
"""Largest number of voxels of each class of a volume that crops are put on, as in nnU-Net."""


class VolumeCrops:
    """Cuts crops of one size out of volumes, and flips each axis of half of them, by torch's global generator.

    Along an axis that is shorter than the crop, the volume lies in the middle. What is outside has the value 0 in the
    image, and is ignored in the label.

    Args:
        dataset: dataset of volumes.
        size: length of each axis of the crops.
    """

    def __init__(self, dataset: ImageDataset, size: tuple[int, ...]) -> None:
        self.dataset: ImageDataset = dataset
        self.size: tuple[int, ...] = size
        self._places: dict[int, list[Int[Tensor, "n axes"]]] = {}

    def __call__(
        self, index: int, *, on_structure: bool
    ) -> tuple[Float[Tensor, "C *S"], Int[Tensor, "1 *S"]]:
        """A crop in [0, 1] and its label.

        Args:
            index: number of a labelled volume.
            on_structure: put the middle of the crop on a random voxel of a random class of the volume, if it has any.
                The crop still lies inside the volume.
        """
        starts = self._draw(index, on_structure)
        image, label = (
            self.dataset.crop(index, starts, self.size),
            self.dataset.label_crop(index, starts, self.size),
        )
        flipped = [
            axis for axis, drawn in enumerate(torch.rand(len(self.size)).tolist(), start=1) if drawn < 0.5
        ]
        return image.flip(flipped), label[None].long().flip(flipped)

    def _draw(self, index: int, on_structure: bool) -> tuple[int, ...]:
        whole = self.dataset.size_of(index)
        room = [side - wanted for side, wanted in zip(whole, self.size, strict=True)]
        starts = [int(torch.randint(max(free, 0) + 1, ())) for free in room]
        places = self.places(index) if on_structure else []
        if places:
            own = places[int(torch.randint(len(places), ()))]
            middle = own[int(torch.randint(len(own), ()))].tolist()
            wanted = (place - side // 2 for place, side in zip(middle, self.size, strict=True))
            starts = [min(max(start, 0), max(free, 0)) for start, free in zip(wanted, room, strict=True)]
        return tuple(start if free >= 0 else -(-free // 2) for start, free in zip(starts, room, strict=True))

    def places(self, index: int) -> list[Int[Tensor, "n axes"]]:
        """Voxels of each class in the label of a volume, on the grid of its image; at most `MAX_PLACES` of each."""
        if index not in self._places:
            label = self.dataset.label(index)
            assert label is not None, "only labelled volumes are chosen"
            shape = torch.tensor(label.shape)
            scale = torch.tensor(self.dataset.size_of(index)) / shape
            generator = torch.Generator().manual_seed(derive_seed(index))
            self._places[index] = []
            for value in label[in_structure(label)].unique().tolist():
                found = (label == value).nonzero()
                chosen = found[torch.randperm(len(found), generator=generator)[:MAX_PLACES]]
                self._places[index].append(((chosen + 0.5) * scale).long())
        return self._places[index]

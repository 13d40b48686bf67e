"""Chooses the labelled images for training, and yields batches of them."""

from __future__ import annotations

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from ahm_gym.data.augmentation import Augmentation
from ahm_gym.data.draws import choose_patients, labelled_patients, permuted
from ahm_gym.data.store import ImageDataset, working_size
from ahm_gym.data.stream import derive_seed, epoch_order
from ahm_gym.data.volume_crops import VolumeCrops
from ahm_gym.errors import InputError

CROP_SCALE: tuple[float, float] = (0.5, 1.0)
"""Range of the area of a random crop, as a share of the area that the segmenter covers at once."""
CROP_ASPECT: tuple[float, float] = (3 / 4, 4 / 3)
"""Range of the aspect ratio of a random crop, relative to that of the training size."""
FOREGROUND_EVERY: int = 3
"""One of this many crops of volumes has a voxel of a structure in its middle."""


def choose_labelled(
    dataset: ImageDataset,
    labels: int | None,
    seed: int,
    patients: int | None = None,
    *,
    setting: str = "labels",
) -> list[int]:
    """Indices of `labels` labelled training images, of all of that many patients, or of all if both are None.

    Images are the first of a permutation that depends on the seed alone. So encoders are compared on the same images,
    and a smaller choice is part of a larger one. Patients are chosen by `choose_patients`. `setting` is the name of the
    number of images in an error.

    Raises:
        InputError: if there are fewer labelled images or patients.
    """
    if patients is not None:
        images = labelled_patients(dataset)
        return [index for patient in choose_patients(dataset, patients, seed) for index in images[patient]]
    available = dataset.indices("train", labelled=True)
    if labels is None:
        labels = len(available)
    if not 1 <= labels <= len(available):
        raise InputError(
            f"`{setting}={labels}` is out of range: {dataset.name} has {len(available)} labelled training "
            "images; choose a number from 1 to that, or leave it out."
        )
    return permuted(available, seed)[:labels]


class LabelledBatches:
    """Training batches, cropped and flipped at random; each is a pure function of the seed and its number.

    Every image is used once before any is used again. There may be fewer images than the batch size. Crops of images
    differ in scale and aspect. Those of volumes are cut out as they are; every third one has a voxel of a structure in
    its middle, as in nnU-Net.

    Args:
        dataset: dataset of the images.
        indices: indices of the labelled images to train with.
        batch_size: number of images in a batch.
        image_size: length of each axis of the crops; three for volumes.
        seed: seed of the order, the crops and the flips.
        native_resolution: crop from the image at its full resolution, instead of from the image shrunk until it
            just covers `image_size`. Volumes are always at their full resolution.
        augmentation: one of `AUGMENTATIONS`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        indices: list[int],
        *,
        batch_size: int,
        image_size: tuple[int, ...],
        seed: int,
        native_resolution: bool = False,
        augmentation: str = "light",
    ) -> None:
        self.dataset: ImageDataset = dataset
        self.indices: list[int] = indices
        self.batch_size: int = batch_size
        self.image_size: tuple[int, ...] = image_size
        self.seed: int = seed
        self.native_resolution: bool = native_resolution
        self.augmentation: Augmentation = Augmentation(augmentation, len(image_size))
        self._volumes: VolumeCrops | None = VolumeCrops(dataset, image_size) if len(image_size) == 3 else None

    def __getitem__(self, number: int) -> tuple[Float[Tensor, "B C *S"], Int[Tensor, "B 1 *S"]]:
        """The normalised images and the labels of a batch, counted from 0."""
        size = len(self.indices)
        first = number * self.batch_size
        places = [
            epoch_order(self.seed, at // size, size)[at % size]
            for at in range(first, first + self.batch_size)
        ]
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPUs, and their state is not restored here.
            torch.default_generator.manual_seed(derive_seed(self.seed, 3, number))
            pairs = [self._crop(self.indices[place], at) for at, place in enumerate(places, start=first)]
        images, labels = zip(*pairs, strict=True)
        images = self.dataset.normalise(torch.stack(images))
        seeds = [derive_seed(self.seed, 5, at) for at in range(first, first + self.batch_size)]
        changed = [self.augmentation(*pair) for pair in zip(images, labels, seeds, strict=True)]
        images, labels = zip(*changed, strict=True)
        return torch.stack(images), torch.stack(labels)

    def _crop(self, index: int, number: int) -> tuple[Float[Tensor, "C *S"], Int[Tensor, "1 *S"]]:
        """The crop of this number, counted over all batches from 0, from torch's global generator."""
        if self._volumes is not None:
            return self._volumes(index, on_structure=number % FOREGROUND_EVERY == FOREGROUND_EVERY - 1)
        sample = self.dataset.sample(index)
        size = (sample.image.shape[1], sample.image.shape[2])
        assert sample.label is not None, "only labelled samples are chosen"
        label = functional.interpolate(sample.label[None, None].float(), size, mode="nearest-exact")[0].long()
        worked = working_size(size, self.image_size, self.native_resolution)
        share = self.image_size[0] * self.image_size[1] / (worked[0] * worked[1])
        aspect = self.image_size[1] / self.image_size[0]
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    list(self.image_size),
                    scale=(CROP_SCALE[0] * share, CROP_SCALE[1] * share),
                    ratio=(aspect * CROP_ASPECT[0], aspect * CROP_ASPECT[1]),
                    antialias=True,
                ),
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
            ]
        )
        image, mask = transform(tv_tensors.Image(sample.image), tv_tensors.Mask(label))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)

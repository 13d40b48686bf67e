"""Labelled images: which ones are used for training, and batches of them."""

from __future__ import annotations

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from ahm_gym.data import ImageDataset
from ahm_gym.data.stream import derive_seed, epoch_order
from ahm_gym.errors import InputError
from ahm_gym.segmentation.segmenter import working_size

CROP_SCALE = (0.5, 1.0)
"""Share of the area that the segmenter sees at once which a random crop covers."""
CROP_ASPECT = (3 / 4, 4 / 3)
"""Range of the factor by which a random crop's aspect differs from the training size's."""


def choose_labelled(dataset: ImageDataset, labels: int | None, seed: int) -> list[int]:
    """Indices of `labels` labelled training images (None: of all), the first of the seed's permutation.

    The choice depends on nothing else, so encoders are compared on the same images, and a smaller choice is part of
    a larger one.

    Raises:
        InputError: if there are fewer.
    """
    available = dataset.indices("train", labelled=True)
    if labels is None:
        labels = len(available)
    if not 1 <= labels <= len(available):
        raise InputError(
            f"`labels={labels}` is out of range: {dataset.name} has {len(available)} labelled training "
            "images, choose from 1 to that, or leave it out for all."
        )
    order = torch.randperm(len(available), generator=torch.Generator().manual_seed(derive_seed(seed, 2)))
    return [available[place] for place in order[:labels].tolist()]


class LabelledBatches:
    """Training batches by their number, cropped and flipped at random, each a pure function of the seed.

    Every image is shown once before one is shown again; fewer images than the batch size are fine.

    Args:
        dataset: that has the images.
        indices: the labelled images to train with.
        batch_size: images in a batch.
        image_size: rows and columns of the crops.
        seed: of the order, the crops and the flips.
        native_resolution: crop windows of about `image_size` out of the image as it is, instead of
            out of the image shrunk to cover `image_size`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        indices: list[int],
        *,
        batch_size: int,
        image_size: tuple[int, int],
        seed: int,
        native_resolution: bool = False,
    ) -> None:
        self.dataset = dataset
        self.indices = indices
        self.batch_size = batch_size
        self.image_size = image_size
        self.seed = seed
        self.native_resolution = native_resolution

    def __getitem__(self, number: int) -> tuple[Float[Tensor, "B C H W"], Int[Tensor, "B 1 H W"]]:
        size = len(self.indices)
        first = number * self.batch_size
        places = [
            epoch_order(self.seed, at // size, size)[at % size]
            for at in range(first, first + self.batch_size)
        ]
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the accelerators, whose state is not forked here.
            torch.default_generator.manual_seed(derive_seed(self.seed, 3, number))
            pairs = [self._crop(self.indices[place]) for place in places]
        images, labels = zip(*pairs, strict=True)
        return self.dataset.normalise(torch.stack(images)), torch.stack(labels)

    def _crop(self, index: int) -> tuple[Float[Tensor, "C H W"], Int[Tensor, "1 H W"]]:
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

"""The joint task: segmentation of a few labelled images, learned together with the reconstruction."""

from __future__ import annotations

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ahm_gym.data.labelled import LabelledBatches, choose_labelled
from ahm_gym.data.sources import check_labels
from ahm_gym.data.store import ImageDataset
from ahm_gym.data.stream import derive_seed
from ahm_gym.device.transfers import to_device
from ahm_gym.errors import InputError, check_numbers
from ahm_gym.model.decoders import SegmentationLoss, build_decoder
from ahm_gym.model.encoder_base import as_encoder

MAX_BATCH_SIZE: int = 8
"""Most labelled images in an update: the batch size of fine-tuning."""


class JointTask(nn.Module):
    """Segments labelled images from the features of the encoder, in every update of the autoencoder.

    The encoder sees the whole image, without a mask, and a head on its features predicts the class of every pixel. The
    loss is that of fine-tuning, times `weight`; the pretrainer adds it to that of the reconstruction and clips the
    gradient of the sum. Masks, patch losses and rewards are not affected, so it is the same under every mask.

    The head of a U-Net is a convolution of one pixel on the feature map of its decoder, and that of a vision
    transformer is a `PlainDecoder`, which has no path from the pixels. The head is part of a checkpoint, but it is not
    exported: fine-tuning starts with a new one.

    Args:
        head: module that takes images and feature maps, and returns class logits.
        batches: the labelled images; update number n, counted from 0, learns from batch n.
        weight: factor of the loss.

    Raises:
        InputError: if the weight is not positive and finite.
    """

    def __init__(self, head: nn.Module, batches: LabelledBatches, *, weight: float = 1.0) -> None:
        super().__init__()
        check_numbers("size", joint_weight=weight)
        self.head: nn.Module = head
        self.batches: LabelledBatches = batches
        self.weight: float = weight
        self.loss: SegmentationLoss = SegmentationLoss()

    def labelled(self, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The labelled images of update `number` and their labels, on the device, without waiting for it."""
        images, labels = self.batches[number]
        return to_device(images, device), to_device(labels, device)

    def forward(
        self, encoder: nn.Module, images: Float[Tensor, "B C *S"], labels: Int[Tensor, "B 1 *S"]
    ) -> Float[Tensor, ""]:
        """The loss of the segmentation by this encoder, without the weight; works on the device alone."""
        logits = self.head(images, as_encoder(encoder).feature_maps(images))
        return self.loss(logits.float(), labels)


def build_joint_task(
    dataset: ImageDataset, encoder: nn.Module, *, labels: int, batch_size: int, seed: int, weight: float = 1.0
) -> JointTask:
    """A joint task with a newly initialised head; the global generator is not changed.

    Args:
        dataset: dataset with labels.
        encoder: encoder of the autoencoder.
        labels: number of labelled training images: those that fine-tuning uses with as many labels and this seed.
        batch_size: number of images in an update of the autoencoder; at most `MAX_BATCH_SIZE` labelled ones join them.
        seed: seed of the choice, the order and the crops of the images, and of the head. Order, crops and head are not
            those of fine-tuning.
        weight: factor of the loss.

    Raises:
        InputError: if the dataset has too few labels or only background, or the weight is not positive and finite.
    """
    try:
        check_labels(dataset)
    except InputError as error:
        raise InputError(f"{error} Or leave `joint_labels` out.") from error
    described = as_encoder(encoder)
    batches = LabelledBatches(
        dataset,
        choose_labelled(dataset, labels, seed, setting="joint_labels"),
        batch_size=min(batch_size, MAX_BATCH_SIZE),
        image_size=described.image_size,
        seed=derive_seed(seed, 6),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, 7))
        decoder = (
            "unetr" if described.has_decoder else "plain"
        )  # with a decoder of its own, either is only a head
        head = build_decoder(decoder, described, dataset.num_classes)
    return JointTask(head, batches, weight=weight)

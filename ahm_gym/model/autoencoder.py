"""The base class of autoencoders: embeddings of patches, and reconstructions with one loss per patch."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ahm_gym.device.compiling import Compiled
from ahm_gym.device.transfers import to_device
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks, as_masks
from ahm_gym.model.latent import PIXEL_WEIGHT, LatentTask
from ahm_gym.model.patches import grid_of, patchify, unpatchify
from ahm_gym.model.targets import Target, make_target


class Reconstruction(NamedTuple):
    """The result of a masked forward pass."""

    loss: Float[Tensor, ""]
    """Mean of the patch losses, weighted by the weights of the masks; `backward()` starts here."""
    patch_loss: Float[Tensor, "B L"]
    """Mean squared error of every patch, regardless of its weight; meaningful only for masked patches. With
    `target=latent`, the error of the features plus half that of the pixels."""
    prediction: Float[Tensor, "B L T"]
    """What was predicted for each patch: its pixels, in the scale of the target, or the values of another target. With
    `target=latent`, its pixels."""


class Autoencoder(nn.Module):
    """Reconstructs the masked patches of images; the base class of `MaskedAutoencoder` and `ConvAutoencoder`.

    A subclass sets `encoder`, the network that is exported and fine-tuned, and implements `embed`,
    `embedding_state` and `fill_in`.

    Args:
        image_size: length of each axis in pixels: height and width, or depth, height and width.
        patch_size: side of a patch in pixels.
        channels: number of image channels.
        dim: width D of the embeddings that `embed` returns.
        target: what is predicted, one of `TARGETS`.

    Raises:
        InputError: if the patch size does not divide the image size, or the target is unknown.
    """

    encoder: Any
    embeds_pixels: bool = False
    """Whether `embed` returns the raw pixels of each patch, from which the image can be put together again."""
    records: bool = False
    """Whether `fill_in` never waits for the GPU, so that a `Replay` may record it."""
    compiled: bool = False
    """Whether `run` compiles `fill_in`, which takes up to a minute for each batch size."""
    can_compile: bool = True
    """Whether torch.compile knows all of its layers."""

    def __init__(
        self,
        *,
        image_size: tuple[int, ...],
        patch_size: int,
        channels: int,
        dim: int,
        target: str = "pixels",
    ) -> None:
        super().__init__()
        self.image_size: tuple[int, ...] = image_size
        self.patch_size: int = patch_size
        self.channels: int = channels
        self.dim: int = dim
        self.target: Target = make_target(target, channels, patch_size, len(image_size))
        self.latent: LatentTask | None = None
        """The second task of `target=latent`; the subclass sets it once its encoder is initialised."""
        self.grid: tuple[int, ...] = grid_of(image_size, patch_size)
        self.num_patches: int = math.prod(self.grid)

    @property
    def target_size(self) -> int:
        """Number of values that are predicted for each patch, without the features of `target=latent`."""
        return (self.patch_size // self.target.cell) ** len(self.grid) * self.target.channels

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass: bfloat16 on a GPU."""
        # On a CPU bfloat16 products are far slower than float32 ones.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def embed(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """One embedding a patch: what an agent observes."""
        raise NotImplementedError

    def embedding_state(self) -> dict[str, Tensor]:
        """The weights that `embed` uses, under their names in `state_dict()`."""
        raise NotImplementedError

    def forward(self, images: Float[Tensor, "B C *S"], masks: Masks | Bool[Tensor, "B L"]) -> Reconstruction:
        """Reconstructs images from their visible patches.

        Args:
            images: normalised images of size `image_size`.
            masks: masks, or a plain mask (True = masked) in which every masked patch has weight 1. If they are in
                main memory, the call does not wait for the GPU.
        """
        return self.fill_in(images, *self.mask_inputs(as_masks(masks)))

    def mask_inputs(self, masks: Masks) -> tuple[Tensor, ...]:
        """The tensors that `fill_in` needs of the masks, on the autoencoder's device: here the mask and the weights.

        Each has a row for every image, and the weights come last.
        """
        return to_device(masks.masked, self.device), to_device(masks.weight, self.device)

    def fill_in(self, images: Float[Tensor, "B C *S"], *mask_inputs: Tensor) -> Reconstruction:
        """Reconstructs images, given the tensors that `mask_inputs` returned; works on the device alone."""
        raise NotImplementedError

    def run(self, images: Float[Tensor, "B C *S"], *mask_inputs: Tensor) -> Reconstruction:
        """The same as `fill_in`, and compiled if `compiled` is set.

        Raises:
            RunError: if it cannot be compiled here.
        """
        if not self.compiled:
            return self.fill_in(images, *mask_inputs)
        return Reconstruction(*compiled_fill_in()(self, images, *mask_inputs))

    def compare(
        self,
        prediction: Float[Tensor, "B L T"],
        images: Float[Tensor, "B C *S"],
        patches: Float[Tensor, "B L P"],
        weight: Float[Tensor, "B L"],
        features: Float[Tensor, "B L D"] | None = None,
    ) -> Reconstruction:
        """The losses of a prediction for these images and their patches.

        Args:
            prediction: what is predicted for each patch.
            images: the images.
            patches: their patches.
            weight: how much each patch counts.
            features: with `target=latent`, the predicted features of each patch.
        """
        patch_loss = (prediction.float() - self.target.of(images, patches)).square().mean(dim=-1)
        if self.latent is not None:
            assert features is not None, "the subclass predicts them"
            error = (features.float() - self.latent.target(images)).square().mean(dim=-1)
            patch_loss = error + PIXEL_WEIGHT * patch_loss
        return Reconstruction((patch_loss * weight).sum() / weight.sum(), patch_loss, prediction)

    def frozen_copy(self) -> Autoencoder:
        """A copy that is not trained, and which shares the teacher of `target=latent`: its targets are the same."""
        shared = {} if self.latent is None else {id(self.latent.teacher): self.latent.teacher}
        return copy.deepcopy(self, shared).requires_grad_(False)

    def reconstruct(
        self, images: Float[Tensor, "B C *S"], mask: Bool[Tensor, "B L"], prediction: Float[Tensor, "B L T"]
    ) -> Float[Tensor, "B C *S"]:
        """The images with their masked patches replaced by the predicted ones, in the scale of the images.

        With a target that has no pixels, they are replaced by the mean of the images.
        """
        patches = patchify(images, self.patch_size)
        filled = self.target.to_pixels(prediction.float(), patches)
        return unpatchify(torch.where(mask[..., None], filled, patches), self.grid, self.patch_size)

    def _checked(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
        expected = (self.channels, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise InputError(
                f"images with channels and sizes {tuple(images.shape[1:])} do not fit this autoencoder, built for "
                f"{expected}: resize the images, or build it with their channels and image_size."
            )
        return images


@functools.cache
def compiled_fill_in() -> Compiled:
    """`fill_in` as a compiled function of the autoencoder and its arguments, for all autoencoders of this process."""
    return Compiled(lambda autoencoder, *inputs: tuple(autoencoder.fill_in(*inputs)))

"""What every autoencoder offers: observations of patches, and reconstructions with one loss a patch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ahm_gym.device.transfers import to_device
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks, as_masks
from ahm_gym.model.patches import grid_of, patchify, unpatchify
from ahm_gym.model.targets import PixelTarget


class Reconstruction(NamedTuple):
    """What one masked forward pass gives back."""

    loss: Float[Tensor, ""]
    """Mean of the patch losses, weighted by the masks' weights; `backward()` starts here."""
    patch_loss: Float[Tensor, "B L"]
    """Mean squared error of every patch, whatever its weight; meaningful where it is masked."""
    prediction: Float[Tensor, "B L P"]
    """Predicted patches, in the target's scale."""


class Autoencoder(nn.Module):
    """Reconstructs masked patches of images: the base of the vision transformer's and of the U-Net's.

    A subclass sets `encoder`, what is exported and fine-tuned, and has `embed` and `fill_in`.

    Args:
        image_size: height and width in pixels.
        patch_size: side of a patch in pixels.
        channels: of the images.
        dim: width D of what `embed` gives for a patch.
        normalise_target: predict patches with zero mean and unit variance instead of raw pixels.

    Raises:
        InputError: where the patch size does not divide the image size.
    """

    encoder: Any
    embeds_pixels = False
    """Whether `embed` gives the raw pixels of each patch, so that the image can be put together again."""
    records = False
    """Whether `fill_in` never waits for a GPU, so that a `Replay` may record it."""

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: int,
        channels: int,
        dim: int,
        normalise_target: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.channels = channels
        self.dim = dim
        self.target = PixelTarget(normalise_target)
        self.grid = grid_of(image_size, patch_size)
        self.num_patches = self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass: bfloat16 on a GPU."""
        # On a CPU bfloat16 products are far slower than float32 ones.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def embed(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """What an agent observes of every patch."""
        raise NotImplementedError

    def embedding_state(self) -> dict[str, Tensor]:
        """The weights that `embed` uses, by their names in `state_dict()`."""
        raise NotImplementedError

    def forward(self, images: Float[Tensor, "B C H W"], masks: Masks | Bool[Tensor, "B L"]) -> Reconstruction:
        """The reconstruction of normalised images from their visible patches.

        Args:
            images: of `image_size`.
            masks: or a plain mask (True = masked), in which every masked patch counts 1. In main memory, while
                the autoencoder is on a GPU, nothing waits for the GPU.
        """
        return self.fill_in(images, *self.places(as_masks(masks)))

    def places(self, masks: Masks) -> tuple[Tensor, ...]:
        """What `fill_in` needs of the masks, on the autoencoder's device: here the mask and the weights."""
        return to_device(masks.masked, self.device), to_device(masks.weight, self.device)

    def fill_in(self, images: Float[Tensor, "B C H W"], *places: Tensor) -> Reconstruction:
        """The reconstruction by what `places` made of the masks: work of the device alone."""
        raise NotImplementedError

    def compare(
        self,
        prediction: Float[Tensor, "B L P"],
        patches: Float[Tensor, "B L P"],
        weight: Float[Tensor, "B L"],
    ) -> Reconstruction:
        """The losses of a prediction of these patches; `weight` says how much each counts in the mean."""
        patch_loss = (prediction.float() - self.target.of(patches)).square().mean(dim=-1)
        return Reconstruction((patch_loss * weight).sum() / weight.sum(), patch_loss, prediction)

    def reconstruct(
        self, images: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B L"], prediction: Float[Tensor, "B L P"]
    ) -> Float[Tensor, "B C H W"]:
        """Images whose masked patches are the predicted ones, in the scale of the images."""
        patches = patchify(images, self.patch_size)
        filled = self.target.to_pixels(prediction.float(), patches)
        return unpatchify(torch.where(mask[..., None], filled, patches), self.grid, self.patch_size)

    def _checked(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        expected = (self.channels, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise InputError(
                f"images of shape (C, H, W) = {tuple(images.shape[1:])} do not fit this autoencoder: it was built "
                f"for {expected}; build it with that channels and image_size, or resize the images."
            )
        return images

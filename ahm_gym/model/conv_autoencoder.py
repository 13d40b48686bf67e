"""The autoencoder of convolutional networks: three ways to hide patches from a U-Net."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ahm_gym.errors import unknown_name
from ahm_gym.model.autoencoder import Autoencoder, Reconstruction
from ahm_gym.model.conv_network import LAYERS, ConvNetwork
from ahm_gym.model.latent import LatentTask
from ahm_gym.model.patches import patchify, unpatchify

HIDING: tuple[str, ...] = ("zero", "token", "masked")
"""zero: hidden patches are 0, the mean of normalised images. token: they show a learned patch. masked: the layers of
the encoder skip them, and its maps show a learned value there."""


class ConvAutoencoder(Autoencoder):
    """Predicts every pixel of masked patches with a U-Net, of which encoder and decoder are both pretrained.

    With hiding `zero`, and `UNet`, this is the reconstructor of AHM (Xu, Liu, Xu, Lukasiewicz, IEEE TMI 2025);
    `masked` follows SparK (Tian et al., ICLR 2023). In all three no hidden pixel is read. An agent observes the raw
    pixels of each patch; `unpatchify` puts the image together again.

    Args:
        network: U-Net without a head.
        hiding: one of `HIDING`.
        target: what is predicted, one of `TARGETS`.

    Raises:
        InputError: if `hiding` is unknown.
    """

    embeds_pixels: bool = True
    records: bool = True

    def __init__(self, network: ConvNetwork, *, hiding: str = "zero", target: str = "pixels") -> None:
        if hiding not in HIDING:
            raise unknown_name("hiding", hiding, HIDING)
        super().__init__(
            image_size=network.image_size,
            patch_size=network.patch_size,
            channels=network.channels,
            dim=network.channels * network.patch_size ** len(network.image_size),
            target=target,
        )
        self.hiding: str = hiding
        self.encoder: ConvNetwork = network
        self.can_compile: bool = network.can_compile
        cell = self.target.cell
        conv = LAYERS[len(self.grid)].conv
        self.head: nn.Conv2d | nn.Conv3d = conv(network.width, self.target.channels, cell, cell)
        shapes = {"zero": [], "token": [self.dim], "masked": network.map_widths}[hiding]
        self.tokens: nn.ParameterList = nn.ParameterList(0.02 * torch.randn(width) for width in shapes)
        if target == "latent":
            side = network.patch_size
            self.latent: LatentTask | None = LatentTask(
                network, conv(network.width, network.width, side, side)
            )

    def embed(self, images: Float[Tensor, "B C *S"]) -> Float[Tensor, "B L D"]:
        """The pixels of each patch, in the order of `patchify`."""
        return patchify(self._checked(images), self.patch_size)

    def embedding_state(self) -> dict[str, Tensor]:
        """Empty, because the pixels do not depend on weights."""
        return {}

    def fill_in(self, images: Float[Tensor, "B C *S"], *mask_inputs: Tensor) -> Reconstruction:
        mask, weight = mask_inputs
        patches = patchify(self._checked(images), self.patch_size)
        hidden = mask[..., None]
        if self.hiding == "token":
            shown = torch.where(hidden, self.tokens[0].to(patches.dtype), patches)
        else:
            shown = patches.masked_fill(hidden, 0.0)
        visible = unpatchify(shown, self.grid, self.patch_size)
        features = (
            self._encode_masked(visible, mask) if self.hiding == "masked" else self.encoder.encode(visible)
        )
        decoded = self.encoder.decode(features)
        filled = cast(Tensor, self.head(decoded))  # a position a cell of the target
        prediction = patchify(filled, self.patch_size // self.target.cell)
        predicted = None if self.latent is None else self.latent.head(decoded).flatten(2).transpose(1, 2)
        return self.compare(prediction, images, patches, weight, predicted)

    def _encode_masked(
        self, visible: Float[Tensor, "B C *S"], mask: Bool[Tensor, "B L"]
    ) -> list[Float[Tensor, "B _ *_"]]:
        """The maps of the visible patches, with the token of each resolution in hidden pixels."""
        pixels = (~mask).float().unflatten(1, self.grid)[:, None]  # B 1 *grid
        for axis in range(2, pixels.dim()):
            pixels = pixels.repeat_interleave(self.patch_size, axis)
        visibility = self.encoder.visibility
        with visibility.of(pixels):
            maps = self.encoder.encode(visible)
            filled = []
            for features, token in zip(maps, self.tokens, strict=True):
                there = visibility.at(tuple(features.shape[2:]))
                assert there is not None, "inside the context"
                shown = token.to(features.dtype).view(-1, *[1] * len(self.grid))
                filled.append(torch.where(there > 0, features, shown))
        return filled


def build_seeded(
    network: type[ConvNetwork],
    seed: int,
    *,
    hiding: str = "zero",
    target: str = "pixels",
    **sizes: Any,
) -> ConvAutoencoder:
    """An autoencoder with a newly initialised network; the global generator is not changed.

    Args:
        network: class of the network.
        seed: seed of the weights.
        hiding: as for `ConvAutoencoder`.
        target: as for `ConvAutoencoder`.
        sizes: keyword arguments of the network; by default it is for one channel of 64 by 64 pixels in patches of 8.
    """
    shape: dict[str, Any] = {"image_size": (64, 64), "patch_size": 8, "channels": 1} | sizes
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ConvAutoencoder(network(**shape), hiding=hiding, target=target)

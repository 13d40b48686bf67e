"""A plain implementation of "Masked Autoencoders Are Scalable Vision Learners" (He et al., CVPR 2022), for comparison.

It is written from the paper alone, with torch's own layers: embed every patch by a convolution, encode a random subset,
fill the gaps with mask tokens, decode all tokens, and regress the masked pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainMAE(nn.Module):
    """A masked autoencoder; `encoder` and `decoder` are width, number of blocks and number of heads."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        encoder: tuple[int, int, int],
        decoder: tuple[int, int, int],
    ) -> None:
        super().__init__()
        dim, decoder_dim = encoder[0], decoder[0]
        self.patch_size = patch_size
        self.num_patches = (image_size // patch_size) ** 2
        self.embed = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, self.num_patches + 1, dim), requires_grad=False)
        self.encoder = _blocks(*encoder)
        self.norm = nn.LayerNorm(dim)
        self.bridge = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        shape = (1, self.num_patches + 1, decoder_dim)
        self.decoder_position = nn.Parameter(0.02 * torch.randn(shape), requires_grad=False)
        self.decoder = _blocks(*decoder)
        self.decoder_norm = nn.LayerNorm(decoder_dim)
        self.predict = nn.Linear(decoder_dim, patch_size**2 * channels)

    def forward(self, images: Tensor, shuffle: Tensor, num_visible: int) -> Tensor:
        """The loss (scalar) with the first `num_visible` patches of each row of `shuffle` (B, L) visible."""
        batch = len(images)
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.position[:, 1:]  # B L D
        restore = shuffle.argsort(dim=1)
        kept = shuffle[:, :num_visible, None]
        visible = tokens.gather(1, kept.expand(-1, -1, tokens.shape[2]))
        first = (self.class_token + self.position[:, :1]).expand(batch, -1, -1)
        encoded = self.bridge(self.norm(self.encoder(torch.cat([first, visible], dim=1))))
        gaps = self.mask_token.expand(batch, self.num_patches - num_visible, -1)
        full = torch.cat([encoded[:, 1:], gaps], dim=1)
        full = full.gather(1, restore[..., None].expand(-1, -1, full.shape[2]))
        decoded = self.decoder(torch.cat([encoded[:, :1], full], dim=1) + self.decoder_position)
        prediction = self.predict(self.decoder_norm(decoded[:, 1:]))
        error = (prediction - self._patches(images)).square().mean(dim=2)
        masked = restore >= num_visible
        return (error * masked).sum() / masked.sum()

    def _patches(self, images: Tensor) -> Tensor:
        patches = images.unfold(2, self.patch_size, self.patch_size).unfold(
            3, self.patch_size, self.patch_size
        )
        return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def _blocks(dim: int, depth: int, heads: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

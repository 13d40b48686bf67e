"""The patch embedding of volumes, in the form in which timm's `VisionTransformer` takes one."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ahm_gym.model.patches import grid_of


class PatchEmbed3d(nn.Module):
    """Embeds the cubic patches of volumes by a convolution as large as a patch.

    Args:
        img_size: depth, height and width in voxels.
        patch_size: side of a patch in voxels, or three equal ones.
        in_chans: number of channels.
        embed_dim: width of an embedding.
        bias: whether the convolution has a bias.
        unused: what `VisionTransformer` also passes, and has no meaning here.
    """

    def __init__(
        self,
        img_size: tuple[int, int, int],
        patch_size: int | tuple[int, ...],
        in_chans: int,
        embed_dim: int,
        bias: bool = True,
        **unused: Any,
    ) -> None:
        super().__init__()
        side = patch_size if isinstance(patch_size, int) else patch_size[0]
        self.patch_size: tuple[int, ...] = (side, side, side)
        self.grid_size: tuple[int, ...] = grid_of(img_size, side)
        self.num_patches: int = math.prod(self.grid_size)
        self.proj: nn.Conv3d = nn.Conv3d(in_chans, embed_dim, side, stride=side, bias=bias)
        self.norm: nn.Module = nn.Identity()

    def forward(self, volumes: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B L E"]:
        return self.norm(self.proj(volumes).flatten(2).transpose(1, 2))

"""Masks made of rectangles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.masking.blocks import block_scores
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.policies.base import MaskPolicy


class BlockPolicy(MaskPolicy):
    """Random rectangles, one after another, until the mask ratio is reached: the mask of BEiT (Bao et al., ICLR 2022).

    A rectangle covers 8 to 40 % of the image, with an aspect ratio of 0.3 to 1 / 0.3. In a volume they are boxes.
    """

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return block_scores(len(patches.images), patches.grid, generator)

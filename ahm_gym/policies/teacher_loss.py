"""Masks from the losses of a teacher."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.device import ranks
from ahm_gym.device.transfers import to_device
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import Ramp, Share
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.moving_average import MovingAverage
from ahm_gym.policies.teacher import TaughtPolicy


class TeacherLossPolicy(TaughtPolicy):
    """Masks the patches that a slow average of the autoencoder reconstructs worst under a random mask.

    AnatoMask (Li et al., "AnatoMask: Enhancing Medical Image Segmentation with Reconstruction-guided
    Self-masking", ECCV 2024). The share of guided patches rises linearly from 0 to 0.5. Patches that are
    visible in the random mask have no loss and rank below all others, in random order. The paper's schedule
    never reaches them, and with a guided share of 1 the mask is the random mask.

    Unlike in the paper, the networks are those of this project, images are two-dimensional, the mask ratio is
    that of the run (0.6 in the paper), and the teacher's momentum warms up (see `MovingAverage`).
    """

    guided_fraction: Share = Ramp(first=0.0, last=0.5, start=0.0, end=1.0)

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.teacher: MovingAverage[Autoencoder] = MovingAverage(autoencoder)

    @torch.no_grad()
    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        model = self.teacher.network
        noise = random_scores((len(patches.images), model.num_patches), generator)
        masks = draw_masks(noise, model.grid, patches.num_masked, generator)

        def patch_loss(images: Tensor, masked: Tensor) -> Tensor:
            return model(images, Masks.of(masked)).patch_loss.float()

        with model.autocast():
            loss = ranks.mapped(patch_loss, patches.images, masks.masked)
        return loss.masked_fill(~to_device(masks.masked, loss.device), -1.0)

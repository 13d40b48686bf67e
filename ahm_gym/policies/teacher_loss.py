"""Masks by the losses of a teacher."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.device.transfers import to_device
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.schedules import Ramp
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.policies.teacher import TaughtPolicy, Teacher


class TeacherLossPolicy(TaughtPolicy):
    """Masks what a slow average of the autoencoder reconstructs worst under a random mask.

    AnatoMask (Li et al., "AnatoMask: Enhancing Medical Image Segmentation with Reconstruction-guided
    Self-masking", ECCV 2024). The share of guided patches ramps linearly from 0 to 0.5. Patches that the
    random mask shows have no loss and rank below all that it hides, in random order; the paper's
    schedule never reaches them, and a guided share of 1 masks exactly what the random mask hid.

    Other than in the paper the networks are those of this project, images are two-dimensional, the mask
    ratio is the run's (0.6 there), and the teacher's momentum warms up (see `Teacher`).
    """

    guided_fraction = Ramp(first=0.0, last=0.5, start=0.0, end=1.0)

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.teacher = Teacher(autoencoder)

    @torch.no_grad()
    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        model = self.teacher.network
        noise = random_scores((len(patches.images), model.num_patches), generator)
        masks = draw_masks(noise, model.grid, patches.num_masked, generator)
        with model.autocast():
            loss = model(patches.images, masks).patch_loss
        return loss.float().masked_fill(~to_device(masks.masked, loss.device), -1.0)

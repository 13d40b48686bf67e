"""Measures and draws the masks of the same few validation images throughout a run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ahm_gym.agents import Agent
from ahm_gym.data import ImageDataset
from ahm_gym.device import ranks
from ahm_gym.envs.rendering import render_panels
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.schedules import Share, share_at
from ahm_gym.masking.selection import PatchBatch, count_masked
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.pretraining.mask_quality import mask_quality

NUM_MEASURED: int = 64
"""Number of images whose masks are measured."""
NUM_SHOWN: int = 4
"""Number of them that are drawn."""


class Inspection:
    """Measures and draws the masks of validation images, or of training images if there are none.

    The mask ratio is always that of the end of the run, so that results from different steps can be compared.

    Args:
        dataset: dataset of the images.
        autoencoder: autoencoder to inspect, in its current state.
        agent: agent that scores the patches.
        mask_ratio: share of the patches to mask.
        guided_fraction: share of the masked patches that the scores choose; used in the pictures.
        spread_fraction: share of the images with spread masks; used in the pictures.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        autoencoder: Autoencoder,
        agent: Agent,
        *,
        mask_ratio: float,
        guided_fraction: Share,
        spread_fraction: Share,
    ) -> None:
        self.dataset: ImageDataset = dataset
        self.autoencoder: Autoencoder = autoencoder
        self.agent: Agent = agent
        self.guided_fraction: Share = guided_fraction
        self.spread_fraction: Share = spread_fraction
        self.num_masked: int = count_masked(autoencoder.num_patches, mask_ratio)
        indices = dataset.indices("val") or dataset.indices("train")
        places = np.linspace(0, len(indices) - 1, min(NUM_MEASURED, len(indices))).round().astype(int)
        images = dataset.resized([indices[place] for place in places], autoencoder.image_size)
        self.images: Tensor = images.to(autoencoder.device)

    def quality(self, progress: float) -> dict[str, float]:
        """How well the scores agree with the true patch loss, and the health of the masks; see `mask_quality`."""
        with ranks.alone():
            return mask_quality(self.agent.score, self.autoencoder, self.images, self.num_masked, progress)

    def panels(self, progress: float) -> np.ndarray:
        """Pictures (N, h, w, 3) of a few images with the masks of this progress of training, 0 to 1."""
        autoencoder = self.autoencoder.eval()
        images = self.images[:: max(1, len(self.images) // NUM_SHOWN)][:NUM_SHOWN]
        with torch.no_grad():
            embeddings = autoencoder.embed(images)
        ratio = self.num_masked / autoencoder.num_patches
        with ranks.alone():
            scores = self.agent.score(PatchBatch(images, embeddings, autoencoder.grid, progress, ratio))
        scores = scores.float().cpu()
        masks = draw_masks(
            scores,
            autoencoder.grid,
            self.num_masked,
            torch.Generator().manual_seed(0),
            guided_fraction=share_at(self.guided_fraction, progress, "guided fraction"),
            spread_fraction=share_at(self.spread_fraction, progress, "spread fraction"),
        )
        with torch.no_grad():
            prediction = autoencoder(images, masks).prediction
        filled = autoencoder.reconstruct(images, masks.masked.to(images.device), prediction)
        shown, reconstructed = (
            self.dataset.denormalise(pixels.cpu()).clamp(0, 1) for pixels in (images, filled)
        )
        rows = zip(shown, masks.masked, masks.guided, reconstructed, scores, strict=True)
        return np.stack([render_panels(*row, autoencoder.grid) for row in rows])

"""How good a mask policy is: its scores against the true patch loss, and the health of its masks."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from ahm_gym.difficulty import local_variance, true_patch_loss
from ahm_gym.masking import PatchBatch, select_patches
from ahm_gym.patches import patchify
from ahm_gym.reconstruction import Autoencoder


def rank_correlation(scores: Float[Tensor, "B L"], truth: Float[Tensor, "B L"]) -> float:
    """Spearman correlation over the patches of an image, averaged over images, -1 to 1.

    Images whose scores or truth are all equal count as 0.
    """
    first, second = (rankdata(value.cpu().numpy(), axis=1) for value in (scores, truth))
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    spread = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    product = (first * second).sum(axis=1)
    return float(np.divide(product, spread, out=np.zeros_like(product), where=spread > 0).mean())


def foreground_patches(images: Float[Tensor, "B C H W"], patch_size: int) -> Bool[Tensor, "B L"]:
    """True where most pixels of a patch are brighter than Otsu's threshold of its image."""
    grey = images.mean(dim=1).cpu().numpy()
    low, high = grey.min(axis=(1, 2), keepdims=True), grey.max(axis=(1, 2), keepdims=True)
    eight_bit = (255 * (grey - low) / np.maximum(high - low, 1e-6)).astype(np.uint8)
    bright = [cv2.threshold(image, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] for image in eight_bit]
    shares = patchify(torch.from_numpy(np.stack(bright)).float()[:, None], patch_size).mean(dim=-1)
    return shares > 0.5


def mask_overlap(mask: Bool[Tensor, "B L"]) -> float:
    """Mean share of masked patches that two images have in common, 0 to 1.

    The mask ratio for independent random masks, 1 where all images are masked alike.
    """
    hits = mask.float()
    pairs = hits @ hits.T / hits.sum(dim=1)
    number = len(mask)
    return float((pairs.sum() - pairs.diagonal().sum()) / max(number * (number - 1), 1))


def judge(
    score: Callable[[PatchBatch], Float[Tensor, "B L"]],
    autoencoder: Autoencoder,
    images: Float[Tensor, "B C H W"],
    num_masked: int,
    progress: float,
) -> dict[str, float]:
    """Figures about the scores of a policy on validation images.

    `spearman` is their correlation with the true patch loss, `spearman_variance` that of local variance;
    `overlap` and `masked_foreground` (share of foreground patches that is masked) are of the masks that
    follow the scores alone.
    """
    autoencoder.eval()
    with torch.no_grad():
        embeddings = autoencoder.embed(images)
    mask_ratio = num_masked / autoencoder.num_patches
    patches = PatchBatch(images, embeddings, autoencoder.grid, progress, mask_ratio)
    scores = score(patches).float().cpu()
    truth = true_patch_loss(autoencoder, images, num_masked)
    mask = select_patches(scores, num_masked, num_masked, torch.Generator().manual_seed(0))[0]
    foreground = foreground_patches(images, autoencoder.patch_size)
    variance = local_variance(images, autoencoder.patch_size)
    return {
        "val/loss": float(truth.mean()),
        "val/spearman": rank_correlation(scores, truth),
        "val/spearman_variance": rank_correlation(variance, truth),
        "val/overlap": mask_overlap(mask),
        "val/masked_foreground": float((mask & foreground).sum() / foreground.sum().clamp(min=1)),
    }

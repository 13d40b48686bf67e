"""Measures a mask policy: how its scores agree with the true patch loss, and the health of its masks."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.data import ImageDataset
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.patch_difficulty import local_variance, true_patch_loss
from ahm_gym.model.patches import patchify

BATCH_SIZE: int = 64


def rank_correlation(scores: Float[Tensor, "B L"], truth: Float[Tensor, "B L"]) -> float:
    """Spearman correlation over the patches of each image, -1 to 1, averaged over the images.

    An image in which all scores or all true values are equal counts as 0.
    """
    from scipy.stats import rankdata  # takes a second to import, and workers of an agent never need it

    first, second = (rankdata(value.cpu().numpy(), axis=1) for value in (scores, truth))
    first, second = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (first, second))
    spread = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    product = (first * second).sum(axis=1)
    return float(np.divide(product, spread, out=np.zeros_like(product), where=spread > 0).mean())


def foreground_patches(images: Float[Tensor, "B C *S"], patch_size: int) -> Bool[Tensor, "B L"]:
    """True for patches in which most pixels are brighter than Otsu's threshold of the image."""
    grey = images.mean(dim=1).flatten(1).cpu().numpy()
    low, high = grey.min(axis=1, keepdims=True), grey.max(axis=1, keepdims=True)
    eight_bit = (255 * (grey - low) / np.maximum(high - low, 1e-6)).astype(np.uint8)
    # The threshold depends on how often each value occurs, and not on where.
    bright = [cv2.threshold(values, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] for values in eight_bit]
    maps = torch.from_numpy(np.stack(bright)).float().view(len(images), 1, *images.shape[2:])
    return patchify(maps, patch_size).mean(dim=-1) > 0.5


def mask_overlap(mask: Bool[Tensor, "B L"]) -> float:
    """Mean share of masked patches that two images have in common, 0 to 1.

    It equals the mask ratio for independent random masks, and 1 if all images have the same mask.
    """
    hits = mask.float()
    pairs = hits @ hits.T / hits.sum(dim=1)
    number = len(mask)
    return float((pairs.sum() - pairs.diagonal().sum()) / max(number * (number - 1), 1))


def mask_entropy(mask: Bool[Tensor, "B L"]) -> float:
    """Entropy of how often each position is masked, relative to random masks of the same ratio.

    It is about 1 for masks that differ from image to image, and 0 if all images have the same mask.
    """
    frequency, ratio = mask.double().mean(dim=0), mask.double().mean()
    largest = torch.special.entr(ratio) + torch.special.entr(1 - ratio)
    return float((torch.special.entr(frequency) + torch.special.entr(1 - frequency)).mean() / largest)


def excess_loss(
    autoencoder: Autoencoder,
    images: Float[Tensor, "B C *S"],
    mask: Bool[Tensor, "B L"],
    truth: Float[Tensor, "B L"],
) -> float:
    """How much harder masks are than random ones, relative to masks of the hardest patches.

    It is 0 for random masks, 1 for masks of the patches with the highest true loss, negative for easier masks, and
    NaN if the hardest patches are no harder than random ones.

    Args:
        autoencoder: autoencoder to evaluate; its training mode is not changed.
        images: normalised images.
        mask: True where masked, with the same number in every image.
        truth: true patch loss; see `true_patch_loss`.
    """
    num_masked = int(mask[0].sum())
    generator = torch.Generator().manual_seed(1)
    drawn, hardest = (
        draw_masks(scores, autoencoder.grid, num_masked, generator)
        for scores in (random_scores((mask.shape[0], mask.shape[1]), generator), truth)
    )
    with torch.no_grad():
        own, random, most = (float(autoencoder(images, masks).loss) for masks in (mask, drawn, hardest))
    return (own - random) / (most - random) if most > random else math.nan


def reconstruction_psnr(
    autoencoder: Autoencoder, dataset: ImageDataset, indices: list[int], num_masked: int
) -> float:
    """Peak signal-to-noise ratio of the masked pixels under random masks, in dB; mean over the images.

    The peak is 1, the range of prepared images.

    Args:
        autoencoder: autoencoder to evaluate; it is set to evaluation mode.
        dataset: dataset of the images.
        indices: indices of the images.
        num_masked: number of masked patches in each image.
    """
    generator = torch.Generator().manual_seed(0)
    device = autoencoder.device
    autoencoder.eval()
    ratios = []
    for start in range(0, len(indices), BATCH_SIZE):
        images = dataset.resized(indices[start : start + BATCH_SIZE], autoencoder.image_size).to(device)
        scores = random_scores((len(images), autoencoder.num_patches), generator)
        masks = draw_masks(scores, autoencoder.grid, num_masked, generator)
        with torch.no_grad():
            prediction = autoencoder(images, masks).prediction
        mask = masks.masked.to(device)
        filled = autoencoder.reconstruct(images, mask, prediction)
        shown = (dataset.denormalise(value).clamp(0, 1) for value in (filled, images))
        first, second = (patchify(value, autoencoder.patch_size) for value in shown)
        error = ((first - second).square().mean(dim=2) * mask).sum(dim=1) / num_masked
        ratios.append(-10 * error.clamp(min=1e-12).log10())
    return float(torch.cat(ratios).mean())


def mask_quality(
    score: Callable[[PatchBatch], Float[Tensor, "B L"]],
    autoencoder: Autoencoder,
    images: Float[Tensor, "B C *S"],
    num_masked: int,
    progress: float,
) -> dict[str, float]:
    """Metrics of a policy's scores on validation images, with names that start with `val/`.

    `loss` is the mean true patch loss. `spearman` is the correlation of the scores with the true patch loss, and
    `spearman_variance` is that of the local variance with it. `excess`, `overlap`, `entropy` and `masked_foreground`,
    the share of foreground patches that are masked, describe masks that the scores alone choose.
    """
    autoencoder.eval()
    with torch.no_grad():
        embeddings = autoencoder.embed(images)
    mask_ratio = num_masked / autoencoder.num_patches
    patches = PatchBatch(images, embeddings, autoencoder.grid, progress, mask_ratio)
    scores = score(patches).float().cpu()
    truth = true_patch_loss(autoencoder, images, num_masked)
    mask = draw_masks(scores, autoencoder.grid, num_masked, torch.Generator().manual_seed(0)).masked
    foreground = foreground_patches(images, autoencoder.patch_size)
    variance = local_variance(images, autoencoder.patch_size)
    return {
        "val/loss": float(truth.mean()),
        "val/spearman": rank_correlation(scores, truth),
        "val/spearman_variance": rank_correlation(variance, truth),
        "val/excess": excess_loss(autoencoder, images, mask, truth),
        "val/overlap": mask_overlap(mask),
        "val/entropy": mask_entropy(mask),
        "val/masked_foreground": float((mask & foreground).sum() / foreground.sum().clamp(min=1)),
    }

"""Selects the patches to mask: first those with the highest scores, then random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ahm_gym.device.transfers import to_device
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import check_mask_ratio, check_share
from ahm_gym.masking.sorting import sorting_order
from ahm_gym.masking.spread import Spread


@dataclass(frozen=True)
class PatchBatch:
    """What a mask policy knows about a batch."""

    images: Float[Tensor, "B C *S"]
    """Normalised images, as the encoder receives them."""
    embeddings: Float[Tensor, "B L D"]
    """Patch embedding plus position embedding of every patch."""
    grid: tuple[int, ...]
    """Number of patches along each axis, such as rows and columns; their product is L."""
    progress: float
    """Share of pretraining that is done, 0 to 1."""
    mask_ratio: float = 0.75
    """Share of the patches that will be masked."""

    @property
    def num_masked(self) -> int:
        """Number of patches that will be masked in each image."""
        return count_masked(self.embeddings.shape[1], self.mask_ratio)


Weigh = Callable[[PatchBatch, Masks, torch.Generator], Tensor]
"""Returns the weights (B, L) of complete masks: how much each patch counts in the loss, 0 for visible ones."""


def count_masked(num_patches: int, mask_ratio: float) -> int:
    """Number of patches to mask at this ratio; at least one is masked and one visible.

    Raises:
        InputError: if the ratio is not strictly between 0 and 1, or there are fewer than two patches.
    """
    check_mask_ratio(mask_ratio)
    if num_patches < 2:
        raise InputError(
            f"the image has only {num_patches} patch: masking needs at least 2, choose a smaller patch size."
        )
    return min(max(round(num_patches * mask_ratio), 1), num_patches - 1)


def random_scores(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device | None = None
) -> Float[Tensor, "B L"]:
    """Uniform scores in [0, 1), drawn on the generator's device and moved to `device`."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return to_device(drawn, device or generator.device)


def order_by_score(scores: Float[Tensor, "B L"], generator: torch.Generator) -> Int[Tensor, "B L"]:
    """Patch indices from the highest to the lowest score, with equal scores in random order."""
    return order_with_ties(
        scores, random_scores((scores.shape[0], scores.shape[1]), generator, scores.device)
    )


def order_with_ties(scores: Float[Tensor, "B L"], uniform: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The same, with equal scores in the order of `uniform`."""
    shuffle = sorting_order(uniform)
    by_score = scores.gather(1, shuffle).argsort(dim=1, descending=True, stable=True)
    return shuffle.gather(1, by_score)


def select_patches(
    scores: Float[Tensor, "B L"],
    num_masked: int,
    num_guided: int,
    generator: torch.Generator,
    masked: Bool[Tensor, "B L"] | None = None,
    spread: Spread | None = None,
) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """The patches to mask (True = selected), and those of them that the scores chose.

    Args:
        scores: one score per patch; the patches with the highest scores are masked first.
        num_masked: number of patches to mask in each image.
        num_guided: how many of them the scores choose; the rest is drawn uniformly.
        generator: generator of the rest and of the order of equal scores.
        masked: patches that are masked already; they are not selected again.
        spread: windows that must each keep some patches visible; None allows every patch to be masked.

    Raises:
        InputError: if a score is not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            "the scores contain NaN or infinity: every patch needs a finite number; check the policy's outputs."
        )
    shape = (scores.shape[0], scores.shape[1])
    guided = torch.zeros_like(scores, dtype=torch.bool)
    if num_guided == 0:
        random_scores(
            shape, generator
        )  # `order_by_score` draws as much: later draws do not depend on num_guided
    else:
        unmasked_scores = scores if masked is None else scores.masked_fill(masked, -torch.inf)
        by_score = order_by_score(unmasked_scores, generator)
        if spread is not None:
            by_score = spread.allowed_first(by_score, masked)
        guided.scatter_(1, by_score[:, :num_guided], True)
    if num_guided == num_masked:
        return guided, guided
    taken = guided if masked is None else guided | masked
    noise = random_scores(shape, generator, scores.device)
    at_random = sorting_order(-noise.masked_fill(taken, -1.0))
    if spread is not None:
        at_random = spread.allowed_first(at_random, taken)
    return guided.scatter(1, at_random[:, : num_masked - num_guided], True), guided


def choose_targets(
    masks: Masks, scores: Float[Tensor, "B L"], target_fraction: float, generator: torch.Generator
) -> Masks:
    """The same masks, in which only the masked patches with the highest scores of each image count in the loss.

    Args:
        masks: masks with the same number of masked patches in every image.
        scores: one score per patch, in main memory.
        target_fraction: share of the masked patches that have weight 1, at least one per image; the others have 0.
        generator: generator of the order of equal scores.
    """
    num_targets = max(round(target_fraction * int(masks.masked[0].sum())), 1)
    order = order_by_score(scores.masked_fill(~masks.masked, -torch.inf), generator)
    return masks.weighted(torch.zeros_like(scores).scatter_(1, order[:, :num_targets], 1.0))


def mask_top_k(
    scores: Float[Tensor, "B L"],
    num_masked: int,
    *,
    guided_fraction: float = 1.0,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B L"]:
    """A plain mask (True = masked) with exactly `num_masked` masked patches in every image.

    `round(guided_fraction * num_masked)` of them have the highest scores, with equal scores in random order; the
    rest is drawn uniformly from the other patches. Without a generator the draws differ from call to call.

    Raises:
        InputError: if a score is not finite, or a count or share is out of range.
    """
    if not 0 < num_masked < scores.shape[1]:
        raise InputError(f"num_masked is {num_masked}: choose from 1 to {scores.shape[1] - 1} patches.")
    if generator is None:
        generator = torch.Generator(scores.device)
        generator.seed()
    num_guided = round(check_share(guided_fraction, "guided fraction") * num_masked)
    mask, _ = select_patches(scores, num_masked, num_guided, generator)
    return mask

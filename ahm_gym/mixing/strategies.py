"""Strategies of masking: what a curriculum mixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.errors import InputError, unknown_name
from ahm_gym.masking.blocks import block_scores
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import check_mask_ratio, check_share, check_target_fraction
from ahm_gym.masking.selection import PatchBatch, choose_targets, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.patch_difficulty import local_variance, true_patch_loss

Scorer = Callable[[PatchBatch, Autoencoder, torch.Generator], Tensor]
"""Returns one score (B, L) per patch of a batch; the patches with the highest scores are masked first."""


def random_patches(
    patches: PatchBatch, autoencoder: Autoencoder, generator: torch.Generator
) -> Float[Tensor, "B L"]:
    """Uniform scores, as of the mask policy `random`."""
    return random_scores((patches.embeddings.shape[0], patches.embeddings.shape[1]), generator)


def blocks(patches: PatchBatch, autoencoder: Autoencoder, generator: torch.Generator) -> Float[Tensor, "B L"]:
    """Random rectangles, as of the mask policy `block`."""
    return block_scores(len(patches.images), patches.grid, generator)


def hard_patches(
    patches: PatchBatch, autoencoder: Autoencoder, generator: torch.Generator
) -> Float[Tensor, "B L"]:
    """The loss of every patch under the current autoencoder, for two extra forward passes at a ratio of 0.75.

    The score of the mask policy `oracle_hard`, from as few random masks as hide every patch once.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with autoencoder.autocast():
        return true_patch_loss(autoencoder, patches.images, patches.num_masked, num_masks=1, seed=seed)


def textured_patches(
    patches: PatchBatch, autoencoder: Autoencoder, generator: torch.Generator
) -> Float[Tensor, "B L"]:
    """The variance of the pixels of every patch, as of the mask policy `textured`."""
    return local_variance(patches.images, autoencoder.patch_size)


KINDS: dict[str, Scorer] = {
    "random": random_patches,
    "block": blocks,
    "hard": hard_patches,
    "textured": textured_patches,
}
"""Name to scorer: what the guided patches of a strategy follow."""


@dataclass(frozen=True)
class Strategy:
    """One way to mask the images of an update.

    Raises:
        InputError: if the kind is unknown or a number is out of range.
    """

    name: str
    """How it is called in metrics and `info`."""
    kind: str = "random"
    """What the guided patches follow, a name in `KINDS`."""
    mask_ratio: float = 0.75
    """Share of masked patches, between 0 and 1."""
    guided_fraction: float = 1.0
    """Share of the masked patches that follow the kind; the rest is drawn uniformly."""
    spread_fraction: float = 0.0
    """Share of the images whose visible patches are spread over the grid (`ahm_gym.masking.spread`)."""
    target_fraction: float = 1.0
    """Share of the masked patches that count in the loss: those with the highest scores of the kind."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind of strategy", self.kind, KINDS)
        check_mask_ratio(self.mask_ratio)
        check_share(self.guided_fraction, "guided fraction")
        check_share(self.spread_fraction, "spread fraction")
        check_target_fraction(self.target_fraction, weighs=False)

    def score(
        self, patches: PatchBatch, autoencoder: Autoencoder, generator: torch.Generator
    ) -> Float[Tensor, "B L"]:
        """One score per patch, in main memory."""
        return KINDS[self.kind](patches, autoencoder, generator).float().cpu()

    def weigh(self, masks: Masks, scores: Float[Tensor, "B L"], generator: torch.Generator) -> Masks:
        """The same masks, in which only this strategy's targets count in the loss.

        Args:
            masks: masks with the same number of masked patches in every image.
            scores: what `score` returned for their images.
            generator: generator of the order of equal scores.
        """
        if self.target_fraction == 1.0:
            return masks
        return choose_targets(masks, scores, self.target_fraction, generator)


STRATEGIES: tuple[Strategy, ...] = (
    Strategy("random"),
    Strategy("low_ratio", mask_ratio=0.5),
    Strategy("high_ratio", mask_ratio=0.9),
    Strategy("spread", spread_fraction=1.0),
    Strategy("block", kind="block"),
    Strategy("hard", kind="hard", guided_fraction=0.5),
    Strategy("hard_targets", kind="hard", guided_fraction=0.0, target_fraction=0.5),
)
"""The strategies that are mixed by default: random masks at three ratios, spread ones, rectangles, masks of which half
are the hardest patches, and random masks of which the harder half counts."""


def check_strategies(strategies: Sequence[Strategy]) -> tuple[Strategy, ...]:
    """The strategies themselves; raises InputError if there are fewer than two, or two have one name."""
    names = [strategy.name for strategy in strategies]
    if len(names) < 2:
        raise InputError(f"`strategies` has {len(names)} of them: give at least two to choose between.")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"`strategies` has two with the name {name!r}: give each its own name.")
    return tuple(strategies)

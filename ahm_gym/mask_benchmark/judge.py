"""Scores masks on held-out images of a frozen autoencoder, between random masks and an oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError
from ahm_gym.masking.drawing import draw_masks
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.selection import PatchBatch, random_scores
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.conv_network import LAYERS
from ahm_gym.model.pretrainer import Pretrainer

NUM_RANDOM: int = 64
"""Random masks of each image by which the reward of a patch and of random masks is known."""
NUM_ROUNDS: int = 4
"""Rounds in which the oracle improves its guess."""
NUM_NEAR: int = 32
"""Masks of each image near the best guess in a round."""
NUM_SETTLING: int = 20
"""Batches of random masks that set the running statistics of a reward before anything is scored."""
AT_ONCE: int = 1024
"""Largest number of masked images in one pass."""


class Scale(NamedTuple):
    """What the guided patches of two policies are paid on average, between which scores lie."""

    random: float
    """Random masks: score 0."""
    oracle: float
    """The oracle: score 1."""


class Judge:
    """Scores the masks that follow from scores of patches: 0 is random masks, 1 an oracle.

    The oracle knows the mean reward of every patch over 64 random masks that hide it, and takes the highest. Then it
    searches: in rounds, it measures what patches pay in masks near its best guess, and of all guesses keeps the one
    that pays most, for every image. A policy can still beat it, because the search has an end. Masks are drawn by the
    same random numbers for every policy, so they differ only in the patches that scores choose.

    Args:
        autoencoder: it is never updated.
        images: held-out, normalised images.
        reward: name of the reward.
        mask_ratio: share of masked patches.
        guided_fraction: share of them that scores choose.
        num_masks: masks of each image that a score is averaged over.
        scale: what an equal judge found; None: it is measured, which takes as long as scoring 20 policies.

    Raises:
        InputError: if the oracle is not paid more than random masks, so that there is no scale.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        images: Float[Tensor, "B C *S"],
        *,
        reward: str,
        mask_ratio: float,
        guided_fraction: float,
        num_masks: int,
        scale: Scale | None = None,
    ) -> None:
        self.guided_fraction: float = guided_fraction
        self.num_masks: int = num_masks
        self.env: MaskingVectorEnv = MaskingVectorEnv(
            len(images),
            data=images,
            pretrainer=Pretrainer(autoencoder, num_steps=1, device=autoencoder.device, frozen=True),
            reward=reward,
            mask_ratio=mask_ratio,
            guided_fraction=guided_fraction,
        )
        self.env.reset(seed=0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(NUM_SETTLING):
            self.env.step(random_scores((len(images), self.env.num_patches), generator))
        self.env.reset()
        self.scale: Scale = self._measure_scale(reward, generator) if scale is None else scale

    def _measure_scale(self, reward: str, generator: torch.Generator) -> Scale:
        """What random masks and the oracle are paid; raises InputError if there is no scale."""
        patch_reward, random = self.mean_rewards(generator)
        first = self.paid(patch_reward)
        if not first - random > 1e-9:
            raise InputError(
                f"reward {reward} pays the oracle {first:.4g} and random masks {random:.4g}, so "
                "there is nothing to learn: choose another reward, or more held-out `images`."
            )
        return Scale(random, float(self._search(patch_reward, generator).mean()))

    def mean_rewards(self, generator: torch.Generator) -> tuple[Float[Tensor, "B L"], float]:
        """The mean reward of every patch over the random masks that hide it, and what such masks pay."""
        shape = (self.env.num_envs, self.env.num_patches)
        drawn = [self._drawn(random_scores(shape, generator), generator) for _ in range(NUM_RANDOM)]
        patch_reward, paid = self._measured(drawn)
        return _mean_of_masked(patch_reward, drawn), float(paid.mean())

    def patches(self, progress: float) -> PatchBatch:
        """The held-out images, as a mask policy sees them at that share of its training."""
        return replace(self.env.patches, progress=progress)

    def score(self, scores: Float[Tensor, "B L"]) -> float:
        """The score of the masks in which the patches with the highest scores are guided."""
        return (self.paid(scores) - self.scale.random) / (self.scale.oracle - self.scale.random)

    def paid(self, scores: Float[Tensor, "B L"]) -> float:
        """The mean reward of the guided patches, over all masks and images.

        Raises:
            InputError: if a score is not finite, or their shape is another one.
        """
        return float(self._paid(scores).mean())

    def _paid(self, scores: Float[Tensor, "B L"]) -> Float[np.ndarray, " B"]:
        """The same for each image, over all masks."""
        scores = scores.detach().float().cpu()
        generators = (torch.Generator().manual_seed(seed) for seed in range(1, self.num_masks + 1))
        return self._measured([self._drawn(scores, generator) for generator in generators])[1].mean(axis=0)

    def _search(self, best: Float[Tensor, "B L"], generator: torch.Generator) -> Float[np.ndarray, " B"]:
        """What the best guess of each image pays, after a search that starts from one."""
        paid = self._paid(best)
        best, paid = self._best_of(best, paid, [self._smoothed(best)])
        for round_number in range(1, NUM_ROUNDS + 1):
            noise = best.std(dim=1, keepdim=True) / (4 * round_number)
            near = [best + noise * torch.randn(best.shape, generator=generator) for _ in range(NUM_NEAR)]
            drawn = [self._drawn(scores, generator) for scores in near]
            measured = _mean_of_masked(self._measured(drawn)[0], drawn)
            guesses = [measured, (measured + self._smoothed(measured)) / 2]
            best, paid = self._best_of(best, paid, guesses)
        return paid

    def _best_of(
        self, best: Float[Tensor, "B L"], paid: Float[np.ndarray, " B"], guesses: list[Float[Tensor, "B L"]]
    ) -> tuple[Float[Tensor, "B L"], Float[np.ndarray, " B"]]:
        """For each image, of the best scores so far and other guesses, those that pay most, and what they pay."""
        for guess in guesses:
            found = self._paid(guess)
            best = torch.where(torch.as_tensor(found > paid)[:, None], guess, best)
            paid = np.maximum(found, paid)
        return best, paid

    def _smoothed(self, values: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """The mean over a patch and its neighbours: masked together, they are harder to predict."""
        axes = len(self.env.grid)
        maps = functional.pad(values.view(-1, 1, *self.env.grid), (1, 1) * axes, mode="replicate")
        return LAYERS[axes].average(3, stride=1)(maps).view(values.shape)

    def _drawn(self, scores: Float[Tensor, "B L"], generator: torch.Generator) -> Masks:
        share = self.guided_fraction
        return draw_masks(scores, self.env.grid, self.env.num_masked, generator, guided_fraction=share)

    def _measured(self, drawn: list[Masks]) -> tuple[Float[np.ndarray, "K B L"], Float[np.ndarray, "K B"]]:
        """The reward of every masked patch, and the mean over the guided ones of each mask."""
        size = max(1, AT_ONCE // self.env.num_envs)
        found = []
        for first in range(0, len(drawn), size):
            part = drawn[first : first + size]
            masked, guided = (
                torch.stack([getattr(one, name) for one in part]) for name in ("masked", "guided")
            )
            found.append(self.env.evaluate(masked, guided))
        return tuple(
            np.concatenate([getattr(one, name) for one in found]) for name in ("patch_reward", "reward")
        )  # pyright: ignore[reportReturnType]


def _mean_of_masked(values: Float[np.ndarray, "K B L"], masks: list[Masks]) -> Float[Tensor, "B L"]:
    """The mean over the masks that hide a patch; a patch that none hides gets the mean of its image."""
    masked = torch.stack([one.masked for one in masks]).float()
    count = masked.sum(dim=0)
    total = torch.as_tensor(values).float().sum(dim=0)
    mean = total.sum(dim=1, keepdim=True) / count.sum(dim=1, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1), mean)

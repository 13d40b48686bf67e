"""A bandit that mixes strategies of masking by learning progress."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.errors import check_numbers
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import Share
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.mixing.bandit import ThompsonSampling
from ahm_gym.mixing.battery import Battery
from ahm_gym.mixing.strategies import STRATEGIES, Strategy
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.policies.base import MaskPolicy
from ahm_gym.policies.scorer import seed_from

NUM_IMAGES: int = 16
"""Number of images in the battery."""


class ThompsonPolicy(MaskPolicy):
    """Chooses one strategy after another by Thompson sampling, paid by learning progress.

    The strategies are `STRATEGIES`: random masks at three ratios, spread ones, rectangles, masks of which half are the
    hardest patches, and random masks of which the harder half counts. Each choice stands for `period` updates. Its
    reward is how far the log of the loss fell meanwhile on a fixed battery of masks (`ahm_gym.mixing.battery`). The
    bandit is `ThompsonSampling`; see there for its papers, Thompson (1933) and Russo et al. (2018), and for Graves et
    al. (2017), who pay a curriculum by learning progress. `AHM/Curriculum-v0` offers the same choice as an environment.

    The policy sees no other images than those that are trained on, so its battery are the first 16 of them. Without
    them the autoencoder would have to learn from fewer images than under other policies. The first update only fills
    the battery, so the first choice stands for one update more. Strategies set the mask ratio of each update, the share
    of guided patches, that of spread masks and the weights of patches in the loss.

    Args:
        autoencoder: the autoencoder that is pretrained; it is measured, and never changed.
        period: number of updates for which a choice stands.
        forgetting: factor of the weight of older rewards for every new one; see `ThompsonSampling`.

    Raises:
        InputError: if an option is out of range, or the target of the autoencoder is latent.
    """

    def __init__(self, autoencoder: Autoencoder, period: int = 20, forgetting: float = 0.95) -> None:
        super().__init__(autoencoder)
        check_numbers("count", period=period)
        self.period: int = period
        self.bandit: ThompsonSampling = ThompsonSampling(
            len(STRATEGIES), forgetting=forgetting, seed=seed_from(autoencoder)
        )
        self.arm: int = self.bandit.choose()
        """Index of the current strategy in `STRATEGIES`."""
        self.guided_fraction: Share = self._guided_fraction
        self.spread_fraction: Share = self._spread_fraction
        self.mask_ratio: Share | None = self._mask_ratio
        self._battery: Battery | None = None
        self._log_loss, self._done = 0.0, 0
        self._scores: Tensor | None = None

    @property
    def strategy(self) -> Strategy:
        """The current strategy."""
        return STRATEGIES[self.arm]

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        self._scores = self.strategy.score(patches, self.autoencoder, generator)
        return self._scores

    def weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Float[Tensor, "B L"]:
        assert self._scores is not None, "score() comes first"
        return self.strategy.weigh(masks, self._scores, generator).weight

    def observe(
        self, patches: PatchBatch, masks: Masks, patch_loss: Float[Tensor, "B L"]
    ) -> dict[str, float]:
        metrics = {f"policy/share_{one.name}": float(one is self.strategy) for one in STRATEGIES}
        if self._battery is None:
            self._battery = Battery(patches.images[:NUM_IMAGES].clone(), self.autoencoder)
            self._log_loss = self._battery.measure(self.autoencoder).log_loss
            return metrics
        self._done += 1
        if self._done < self.period:
            return metrics
        measured = self._battery.measure(self.autoencoder)
        reward = self._log_loss - measured.log_loss
        self.bandit.learn(self.arm, reward)
        self.arm, self._log_loss, self._done = self.bandit.choose(), measured.log_loss, 0
        return metrics | {"policy/battery_loss": measured.loss, "policy/learning_progress": reward}

    def state_dict(self) -> dict[str, Any]:
        return {
            "bandit": self.bandit.state_dict(),
            "arm": self.arm,
            "images": None if self._battery is None else self._battery.images,
            "log_loss": self._log_loss,
            "done": self._done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bandit.load_state_dict(state["bandit"])
        self.arm, self._log_loss, self._done = state["arm"], state["log_loss"], state["done"]
        if state["images"] is not None:
            self._battery = Battery(state["images"].to(self.autoencoder.device), self.autoencoder)

    def _guided_fraction(self, progress: float) -> float:
        return self.strategy.guided_fraction

    def _spread_fraction(self, progress: float) -> float:
        return self.strategy.spread_fraction

    def _mask_ratio(self, progress: float) -> float:
        return self.strategy.mask_ratio

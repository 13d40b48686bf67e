"""What an environment says, once, of a training that goes another way than its user may think."""

from __future__ import annotations

from gymnasium import logger

from ahm_gym.masking.drawing import GrowingMask
from ahm_gym.model.pretrainer import Pretrainer


class Warnings:
    """Warnings that are given once for each environment."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._dropped = 0

    def before_reset(self, mask: GrowingMask) -> None:
        """Says that masks are dropped again and again before they are complete, as by a TimeLimit."""
        self._dropped = self._dropped + 1 if 0 < mask.num_done < len(mask.steps) else 0
        if self._dropped > 1:
            self._once(
                "dropped",
                f"reset() was called again after step {mask.num_done} of {len(mask.steps)}: only a complete mask "
                f"updates the autoencoder. A TimeLimit has to allow {len(mask.steps)} steps.",
            )

    def before_update(self, pretrainer: Pretrainer) -> None:
        """Says that an update changes nothing any more, or only a copy of the autoencoder."""
        self._dropped = 0
        if pretrainer.is_copy:
            self._once(
                "copy",
                "this process trains a copy of the autoencoder of its own, and the original learns nothing: make a "
                "batch with num_envs instead of several environments, or call pretrainer.share_memory(lock) first.",
            )
        if pretrainer.updates >= pretrainer.num_steps and not pretrainer.frozen:
            self._once(
                "schedule",
                f"the schedule of {pretrainer.num_steps} updates is over and the learning rate is 0: the autoencoder "
                "learns nothing more. Choose a larger num_steps.",
            )

    def _once(self, name: str, sentence: str) -> None:
        if name not in self._given:
            self._given.add(name)
            logger.warn(sentence)

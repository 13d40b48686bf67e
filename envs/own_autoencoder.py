"""The autoencoder that an environment builds for itself, and starts again only when it is asked to."""

from __future__ import annotations

from collections.abc import Callable

from ahm_gym.model.pretrainer import Pretrainer


class OwnAutoencoder:
    """An autoencoder that belongs to one environment.

    Args:
        build: returns a newly initialised pretrainer for a seed.
    """

    def __init__(self, build: Callable[[int], Pretrainer]) -> None:
        self._build = build
        self.pretrainer: Pretrainer = build(0)
        self._versions = self._count_changes()

    @property
    def untouched(self) -> bool:
        """Whether it is as it was built: no update was made, and nobody loaded other weights."""
        return self.pretrainer.updates == 0 and self._count_changes() == self._versions

    def restart(self, seed: int) -> None:
        """Initialises the weights and the optimiser by a seed; the pretrainer stays the same object."""
        self.pretrainer.load_state_dict(self._build(seed).state_dict())
        self._versions = self._count_changes()

    def _count_changes(self) -> int:
        """How often the weights were written in place, as torch counts it."""
        return sum(weight._version for weight in self.pretrainer.autoencoder.parameters())

"""A few-label score of what is being pretrained, for the reward `probe` of `AHM/Curriculum-v0`."""

from __future__ import annotations

from dataclasses import dataclass

from ahm_gym.data import ImageDataset
from ahm_gym.data.labelled import choose_labelled
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.segmentation.probe import Probe


@dataclass(frozen=True)
class ProbeScore:
    """Patch Dice on val, 0 to 1, of a linear map from the current patch features, fitted with a few labelled images.

    No test image is read. See `Probe.val_dice`.

    Raises:
        InputError: if the data has too few labels.
    """

    dataset: ImageDataset
    """Images with labels in the splits train and val."""
    labels: int = 10
    """Number of labelled training images."""
    seed: int = 0
    """Seed of their choice."""

    def __post_init__(self) -> None:
        choose_labelled(self.dataset, self.labels, self.seed)

    def __call__(self, pretrainer: Pretrainer) -> float:
        probe = Probe(pretrainer.model.encoder, self.dataset, tested=False)
        return probe.val_dice(labels=self.labels, seed=self.seed)

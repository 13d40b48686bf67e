"""Pretraining runs in one process or in several ranks, with what every update computed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ahm_gym.envs.batches import ImageBatches
from ahm_gym.envs.masking import MaskingVectorEnv
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.recorder import Recorder
from ahm_gym.pretraining.run import pretrain


@dataclass
class Recorded:
    """What the updates of a run computed, oldest first."""

    losses: list[float] = field(default_factory=list)
    patch_losses: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    """Less their mean in each image."""


def recorded(config: PretrainConfig, *, resume: bool = False) -> Recorded:
    """Runs a pretraining in this process and records its updates."""
    found = Recorded()
    step, mask = Pretrainer.step, MaskingVectorEnv._mask_patches

    def stepped(self, images, masks):
        result = step(self, images, masks)
        found.losses.append(float(result.loss))
        found.patch_losses.append(result.patch_loss.clone())
        gradients = [
            weight.grad.flatten() for weight in self.autoencoder.parameters() if weight.grad is not None
        ]
        found.gradients.append(torch.cat(gradients))
        return result

    def masked(self, actions):
        info = mask(self, actions)
        # A common shift means nothing: a bias without a gradient, such as that of a scorer's head, wanders by Adam.
        found.scores.append(self._last_scores - self._last_scores.mean(dim=1, keepdim=True))
        return info

    Pretrainer.step, MaskingVectorEnv._mask_patches = stepped, masked
    try:
        pretrain(config, resume=resume)
    finally:
        Pretrainer.step, MaskingVectorEnv._mask_patches = step, mask
    return found


def use_double_precision(patch: pytest.MonkeyPatch) -> None:
    """Lets runs compute in double precision, without pictures, validation and checkpoints."""
    start, batch, single = Pretrainer.__init__, ImageBatches.next, Tensor.float

    def started(self, autoencoder, **options):
        start(self, autoencoder.double(), **options)

    patch.setattr(Pretrainer, "__init__", started)
    patch.setattr(ImageBatches, "next", lambda self: batch(self).double())
    patch.setattr(Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))
    for name in ("inspect", "snapshot", "checkpoint"):
        patch.setattr(Recorder, name, lambda self: None)


def in_folder(config: PretrainConfig, name: str) -> PretrainConfig:
    """The same settings in another run folder."""
    assert config.run_dir is not None
    return replace(config, run_dir=Path(config.run_dir).with_name(name))


def assert_close(one: Recorded, other: Recorded, tolerance: float = 1e-5, *, gradients: float = 1e-5) -> None:
    """Fails unless losses, gradients (relative to their norm) and scores of all updates are equal up to rounding.

    Of the scores, 1 in 1000 may differ: two draws of an order may change places if rounding decides which comes first.
    """
    assert len(one.losses) == len(other.losses) > 0
    differing = torch.stack(one.scores).sub(torch.stack(other.scores)).abs() > tolerance
    assert float(differing.float().mean()) <= 1e-3, "scores differ"
    for name in ("losses", "patch_losses", "gradients"):
        for update, (first, second) in enumerate(zip(getattr(one, name), getattr(other, name), strict=True)):
            difference = torch.as_tensor(first) - torch.as_tensor(second)
            relative = name == "gradients"
            size = float(difference.norm() / first.norm() if relative else difference.abs().max())
            assert size < (gradients if relative else tolerance), (
                f"{name} of update {update} differ by {size}"
            )

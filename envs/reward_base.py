"""The interface of rewards, and the simplest one: the reconstruction loss."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.model.autoencoder import Reconstruction
from ahm_gym.model.pretrainer import Pretrainer


@runtime_checkable
class Reward(Protocol):
    """The reward of every patch, measured around one update of the autoencoder.

    The environment calls `before`, starts the update, and calls `after`, the reward itself and `paid`. Images and
    reconstructions are on the pretrainer's device, masks and rewards in main memory: `before` and `after` start a
    `Fetch` of what `__call__` needs from a GPU, so that the environment waits only once.
    """

    advances: bool
    """Whether running statistics and copies follow the training; False while nothing is updated, when every image is
    measured."""

    def before(self, images: Float[Tensor, "B C *S"], masks: Masks) -> None:
        """Sees the batch before the update."""
        ...

    def after(self, images: Float[Tensor, "B C *S"], result: Reconstruction) -> None:
        """Sees the reconstruction that the update learned from: old weights, same masks."""
        ...

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        """The reward of every patch; the caller sets it to 0 on visible patches.

        Args:
            patch_loss: loss of every patch before the update, with the same masks. Masked patches of weight 0 have
                one, too, though their prediction is not trained.
            masks: masks of the update.
        """
        ...

    def paid(self, num_images: int) -> Bool[Tensor, " B"]:
        """True for the images whose reward the last call measured; the others have reward 0."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LossReward:
    """The reconstruction loss of the patch, its squared error: hard patches pay."""

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        self.pretrainer: Pretrainer = pretrainer
        self.generator: torch.Generator = generator
        self.advances: bool = True

    def configure(self, argument: str) -> None:
        """Sets the argument, the part of a reward's name after the colon.

        Raises:
            InputError: if the reward has no argument, or this one is invalid.
        """
        raise InputError(
            f"unexpected reward argument {argument!r}: only ahm2025 and progress have one, as in ahm2025:20 and "
            "progress:0.5."
        )

    def before(self, images: Float[Tensor, "B C *S"], masks: Masks) -> None:
        return None

    def after(self, images: Float[Tensor, "B C *S"], result: Reconstruction) -> None:
        return None

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        return patch_loss

    def paid(self, num_images: int) -> Bool[Tensor, " B"]:
        return torch.ones(num_images, dtype=torch.bool)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None

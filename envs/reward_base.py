"""What a reward is asked for, and the plainest one."""

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
    """Called around every update of the autoencoder.

    Images and reconstructions are on the pretrainer's device, masks and what is paid in main memory: what
    `__call__` needs from a GPU, `before` and `after` begin to `Fetch`, so that one wait serves all.
    """

    def before(self, images: Float[Tensor, "B C H W"], masks: Masks) -> None:
        """Look at the batch while the autoencoder is still the old one."""
        ...

    def after(self, images: Float[Tensor, "B C H W"], result: Reconstruction) -> None:
        """Look at the reconstruction from before the update, with the same masks."""
        ...

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        """The reward of every patch; the caller sets visible ones to 0.

        Args:
            patch_loss: from before the update, with the same masks; also of masked patches of weight 0, whose
                prediction was not trained.
            masks: of the update.
        """
        ...

    def paid(self, num_images: int) -> Bool[Tensor, " B"]:
        """The images whose reward the last call has measured; all others have 0."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LossReward:
    """Squared error of the patch."""

    def __init__(self, pretrainer: Pretrainer, generator: torch.Generator) -> None:
        self.pretrainer = pretrainer
        self.generator = generator

    def configure(self, argument: str) -> None:
        """Takes what follows the colon of a reward's name.

        Raises:
            InputError: where the reward takes nothing, or not this.
        """
        raise InputError(f"reward argument {argument!r}: only ahm2025 takes one, as in ahm2025:20.")

    def before(self, images: Float[Tensor, "B C H W"], masks: Masks) -> None:
        return None

    def after(self, images: Float[Tensor, "B C H W"], result: Reconstruction) -> None:
        return None

    def __call__(self, patch_loss: Float[Tensor, "B L"], masks: Masks) -> Float[Tensor, "B L"]:
        return patch_loss

    def paid(self, num_images: int) -> Bool[Tensor, " B"]:
        return torch.ones(num_images, dtype=torch.bool)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None

"""One update of the autoencoder and what it pays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ahm_gym.device.transfers import Fetch
from ahm_gym.envs.reward_base import Reward
from ahm_gym.masking.masks import Masks
from ahm_gym.model.autoencoder import Reconstruction
from ahm_gym.model.pretrainer import Pretrainer


def rows_before_update(masks: Masks) -> dict[str, np.ndarray]:
    """Rows of `info` while a mask is built up: nothing is lost or paid yet."""
    nothing = np.zeros(tuple(masks.masked.shape), dtype=np.float32)
    return {
        "mask": masks.masked.numpy().copy(),
        "guided": masks.guided.numpy().copy(),
        "weight": masks.weight.numpy().copy(),
        "patch_loss": nothing,
        "patch_reward": nothing,
        "paid": np.zeros(len(masks.masked), dtype=bool),
    }


def begin_update(
    pretrainer: Pretrainer, reward: Reward, images: Float[Tensor, "B C H W"], masks: Masks
) -> Update:
    """Updates the autoencoder once, which a GPU may still be busy with until `Update.outcome` is asked for.

    Args:
        pretrainer: makes the update.
        reward: looks at the autoencoder before the update, and at the reconstruction.
        images: on the pretrainer's device.
        masks: in main memory.

    Raises:
        RunError: where the loss or its gradient is not finite; on a GPU by `Update.outcome`.
    """
    reward.before(images, masks)
    result = pretrainer.step(images, masks)
    reward.after(images, result)
    return Update(pretrainer, reward, masks, result, Fetch(result.patch_loss))


@dataclass(frozen=True)
class Update:
    """An update that `begin_update` has begun."""

    pretrainer: Pretrainer
    reward: Reward
    masks: Masks
    result: Reconstruction
    """From before the update, on the pretrainer's device."""
    patch_loss: Fetch

    def outcome(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Rows of `info` and the reward (B,); waits for the GPU.

        `patch_loss` and `patch_reward` (B, L) are 0 where visible; where `paid` (B,) is False, the reward was not
        measured and is 0.
        """
        patch_loss = self.patch_loss.wait()  # the last to come: the check waits no more
        self.pretrainer.check()
        masked, guided = self.masks.masked, self.masks.guided
        patch_reward = (self.reward(patch_loss, self.masks) * masked).float()
        rows = {
            "patch_loss": (patch_loss * masked).float().numpy(),
            "patch_reward": patch_reward.numpy(),
            "paid": self.reward.paid(len(masked)).numpy(),
        }
        count = guided.sum(dim=1).clamp(min=1)
        return rows, ((patch_reward * guided).sum(dim=1) / count).numpy().astype(np.float64)

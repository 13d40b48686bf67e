"""One update of the autoencoder, and the reward for it."""

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
    """Rows of `info` while a mask grows: there is no loss and no reward yet."""
    zeros = np.zeros(tuple(masks.masked.shape), dtype=np.float32)
    return {
        "mask": masks.masked.numpy().copy(),
        "guided": masks.guided.numpy().copy(),
        "weight": masks.weight.numpy().copy(),
        "patch_loss": zeros,
        "patch_reward": zeros,
        "paid": np.zeros(len(masks.masked), dtype=bool),
    }


def begin_update(
    pretrainer: Pretrainer, reward: Reward, images: Float[Tensor, "B C H W"], masks: Masks
) -> Update:
    """Starts one update of the autoencoder; a GPU may still be computing it until `Update.outcome` is called.

    Args:
        pretrainer: performs the update.
        reward: sees the batch before the update, and the reconstruction.
        images: images on the pretrainer's device.
        masks: masks in main memory.

    Raises:
        RunError: if the loss or its gradient is not finite; on a GPU, `Update.outcome` raises it.
    """
    reward.before(images, masks)
    result = pretrainer.step(images, masks)
    reward.after(images, result)
    return Update(pretrainer, reward, masks, result, Fetch(result.patch_loss))


@dataclass(frozen=True)
class Update:
    """An update started by `begin_update`."""

    pretrainer: Pretrainer
    reward: Reward
    masks: Masks
    result: Reconstruction
    """The reconstruction that the update learned from, on the pretrainer's device."""
    patch_loss: Fetch

    def outcome(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Rows of `info`, and the reward (B,): the mean of `patch_reward` over the guided patches. Waits for the GPU.

        `patch_loss` and `patch_reward` (B, L) are 0 on visible patches. If `paid` (B,) is False, the reward of the
        image was not measured and is 0.

        Raises:
            RunError: if the loss or its gradient is not finite.
        """
        patch_loss = self.patch_loss.wait()  # arrives last, so the check has nothing to wait for
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

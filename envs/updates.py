"""One update of the autoencoder and what it pays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.device.transfers import Fetch
from ahm_gym.envs.reward_base import Reward
from ahm_gym.model.pretrainer import Pretrainer


class Update:
    """An update that is begun: a GPU may still be busy with it until `outcome` is asked for.

    Args:
        pretrainer: makes the update.
        reward: looks on.
        images: on the pretrainer's device.
        mask: True where masked, in main memory.
        guided: True where the scores decided, in main memory.

    Raises:
        RunError: where the loss or its gradient is not finite; on a GPU by `outcome`.
    """

    def __init__(
        self,
        pretrainer: Pretrainer,
        reward: Reward,
        images: Float[Tensor, "B C H W"],
        mask: Bool[Tensor, "B L"],
        guided: Bool[Tensor, "B L"],
    ) -> None:
        self.pretrainer, self.reward, self.mask, self.guided = pretrainer, reward, mask, guided
        reward.before(images, mask, guided)
        self.result = pretrainer.step(images, mask)
        reward.after(images, self.result)
        self._patch_loss = Fetch(self.result.patch_loss)

    def outcome(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Rows of `info` and the reward (B,); waits for the GPU.

        `patch_loss` and `patch_reward` (B, L) are 0 where visible; where `paid` (B,) is False, the reward was not
        measured and is 0.
        """
        patch_loss = self._patch_loss.wait()  # the last to come: the check waits no more
        self.pretrainer.check()
        patch_reward = (self.reward(patch_loss, self.mask, self.guided) * self.mask).float()
        rows = {
            "patch_loss": (patch_loss * self.mask).float().numpy(),
            "patch_reward": patch_reward.numpy(),
            "paid": self.reward.paid(len(self.mask)).numpy(),
        }
        count = self.guided.sum(dim=1).clamp(min=1)
        return rows, ((patch_reward * self.guided).sum(dim=1) / count).numpy().astype(np.float64)

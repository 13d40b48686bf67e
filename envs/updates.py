"""One update of the autoencoder, and the reward for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.device.transfers import Fetch
from ahm_gym.envs.reward_base import Reward
from ahm_gym.errors import InputError
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
    pretrainer: Pretrainer,
    reward: Reward,
    images: Float[Tensor, "B C *S"],
    masks: Masks,
    learns: bool = True,
) -> Update:
    """Starts one update of the autoencoder; a GPU may still be computing it until `Update.outcome` is called.

    Args:
        pretrainer: performs the update.
        reward: sees the batch before the update, and the reconstruction.
        images: images on the pretrainer's device.
        masks: masks in main memory.
        learns: whether the weights and the reward's running statistics change; otherwise all is measured the same.

    Raises:
        RunError: if the loss or its gradient is not finite; on a GPU, `Update.outcome` raises it.
    """
    reward.advances = learns
    reward.before(images, masks)
    result = (pretrainer.step if learns else pretrainer.forward)(images, masks)
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


@dataclass(frozen=True)
class Evaluation:
    """What several masks of the same images would be paid; see `MaskingVectorEnv.evaluate`."""

    patch_loss: Float[np.ndarray, "K B L"]
    """The loss of every masked patch, 0 on visible ones."""
    patch_reward: Float[np.ndarray, "K B L"]
    """The reward of every masked patch, 0 on visible ones."""
    reward: Float[np.ndarray, "K B"]
    """The mean reward of the guided patches."""


def check_masks(masks: Any, shape: tuple[int, int]) -> Bool[Tensor, "K B L"]:
    """Masks of the images of a batch, `shape` (B, L).

    Raises:
        InputError: if they have another shape, or not the same number of masked patches everywhere, at least one and
            not all.
    """
    found = torch.as_tensor(masks).detach().cpu()
    if found.ndim != 3 or tuple(found.shape[1:]) != shape or not len(found):
        raise InputError(
            f"the masks have shape {tuple(found.shape)}: expected (number of masks, {shape[0]}, {shape[1]})."
        )
    found = found.bool()
    counts = found.sum(dim=2)
    if bool((counts != counts[0, 0]).any()) or not 0 < int(counts[0, 0]) < shape[1]:
        raise InputError(
            f"the masks hide {int(counts.min())} to {int(counts.max())} of {shape[1]} patches: expected the same "
            "number in every image, at least one and not all."
        )
    return found


def check_guided(guided: Any, masks: Bool[Tensor, "K B L"]) -> Bool[Tensor, "K B L"]:
    """The guided patches of these masks.

    Raises:
        InputError: if they have another shape than the masks, or one is not masked.
    """
    found = torch.as_tensor(guided).detach().cpu()
    if found.shape != masks.shape:
        raise InputError(
            f"the guided patches have shape {tuple(found.shape)}: expected that of the masks, {tuple(masks.shape)}."
        )
    found = found.bool()
    if bool((found & ~masks).any()):
        raise InputError("a guided patch is not masked: guided patches are a part of the mask.")
    return found


def evaluate_masks(
    pretrainer: Pretrainer,
    reward: Reward,
    images: Float[Tensor, "B C *S"],
    masks: Bool[Tensor, "K B L"],
    guided: Bool[Tensor, "K B L"],
) -> Evaluation:
    """Measures K masks of each image in one pass, without an update; the arguments are those of `begin_update`."""
    flat = Masks.of(masks.flatten(0, 1), guided.flatten(0, 1))
    result = pretrainer.forward(images.repeat(len(masks), *[1] * (images.ndim - 1)), flat)
    advanced, reward.advances = reward.advances, False
    parts = [
        _measured(pretrainer, reward, images, Masks.of(*one), Reconstruction(result.loss, *seen))
        for *one, seen in zip(
            masks,
            guided,
            zip(*(part.chunk(len(masks)) for part in result[1:]), strict=True),
            strict=True,
        )
    ]
    reward.advances = advanced
    return Evaluation(*(np.stack(part) for part in zip(*parts, strict=True)))


def _measured(
    pretrainer: Pretrainer,
    reward: Reward,
    images: Float[Tensor, "B C *S"],
    masks: Masks,
    result: Reconstruction,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss and reward of every patch, and the mean reward of every image, for a reconstruction that is known."""
    reward.before(images, masks)
    reward.after(images, result)
    rows, mean = Update(pretrainer, reward, masks, result, Fetch(result.patch_loss)).outcome()
    return rows["patch_loss"], rows["patch_reward"], mean

"""The observation that an environment returns of its batch, and its space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.device.transfers import Fetch, to_device
from ahm_gym.errors import unknown_name
from ahm_gym.masking.drawing import GrowingMask

Observation = np.ndarray | Tensor | dict[str, Any]
"""Embeddings (B, L, D) as float32, an array or a tensor on the device of the autoencoder; or a form of `FORMS`."""

FORMS: tuple[str, ...] = ("patches", "flat", "dict")
"""patches: embeddings (L, D). flat: the same as one vector (L * D,). dict: `patches` (L, D) and `action_mask` (L,)."""


def observation_space(form: str, num_patches: int, dim: int) -> gym.Space[Any]:
    """The space of the observation of one image.

    Raises:
        InputError: if the form is not in `FORMS`.
    """
    if form not in FORMS:
        raise unknown_name("form of the observation", form, FORMS)
    if form == "flat":
        return gym.spaces.Box(-np.inf, np.inf, (num_patches * dim,), np.float32)
    patches = gym.spaces.Box(-np.inf, np.inf, (num_patches, dim), np.float32)
    if form == "patches":
        return patches
    return gym.spaces.Dict({"patches": patches, "action_mask": gym.spaces.Box(0, 1, (num_patches,), np.int8)})


class Observed:
    """The embeddings of a batch, which a GPU may still be computing.

    Args:
        embeddings: one embedding per patch.
        tensors: whether to return read-only tensors on their device instead of arrays.
        form: form of the observation, one of `FORMS`.
    """

    def __init__(self, embeddings: Float[Tensor, "B L D"], tensors: bool, form: str = "patches") -> None:
        self._embeddings = embeddings.float()
        self._fetch = None if tensors else Fetch(self._embeddings)
        self._form = form

    def show(self, mask: GrowingMask) -> Observation:
        """The embeddings, zero where a patch can no longer be masked; returning an array waits for the GPU."""
        patches = self._patches(mask.available if mask.num_done else None)
        if self._form == "flat":
            return patches.reshape(len(patches), -1)
        if self._form == "dict":
            available = mask.available.to(torch.int8)
            in_memory = isinstance(patches, np.ndarray)
            shown = available.numpy() if in_memory else to_device(available, patches.device)
            return {"patches": patches, "action_mask": shown}
        return patches

    def _patches(self, available: Bool[Tensor, "B L"] | None) -> np.ndarray | Tensor:
        if self._fetch is None:
            if available is None:
                return self._embeddings
            hidden = to_device(~available, self._embeddings.device)
            return self._embeddings.masked_fill(hidden[..., None], 0.0)
        shown = self._fetch.wait().numpy()
        return shown.copy() if available is None else np.where(available[..., None], shown, np.float32(0))


def row_of(observation: Observation, index: int) -> Any:
    """The observation of one image of a batch."""
    if isinstance(observation, dict):
        return {name: value[index] for name, value in observation.items()}
    return observation[index]

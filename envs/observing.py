"""The observation that an environment returns of its batch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from ahm_gym.device.transfers import Fetch, to_device

Observation = np.ndarray | Tensor
"""Embeddings (B, L, D) as float32: an array, or a tensor on the device of the autoencoder."""


class Observed:
    """The embeddings of a batch, which a GPU may still be computing.

    Args:
        embeddings: one embedding per patch.
        tensors: whether to return read-only tensors on their device instead of arrays.
    """

    def __init__(self, embeddings: Float[Tensor, "B L D"], tensors: bool) -> None:
        self._embeddings = embeddings.float()
        self._fetch = None if tensors else Fetch(self._embeddings)

    def show(self, available: Bool[Tensor, "B L"] | None = None) -> Observation:
        """The embeddings, zero where a patch is not `available`; returning an array waits for the GPU."""
        if self._fetch is None:
            if available is None:
                return self._embeddings
            hidden = to_device(~available, self._embeddings.device)
            return self._embeddings.masked_fill(hidden[..., None], 0.0)
        shown = self._fetch.wait().numpy()
        return shown.copy() if available is None else np.where(available[..., None], shown, np.float32(0))

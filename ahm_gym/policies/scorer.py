"""The small network with which a policy learns to score patches."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ahm_gym.model.autoencoder import Autoencoder


class PatchScorer(nn.Module):
    """One value per patch, from the features of this and all other patches: a transformer block.

    The last layer starts at zero, so that all patches have the same score at first. The input is standardised
    over patches in each dimension. Standardising within a patch would hide its brightness and contrast.

    Args:
        num_patches: number of patches L.
        dim: width of the input D.
        width: width of the hidden layers.
        num_heads: number of attention heads.
    """

    def __init__(self, num_patches: int, dim: int, *, width: int = 64, num_heads: int = 4) -> None:
        super().__init__()
        self.standardise: nn.BatchNorm1d = nn.BatchNorm1d(dim, affine=False)
        self.project: nn.Linear = nn.Linear(dim, width)
        self.position: nn.Parameter = nn.Parameter(torch.zeros(num_patches, width))
        self.block: Block = Block(width, num_heads, mlp_ratio=2.0, qkv_bias=True)
        self.norm: nn.LayerNorm = nn.LayerNorm(width)
        self.head: nn.Linear = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Float[Tensor, "B L D"]) -> Float[Tensor, "B L"]:
        tokens = self.standardise(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        tokens = self.block(nn.functional.gelu(self.project(tokens)) + self.position)
        return self.head(self.norm(tokens))[..., 0]


class TrainedScorer:
    """A `PatchScorer` and its optimiser.

    Args:
        autoencoder: sets the number of patches, the device and the seed of the initial weights.
        dim: width of the scorer's input.
        learning_rate: learning rate of Adam.
    """

    def __init__(self, autoencoder: Autoencoder, dim: int, *, learning_rate: float = 1e-3) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_from(autoencoder))
            network = PatchScorer(autoencoder.num_patches, dim)
        self.network: PatchScorer = network.to(autoencoder.device).eval()
        self.optimizer: torch.optim.Adam = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def step(self, loss: Float[Tensor, ""]) -> None:
        """One gradient step on this loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.network.eval()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def seed_from(autoencoder: Autoencoder) -> int:
    """A seed computed from the weights: the same for equal autoencoders, different for another initial seed."""
    sample = torch.cat([weight.detach().flatten()[:16].float().cpu() for weight in autoencoder.parameters()])
    return zlib.crc32(sample.numpy().tobytes())

"""The actor-critic: one logit and one value per patch, from the patch and its surroundings."""

from __future__ import annotations

import math
from typing import NamedTuple

import ahm_gym._compat  # noqa: F401

import torch
from jaxtyping import Bool, Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ahm_gym.errors import InputError, unknown_name
from ahm_gym.model.patches import by

LOGIT_CAP: float = 8.0
"""Largest logit; exp(-2 * 8) is well within float32, so that no patch's probability vanishes."""
NUM_HEADS: int = 4
"""Attention heads of a network of kind attention."""


class ActorCriticOutput(NamedTuple):
    """The policy and the values of a batch of observations."""

    logits: Float[Tensor, "B L"]
    """Logits of the next draw, between -8 and 8."""
    values: Float[Tensor, "B L"]
    """Expected reward of each patch if it is masked."""
    image_value: Float[Tensor, " B"]
    """Expected reward of the whole mask."""


class ActorCritic(nn.Module):
    """The interface of A3C's networks: logits and values of observations, and the scale of the rewards.

    A3C calls `forward` twice for each observation, to act and to learn, and expects the same result.
    """

    reward_scale: RunningScale
    records: bool = False
    """Whether `observe` and `forward` never wait for the GPU, so that a `Replay` may record them."""

    def observe(self, observation: Float[Tensor, "B L D"]) -> None:
        """Updates running statistics of the observations, if there are any; called before each rollout."""

    def forward(self, observation: Float[Tensor, "B L D"]) -> ActorCriticOutput:
        raise NotImplementedError


class PatchActorCritic(ActorCritic):
    """A small network over patch embeddings, whose weights are shared by all patches.

    Args:
        num_patches: number of patches L.
        dim: width of an embedding D.
        grid: rows and columns of patches.
        width: width of the hidden layers.
        kind: conv (two 3x3 convolutions over the grid) or attention (one transformer block).
    """

    records: bool = True

    def __init__(
        self, num_patches: int, dim: int, grid: tuple[int, ...], *, width: int = 32, kind: str = "conv"
    ) -> None:
        super().__init__()
        self.normalise: ObservationNorm = ObservationNorm(num_patches, dim)
        self.trunk: PatchTrunk = PatchTrunk(num_patches, dim, grid, width=width, kind=kind)
        self.heads: nn.Linear = nn.Linear(width, 2)
        self.image_head: nn.Linear = nn.Linear(width, 1)
        self.reward_scale: RunningScale = RunningScale()
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def observe(self, observation: Float[Tensor, "B L D"]) -> None:
        self.normalise.follow(observation)

    def forward(self, observation: Float[Tensor, "B L D"]) -> ActorCriticOutput:
        hidden = self.trunk(self.normalise(observation))  # B L width
        logits, values = self.heads(hidden).unbind(dim=-1)
        image_value = self.image_head(hidden.mean(dim=1))[:, 0]
        return ActorCriticOutput(bounded(logits, available_patches(observation)), values, image_value)


def bounded(logits: Float[Tensor, "B L"], available: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Logits minus their mean over the available patches, each between -8 and 8.

    A draw depends on differences of logits only, so nothing fixes their mean. If they were capped without centring,
    they would all drift to the same end of the range, where draws are uniform and gradients vanish.
    """
    count = available.sum(dim=1, keepdim=True).clamp(min=1)
    centred = logits - (logits * available).sum(dim=1, keepdim=True) / count
    return capped(centred, LOGIT_CAP)


def capped(numbers: Tensor, cap: float) -> Tensor:
    """The numbers, limited smoothly to the range from -cap to cap."""
    return cap * (numbers / cap).tanh()


class PatchTrunk(nn.Module):
    """Hidden features of every patch, from its normalised embedding, its position and its surroundings."""

    def __init__(
        self, num_patches: int, dim: int, grid: tuple[int, ...], *, width: int = 32, kind: str = "conv"
    ) -> None:
        super().__init__()
        if math.prod(grid) != num_patches:
            raise InputError(
                f"a grid of {by(grid)} does not hold {num_patches} patches: pass their rows and columns."
            )
        if kind == "attention" and width % NUM_HEADS:
            raise InputError(
                f"width is {width}: with network=attention choose a multiple of its {NUM_HEADS} heads."
            )
        self.project: nn.Linear = nn.Linear(dim, width)
        self.position: nn.Parameter = nn.Parameter(torch.zeros(1, num_patches, width))
        self.context: nn.Module
        if kind == "conv":
            self.context = ConvContext(width, grid)
        elif kind == "attention":
            self.context = Block(width, num_heads=NUM_HEADS, mlp_ratio=2.0, qkv_bias=True)
        else:
            raise unknown_name("network", kind, ["conv", "attention"])

    def forward(self, observation: Float[Tensor, "B L D"]) -> Float[Tensor, "B L width"]:
        return self.context(nn.functional.gelu(self.project(observation) + self.position))


class ConvContext(nn.Module):
    """Two residual convolutions over the grid of patches, 3 patches wide."""

    def __init__(self, width: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid: tuple[int, ...] = grid
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(grid)]
        self.first: nn.Module = convolution(width, width, 3, padding=1)
        self.second: nn.Module = convolution(width, width, 3, padding=1)

    def forward(self, hidden: Float[Tensor, "B L width"]) -> Float[Tensor, "B L width"]:
        image = hidden.transpose(1, 2).unflatten(2, self.grid)
        image = image + nn.functional.gelu(self.first(image))
        image = image + nn.functional.gelu(self.second(image))
        return image.flatten(2).transpose(1, 2)


class ObservationNorm(nn.Module):
    """Standardises embeddings by a running mean for each patch and a running deviation for each dimension.

    The embeddings drift while the autoencoder trains, and the part that is the same in every image (the
    position) would drown the differences. Rows of zeros (patches that can no longer be masked) stay zero.
    """

    momentum: float = 0.02
    """Smallest weight of a new batch in the running statistics."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(num_patches, dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, observation: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        shown = available_patches(observation)[..., None]
        return (observation - self.mean) * (self.variance + 1e-6).rsqrt() * shown

    def follow(self, observation: Float[Tensor, "B L D"]) -> None:
        """Updates the statistics with a new batch."""
        with torch.no_grad():
            shown = available_patches(observation)[..., None]
            self.count += 1
            rate = (1.0 / self.count).clamp(min=self.momentum)
            count = shown.sum(dim=0)  # L 1
            mean = torch.where(count > 0, observation.sum(dim=0) / count.clamp(min=1), self.mean)
            self.mean.lerp_(mean, rate)
            spread = ((observation - self.mean) * shown).square().sum(dim=(0, 1)) / count.sum().clamp(min=1)
            self.variance.lerp_(spread, rate)


class RunningScale(nn.Module):
    """Running root mean square of the rewards, the unit of returns and values."""

    momentum: float = 0.02
    """Smallest weight of new rewards in the running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.square: Tensor
        self.count: Tensor
        self.register_buffer("square", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def follow(self, mean_square: Float[Tensor, ""]) -> None:
        """Updates the statistics with the mean square of new rewards."""
        self.count += 1
        rate = (1.0 / self.count).clamp(min=self.momentum)
        self.square.lerp_(mean_square, rate)

    def value(self) -> Float[Tensor, ""]:
        """The root mean square so far."""
        return self.square.clamp(min=1e-12).sqrt()


def available_patches(observation: Float[Tensor, "B L D"]) -> Bool[Tensor, "B L"]:
    """False for patches that can no longer be masked, which the environment shows as zeros."""
    return observation.ne(0).any(dim=-1)


def square_grid(num_patches: int) -> tuple[int, int]:
    """Rows and columns of a square grid of that many patches.

    Raises:
        InputError: if the patches do not form a square.
    """
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise InputError(f"{num_patches} patches do not form a square: pass the grid, its rows and columns.")
    return side, side

"""The convolutional agent of AHM, which sees the raw image instead of embeddings."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ahm_gym.agents.a3c import A3C
from ahm_gym.agents.losses import Later, StepLoss
from ahm_gym.agents.networks import (
    LOGIT_CAP,
    ActorCritic,
    ActorCriticOutput,
    RunningScale,
    available_patches,
    bounded,
    capped,
)
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.masking.selection import order_with_ties
from ahm_gym.model.patches import unpatchify

DRAWS: tuple[str, ...] = ("ordered", "top_k")
CRITICS: tuple[str, ...] = ("linear", "relu6")


class AHM2025(A3C):
    """The policy and value network of AHM, trained by `A3C` without the defects of the released code.

    After "Adaptive Hard Masking" (Xu, Liu, Xu, Lukasiewicz, IEEE TMI 44(1), 2025). Observations are raw
    pixels, patch by patch, as the U-Net autoencoder provides them. An option restores each defect:

    | in the released code | here | option that restores it |
    |---|---|---|
    | masks the k most probable patches: no sampling, no entropy | ordered draws, entropy bonus | `draws="top_k"` |
    | -log pi of every patch, masked or not | log-probability of the draws | `draws="top_k"` |
    | critic capped at 6 by ReLU6, unscaled rewards | no cap, rewards of root mean square 1 | `critic="relu6"` |
    | learning rate decayed at every update | constant | `learning_rate_decay=0.99` |
    | reward cells of 20 px over patches of 16 px | the cells are the patches | reward `ahm2025:20` |
    | not asynchronous | `num_workers` processes | `num_workers=1` |

    Args:
        observation_shape: number of patches L and pixel values per patch P.
        grid: rows and columns of patches; None means a square.
        channels: channels of the images.
        num_workers: as for `A3C`.
        draws: ordered or top_k; with top_k the policy is an independent probability for each patch, as published.
        critic: linear or relu6.
        learning_rate: learning rate of Adam.
        learning_rate_decay: factor on the learning rate after every update.
        entropy_coef: weight of the mean entropy of the draws; not used by top_k.
        value_coef: weight of the critic's loss.
        logit_cost: as for `A3C`; not used by top_k.
        max_grad_norm: largest norm of the gradient, which is clipped to it.
        width: channels of the network.
        seed: seed of the network's initial weights.
        device: device of the network.

    Raises:
        InputError: if observations are not square patches whose side is a power of two, a name is unknown, or a
            number is out of range.
    """

    sees_pixels: bool = True

    def __init__(
        self,
        observation_shape: tuple[int, int],
        *,
        grid: tuple[int, ...] | None = None,
        channels: int = 1,
        num_workers: int = 1,
        draws: str = "ordered",
        critic: str = "linear",
        learning_rate: float = 2e-4,
        learning_rate_decay: float = 1.0,
        entropy_coef: float = 0.02,
        value_coef: float = 0.5,
        logit_cost: float = 0.005,
        max_grad_norm: float = 1.0,
        width: int = 64,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if draws not in DRAWS:
            raise unknown_name("kind of draws", draws, DRAWS)
        if critic not in CRITICS:
            raise unknown_name("critic", critic, CRITICS)
        if not 0.0 < learning_rate_decay <= 1.0:
            raise InputError(
                f"learning_rate_decay is {learning_rate_decay}: choose a number above 0 and up to 1."
            )
        if grid is not None and len(grid) != 2:
            raise InputError("agent ahm2025 knows images and no volumes: choose agent a3c.")
        patch_size = patch_size_of(observation_shape[1], channels)
        self.draws: str = draws
        self.learning_rate: float = learning_rate
        self.learning_rate_decay: float = learning_rate_decay

        def network(grid: tuple[int, int]) -> ConvActorCritic:
            return ConvActorCritic(grid, patch_size, channels, width=width, critic=critic, draws=draws)

        super().__init__(
            observation_shape,
            grid=grid,
            num_workers=num_workers,
            entropy_coef=entropy_coef if draws == "ordered" else 0.0,
            value_coef=value_coef,
            logit_cost=logit_cost,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            width=width,
            network=network,
            seed=seed,
            device=device,
        )

    def draw(
        self,
        logits: Float[Tensor, "B L"],
        available: Bool[Tensor, "B L"],
        uniform: Float[Tensor, "B L"],
    ) -> Int[Tensor, "B L"]:
        if self.draws == "ordered":
            return super().draw(logits, available, uniform)
        return order_with_ties(logits.detach().masked_fill(~available, -torch.inf), uniform)

    def step_loss(
        self,
        output: ActorCriticOutput,
        order: Int[Tensor, "B L"],
        available: Bool[Tensor, "B L"],
        chosen: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        patch_return: Float[Tensor, "B L"],
        image_return: Float[Tensor, " B"],
        later: Later | None,
        weight: Float[Tensor, " B"] | None = None,
    ) -> tuple[StepLoss, Later]:
        if self.draws == "ordered":
            returns = (patch_return, image_return)
            return super().step_loss(output, order, available, chosen, masked, *returns, later, weight)
        zeros = torch.zeros_like(image_return)
        return independent_loss(output, patch_return, masked.any(dim=1)), Later(zeros, zeros)

    def write(self) -> None:
        rate = self.learning_rate * self.learning_rate_decay ** int(self.writes)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        super().write()


class ConvActorCritic(ActorCritic):
    """Convolutions from the image down to one logit and one value per patch.

    A 3x3 convolution is followed by convolutions of stride 2 until each patch is one point. Then there is one branch
    of three convolutions for the policy and one for the values.

    Args:
        grid: rows and columns of patches.
        patch_size: side of a patch in pixels, a power of two.
        channels: channels of the images.
        width: channels of the hidden layers.
        draws: ordered, for which only differences of logits count, or top_k, for which each is a probability.
        critic: linear, or relu6, which limits values to 0 to 6 and leaves rewards unscaled.
    """

    records: bool = True

    def __init__(
        self,
        grid: tuple[int, int],
        patch_size: int,
        channels: int,
        *,
        width: int = 64,
        critic: str = "linear",
        draws: str = "ordered",
    ) -> None:
        super().__init__()
        self.draws: str = draws
        self.grid: tuple[int, int] = grid
        self.patch_size: int = patch_size
        halvings = patch_size.bit_length() - 1
        self.stem: nn.Sequential = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            *(layer for _ in range(halvings) for layer in halving(width)),
        )
        self.policy: nn.Sequential = branch(width)
        self.value: nn.Sequential = branch(width)
        self.policy_head: nn.Conv2d = nn.Conv2d(width, 1, 1)
        self.value_head: nn.Conv2d = nn.Conv2d(width, 1, 1)
        # All patches are equally likely at first. A critic of zeros would get no gradient through ReLU6.
        for parameter in self.policy_head.parameters():
            nn.init.zeros_(parameter)
        self.cap: nn.Module = nn.ReLU6() if critic == "relu6" else nn.Identity()
        self.reward_scale: RunningScale = FixedScale() if critic == "relu6" else RunningScale()

    def forward(self, observation: Float[Tensor, "B L D"]) -> ActorCriticOutput:
        hidden = self.stem(unpatchify(observation, self.grid, self.patch_size))  # B width rows columns
        logits = self.policy_head(self.policy(hidden)).flatten(1)
        values = self.cap(self.value_head(self.value(hidden))).flatten(1)
        if self.draws == "ordered":
            logits = bounded(logits, available_patches(observation))
        else:  # an independent probability for every patch
            logits = capped(logits, LOGIT_CAP)
        return ActorCriticOutput(logits, values, values.mean(dim=1))


class FixedScale(RunningScale):
    """Leaves rewards unscaled."""

    def follow(self, mean_square: Float[Tensor, ""]) -> None:
        return None

    def value(self) -> Float[Tensor, ""]:
        return torch.ones_like(self.square)


def halving(width: int) -> list[nn.Module]:
    """A convolution that halves the resolution, with batch normalisation."""
    return [nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]


def branch(width: int) -> nn.Sequential:
    """Three convolutions at the resolution of the patches."""
    convolutions = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
    return nn.Sequential(*(layer for convolution in convolutions for layer in (convolution, nn.ReLU())))


def independent_loss(
    output: ActorCriticOutput, patch_return: Float[Tensor, "B L"], paid: Bool[Tensor, " B"]
) -> StepLoss:
    """-log(sigmoid(logit)) * (reward - value), averaged over all patches of the paid images, as published.

    This is not a policy gradient, because it does not depend on which patches were masked.
    """
    weight = paid[:, None] / (paid.sum() * patch_return.shape[1]).clamp(min=1)
    error = patch_return - output.values
    zero = torch.zeros((), device=patch_return.device)
    return StepLoss(
        policy=-(functional.logsigmoid(output.logits) * error.detach() * weight).sum(),
        value=(error.square() * weight).sum(),
        entropy=zero,
        relative_entropy=zero,
        logit_square=zero,
    )


def patch_size_of(dim: int, channels: int) -> int:
    """Side, in pixels, of a square patch of `dim` values.

    Raises:
        InputError: if the patch is not square, or its side is not a power of two.
    """
    side = math.isqrt(max(dim // max(channels, 1), 0))
    if side < 1 or side * side * channels != dim or side & (side - 1):
        raise InputError(
            f"observations of {dim} values per patch are not the pixels of square patches with {channels} channels "
            "and a side of 2, 4, 8, 16, ... px: agent ahm2025 sees the raw image; choose `model=unet` and such a "
            "`patch_size`, or agent a3c."
        )
    return side

"""Patch-wise networks for stable-baselines3, in place of its flat perceptrons.

SB3 would flatten an observation of 196 patches into 37,632 inputs. Here every patch passes through the same small
network, which also sees its neighbours; the actor returns one number per patch, the critic pools over patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from ahm_gym.agents.networks import LOGIT_CAP, PatchTrunk, available_patches, capped, square_grid

MEAN_CAP: float = 0.5
"""Largest mean of a score. With a deviation of a third nearly all scores stay inside the box, so few are clipped."""


class PatchFeatures(BaseFeaturesExtractor):
    """Hidden features of every patch, flattened to (B, L * width): the input of SB3's networks.

    Args:
        observation_space: `Box` of shape (L, D).
        grid: rows and columns of patches; None means a square.
        width: features per patch.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], grid: tuple[int, ...] | None = None, width: int = 32
    ) -> None:
        assert isinstance(observation_space, spaces.Box)
        num_patches, dim = observation_space.shape
        super().__init__(observation_space, features_dim=num_patches * width)
        self.trunk: PatchTrunk = PatchTrunk(num_patches, dim, grid or square_grid(num_patches), width=width)

    def forward(self, observations: Float[Tensor, "B L D"]) -> Float[Tensor, "B features"]:
        return self.trunk(observations).flatten(1)


class PatchHead(nn.Module):
    """One number per patch from flattened features: `bias` before training, and within `cap` if one is given."""

    def __init__(
        self, num_patches: int, features_dim: int, cap: float | None = None, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.num_patches: int = num_patches
        self.cap: float | None = cap
        self.linear: nn.Linear = nn.Linear(features_dim // num_patches, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, bias)

    def forward(self, features: Float[Tensor, "B features"]) -> Float[Tensor, "B L"]:
        numbers = self.linear(features.unflatten(1, (self.num_patches, -1)))[..., 0]
        return numbers if self.cap is None else capped(numbers, self.cap)


class PatchActionValue(nn.Module):
    """Q of a whole score vector: the mean over patches of a small network of a patch's features and score.

    The mean score of the image is subtracted, because only the order of scores matters: otherwise the critic would
    drive all of them to the edge of the box.
    """

    def __init__(self, num_patches: int, features_dim: int, num_outputs: int = 1, hidden: int = 64) -> None:
        super().__init__()
        self.num_patches: int = num_patches
        self.layers: nn.Sequential = nn.Sequential(
            nn.Linear(features_dim // num_patches + 1, hidden), nn.ReLU(), nn.Linear(hidden, num_outputs)
        )

    def forward(self, features_and_scores: Float[Tensor, "B inputs"]) -> Float[Tensor, "B outputs"]:
        scores = features_and_scores[:, -self.num_patches :, None]
        scores = scores - scores.mean(dim=1, keepdim=True)
        features = features_and_scores[:, : -self.num_patches].unflatten(1, (self.num_patches, -1))
        return self.layers(torch.cat([features, scores], dim=-1)).mean(dim=1)


class ActorAndPooledCritic(nn.Module):
    """The two outputs of an actor-critic: one number per patch, and the mean of the patches' features."""

    def __init__(self, num_patches: int, features_dim: int, cap: float) -> None:
        super().__init__()
        self.actor: PatchHead = PatchHead(num_patches, features_dim, cap)
        self.latent_dim_pi: int = num_patches
        self.latent_dim_vf: int = features_dim // num_patches

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Float[Tensor, "B features"]) -> Float[Tensor, "B L"]:
        return self.actor(features)

    def forward_critic(self, features: Float[Tensor, "B features"]) -> Float[Tensor, "B width"]:
        return features.unflatten(1, (self.latent_dim_pi, -1)).mean(dim=1)


class PatchWise:
    """Mixin that makes an actor-critic policy of SB3 or sb3-contrib patch-wise; it must be the first base class."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": PatchFeatures, "ortho_init": False} | options)

    def _build_mlp_extractor(self) -> None:
        num_patches = (self.observation_space.shape or (0,))[0]
        cap = MEAN_CAP if isinstance(self.action_space, spaces.Box) else LOGIT_CAP
        self.mlp_extractor: nn.Module = ActorAndPooledCritic(num_patches, self.features_dim, cap)  # pyright: ignore[reportAttributeAccessIssue]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # pyright: ignore[reportAttributeAccessIssue]
        # The number of each patch is already the mean or the logit.
        self.action_net: nn.Module = nn.Identity()
        self.optimizer: torch.optim.Optimizer = self.optimizer_class(  # pyright: ignore[reportAttributeAccessIssue]
            self.parameters(),  # pyright: ignore[reportAttributeAccessIssue]
            lr=lr_schedule(1),
            **self.optimizer_kwargs,  # pyright: ignore[reportAttributeAccessIssue]
        )


class PatchActorCriticPolicy(PatchWise, ActorCriticPolicy):
    """For PPO, A2C and TRPO."""


def patch_wise_actor(actor: Any) -> Any:
    """Replaces the layers after the features in an actor of SAC, TQC or TD3."""
    num_patches = actor.observation_space.shape[0]
    if isinstance(actor, TD3Actor):
        actor.mu = nn.Sequential(PatchHead(num_patches, actor.features_dim), nn.Tanh())
    else:
        actor.latent_pi = nn.Identity()
        actor.mu = PatchHead(num_patches, actor.features_dim, cap=2.0)
        actor.log_std = PatchHead(num_patches, actor.features_dim, bias=-1.0)
    return actor.to(actor.device)


def patch_wise_critic(critic: Any, features_dim: int, num_outputs: int = 1) -> Any:
    """Replaces the networks after the features in a critic of SAC, TQC or TD3."""
    num_patches = critic.observation_space.shape[0]
    for index in range(len(critic.q_networks)):
        network = PatchActionValue(num_patches, features_dim, num_outputs)
        setattr(critic, f"qf{index}", network)
        critic.q_networks[index] = network
    return critic.to(critic.device)


class PatchOffPolicy:
    """Mixin that makes a policy of SAC, TQC or TD3 patch-wise; it must be the first base class."""

    num_outputs: int = 1

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": PatchFeatures, "net_arch": []} | options)

    def make_actor(self, features_extractor: Any = None) -> Any:
        return patch_wise_actor(super().make_actor(features_extractor))  # pyright: ignore[reportAttributeAccessIssue]

    def make_critic(self, features_extractor: Any = None) -> Any:
        critic = super().make_critic(features_extractor)  # pyright: ignore[reportAttributeAccessIssue]
        return patch_wise_critic(critic, critic.features_extractor.features_dim, self.num_outputs)


class PatchSACPolicy(PatchOffPolicy, SACPolicy):
    """For SAC."""


class PatchTD3Policy(PatchOffPolicy, TD3Policy):
    """For TD3."""


class DuelingHead(nn.Module):
    """Q of every patch: the value of the state, from all patches, plus the advantage of choosing this patch.

    After "Dueling Network Architectures" (Wang et al., ICML 2016).
    """

    def __init__(self, num_patches: int, features_dim: int) -> None:
        super().__init__()
        self.advantage: PatchHead = PatchHead(num_patches, features_dim)
        self.value: nn.Linear = nn.Linear(features_dim // num_patches, 1)

    def forward(self, features: Float[Tensor, "B features"]) -> Float[Tensor, "B L"]:
        advantage = self.advantage(features)
        pooled = features.unflatten(1, (self.advantage.num_patches, -1)).mean(dim=1)
        return self.value(pooled) + advantage - advantage.mean(dim=1, keepdim=True)


class PatchQNetwork(QNetwork):
    """Q of every patch; a patch that can no longer be masked never has the highest."""

    def forward(self, obs: Any) -> Float[Tensor, "B L"]:
        values = super().forward(obs)
        worse = values.detach().amin(dim=1, keepdim=True) - 1.0
        return torch.where(available_patches(obs), values, worse)


class PatchDQNPolicy(DQNPolicy):
    """For DQN, one patch per step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": PatchFeatures, "net_arch": []} | options)

    def make_q_net(self) -> QNetwork:
        network = PatchQNetwork(**self._update_features_extractor(self.net_args, features_extractor=None))
        num_patches = int(np.prod(network.action_space.n))
        network.q_net = nn.Sequential(DuelingHead(num_patches, network.features_dim))
        return network.to(self.device)

"""stable-baselines3's actor-critic with the Plackett-Luce distribution in place of a Gaussian over scores."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from ahm_gym.agents.networks import LOGIT_CAP
from ahm_gym.agents.plackett_luce import PlackettLuceScores
from ahm_gym.agents.sb3_policies import ActorAndPooledCritic, PatchActorCriticPolicy
from ahm_gym.errors import InputError


class PlackettLuceDistribution(Distribution):
    """`PlackettLuceScores` with the methods that SB3 expects.

    Args:
        num_draws: number of draws that count; None counts all patches.
    """

    def __init__(self, num_draws: int | None = None) -> None:
        super().__init__()
        self.num_draws: int | None = num_draws

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """No layer: the actor's numbers are the logits already."""
        return nn.Identity()

    def proba_distribution(self, logits: Tensor) -> PlackettLuceDistribution:
        """Sets the logits (B, L)."""
        self.distribution: PlackettLuceScores = PlackettLuceScores(logits, self.num_draws)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.distribution.log_prob(actions)

    def entropy(self) -> Tensor:
        return self.distribution.entropy()

    def sample(self) -> Tensor:
        return self.distribution.sample()

    def mode(self) -> Tensor:
        return self.distribution.mode

    def actions_from_params(self, logits: Tensor, deterministic: bool = False) -> Tensor:
        return self.proba_distribution(logits).get_actions(deterministic)

    def log_prob_from_params(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        actions = self.actions_from_params(logits)
        return actions, self.log_prob(actions)


class PatchPlackettLucePolicy(PatchActorCriticPolicy):
    """For PPO and A2C: patches are drawn in order without replacement, as A3C draws them.

    Args:
        num_draws: number of draws that count, best the number of patches that the environment guides; None counts all.
        args: those of SB3's `ActorCriticPolicy`.
        options: the same.

    Raises:
        InputError: if actions are not scores of patches.
    """

    def __init__(self, *args: Any, num_draws: int | None = None, **options: Any) -> None:
        self.num_draws: int | None = num_draws
        super().__init__(*args, **options)

    def _build_mlp_extractor(self) -> None:
        if not isinstance(self.action_space, spaces.Box):
            raise InputError("PatchPlackettLucePolicy scores patches: use it with AHM/Masking-v0.")
        num_patches = (self.observation_space.shape or (0,))[0]
        self.mlp_extractor: nn.Module = ActorAndPooledCritic(num_patches, self.features_dim, LOGIT_CAP)  # pyright: ignore[reportAttributeAccessIssue]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist: Distribution = PlackettLuceDistribution(self.num_draws)
        del self.log_std  # of the Gaussian that SB3 has built
        options: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer: torch.optim.Optimizer = self.optimizer_class(self.parameters(), **options)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        return self.action_dist.proba_distribution(self.action_net(latent_pi))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"num_draws": self.num_draws}

"""A mask policy as an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.agents.base import Agent, Callback, update_metrics
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import Share
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.policies.base import MaskPolicy


class PolicyAgent(Agent):
    """A mask policy as an agent: the simplest loop of pretraining.

    A policy scores images, which observations do not contain, so it is given the environment's `patches`.

    Args:
        policy: mask policy; it learns from every update if it overrides `observe`.
    """

    takes_tensors: bool = True

    def __init__(self, policy: MaskPolicy) -> None:
        self.policy: MaskPolicy = policy
        self.guided_fraction: Share = policy.guided_fraction
        self.spread_fraction: Share = policy.spread_fraction
        self.mask_ratio: Share | None = policy.mask_ratio
        self.generator: torch.Generator = torch.Generator()

    def learn(
        self,
        make_env: Callable[[], MaskingVectorEnv],
        num_steps: int,
        *,
        seed: int | None,
        callback: Callback | None = None,
    ) -> None:
        env = make_env()
        if seed is not None:
            self.generator.manual_seed(seed)
        env.reset(seed=seed)
        for _ in range(num_steps):
            if self.mask_ratio is not None:
                env.plan_masks()  # the policy may have changed its mind since these images were loaded
            patches = env.patches
            scores = self.policy.score(patches, self.generator).cpu().numpy()
            ended = False
            while not ended:
                _, reward, terminated, _, info = env.step(scores)
                ended = bool(terminated.all())
            masks = Masks(*(torch.as_tensor(info[name]) for name in ("mask", "guided", "weight")))
            patch_loss = torch.as_tensor(info["patch_loss"])
            metrics = update_metrics(info, reward) | self.policy.observe(patches, masks, patch_loss)
            if callback is not None and callback(metrics):
                return

    def act(self, observation: Any, *, deterministic: bool) -> Float[Tensor, "B L"]:
        raise InputError("a mask policy scores images, which an observation does not contain: call score().")

    def score(self, patches: PatchBatch) -> Float[Tensor, "B L"]:
        return self.policy.score(patches, torch.Generator().manual_seed(0))

    def weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return self.policy.weigh(patches, masks, generator)

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.generator.set_state(state["generator"])

"""Who takes part: agents and mask policies by name, or by the place of their class."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.agents import agent_class, agents
from ahm_gym.agents.base import Agent, sees_pixels
from ahm_gym.errors import InputError, say, unknown_name
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.policies import POLICIES, MaskPolicy, policies
from ahm_gym.pretraining.mask_source import agent_options, canonical, make_mask_source
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.policy_options import split_options
from ahm_gym.pretraining.trained_agent import FrozenAgent

FROZEN: str = "agent"
"""The policy that needs the folder of a run, so it has no place in the default."""
PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def make_participant(name: str, autoencoder: Autoencoder, model: str, seed: int) -> Agent:
    """The agent of that name, or the mask policy of that name or place as an agent.

    Raises:
        InputError: if the name is unknown, or the agent does not fit the autoencoder.
    """
    device = autoencoder.device
    if not is_place(name):
        base, pairs = split_options(name)
        options = agent_options(base, pairs, autoencoder, model)
        given: dict[str, Any] = {"num_workers": 1, "seed": seed, "device": device, "options": options}
        return make_mask_source(base, autoencoder, **given)
    cls = class_at(name)
    if issubclass(cls, MaskPolicy):
        return PolicyAgent(cls(autoencoder))
    shape = (autoencoder.num_patches, autoencoder.dim)
    pixels: dict[str, Any] = {}
    if sees_pixels(cls):
        if not autoencoder.embeds_pixels:
            raise InputError(f"agent {name} sees the raw image: choose `model=unet`.")
        pixels = {"channels": autoencoder.channels}
    make: Any = cls
    return make(shape, grid=autoencoder.grid, seed=seed, device=device, **pixels)


def is_place(name: str) -> bool:
    """Whether this is MODULE:CLASS rather than a registered name, which may also have a colon."""
    return bool(PLACE.fullmatch(name)) and name.partition(":")[0] not in {*policies(), *agents()}


def class_at(place: str) -> type[Agent] | type[MaskPolicy]:
    """The class at MODULE:CLASS.

    Raises:
        InputError: if it cannot be imported, or is neither an agent nor a mask policy.
    """
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise InputError(
            f"`policies={place}` cannot be imported ({type(error).__name__}: {error}): write MODULE:CLASS, and name "
            "the folder of the module in PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, (Agent, MaskPolicy))):
        raise InputError(
            f"`policies={place}` is neither an Agent nor a MaskPolicy: let it inherit from ahm_gym.agents.Agent or "
            "ahm_gym.policies.MaskPolicy."
        )
    return found


def check_names(names: tuple[str, ...]) -> None:
    """Raises InputError for a name that stands for nothing or has an unknown option, before any work."""
    for name in names:
        if is_place(name):
            class_at(name)
        elif name.partition(":")[0] not in {*policies(), *agents()}:
            raise unknown_name("policy", name, [*policies(), *agents()])
        else:
            canonical(name)


def everyone(autoencoder: Autoencoder, model: str) -> tuple[str, ...]:
    """All policies and agents that can be made for this autoencoder; a note names those that are left out and why."""
    found = []
    for name in dict.fromkeys([*policies(), *agents()]):
        if name == FROZEN:
            continue
        try:
            if (
                name not in POLICIES
                and name in agents()
                and sees_pixels(agent_class(name))
                and not autoencoder.embeds_pixels
            ):
                say(f"note: {name} sees raw pixels, which `model={model}` does not show, and is left out.")
                continue
            make_participant(name, autoencoder, model, seed=0)
        except Exception as error:
            say(f"note: {name} is left out: {error}")
        else:
            found.append(name)
    return tuple(found)


def learns(agent: Agent) -> bool:
    """Whether it learns: every agent does, and a mask policy that overrides `observe`."""
    if not isinstance(agent, PolicyAgent):
        return True
    return type(agent.policy).observe is not MaskPolicy.observe


def scores_of(agent: Agent, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
    """Scores of the patches without exploration; the generator is for a policy whose scores are random."""
    if isinstance(agent, PolicyAgent) and not isinstance(agent.policy, FrozenAgent):
        return agent.policy.score(patches, generator)
    return agent.score(patches)

"""Saves and loads trained agents, and uses them as mask policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ahm_gym.agents import make_agent
from ahm_gym.agents.base import Agent
from ahm_gym.errors import InputError
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import Share
from ahm_gym.masking.selection import PatchBatch
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.patches import by
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.policies.base import MaskPolicy
from ahm_gym.runs.schema import Schema, checked, fits
from ahm_gym.runs.storage import check_loaded, load_state, save_state

Count: TypeAlias = Annotated[int, Field(ge=1, le=1 << 24)]
Pair: TypeAlias = Annotated[list[Count], Field(min_length=2, max_length=2)]


class AgentFile(Schema):
    """The state in the `agent` folder of a run."""

    agent: str
    options: dict[str, Any]
    observation_shape: Pair
    grid: Annotated[list[Count], Field(min_length=2, max_length=3)]
    model: str
    patch_size: Count
    channels: Count
    embedding: dict[str, Tensor]
    state: dict[str, Any]


class FrozenAgent(MaskPolicy):
    """A trained agent, frozen, as a mask policy with the shares of the agent.

    It embeds images with the patch and position embedding that the agent was trained with, because the agent cannot
    interpret the embedding of another autoencoder.

    Args:
        agent: trained agent.
        embedder: autoencoder with the patch and position embedding from the agent's training.
    """

    def __init__(self, agent: Agent, embedder: Autoencoder) -> None:
        self.agent: Agent = agent
        self.guided_fraction: Share = agent.guided_fraction
        self.spread_fraction: Share = agent.spread_fraction
        self.mask_ratio: Share | None = agent.mask_ratio
        self.embedder: Autoencoder = embedder.eval()

    def score(self, patches: PatchBatch, generator: torch.Generator) -> Float[Tensor, "B L"]:
        with torch.no_grad():
            embeddings = self.embedder.embed(patches.images)
        return self.agent.act(embeddings, deterministic=True)

    def weigh(self, patches: PatchBatch, masks: Masks, generator: torch.Generator) -> Float[Tensor, "B L"]:
        return self.agent.weigh(patches, masks, generator)

    def state_dict(self) -> dict[str, Any]:
        """The weights of the agent itself, because its run may have changed by the time this one is resumed."""
        return {"agent": self.agent.state_dict(), "embedding": self.embedder.embedding_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"])
        self.embedder.load_state_dict(self.embedder.state_dict() | state["embedding"])


def save_agent(
    folder: Path, name: str, options: dict[str, Any], agent: Agent, model: str, autoencoder: Autoencoder
) -> None:
    """Writes an agent for `from_run`, with the patch embedding that it was trained with."""
    save_state(
        folder,
        {
            "agent": name,
            "options": options,
            "observation_shape": [autoencoder.num_patches, autoencoder.dim],
            "grid": list(autoencoder.grid),
            "model": model,
            "image_size": list(autoencoder.image_size),
            "patch_size": autoencoder.patch_size,
            "channels": autoencoder.channels,
            "embedding": autoencoder.embedding_state(),
            "state": agent.state_dict(),
        },
    )


def from_run(autoencoder: Autoencoder, run: str) -> FrozenAgent:
    """Loads the trained agent of a pretraining run as a mask policy for `autoencoder`.

    Raises:
        InputError: if the folder holds no agent, or the agent was trained with another grid or number of channels.
    """
    folder = Path(run) / "agent"
    if not (folder / "state.json").is_file():
        raise InputError(
            f"{run} holds no trained agent: give the folder of a run with a learning agent, such as `policy=a3c`."
        )
    saved = checked(AgentFile, load_state(folder), folder / "state.json")
    own = (saved.grid, saved.patch_size, saved.channels)
    wanted = (list(autoencoder.grid), autoencoder.patch_size, autoencoder.channels)
    if own != wanted:
        raise InputError(
            f"the agent in {run} was trained with a grid of {by(own[0])} patches of {own[1]} px with "
            f"{own[2]} channels, and this run has {by(wanted[0])} of {wanted[1]} px with {wanted[2]}: "
            "choose the same `image_size` and `patch_size`, and data with as many channels."
        )
    num_patches, dim = saved.observation_shape
    device = autoencoder.device
    options = saved.options | {"grid": tuple(saved.grid), "seed": 0, "device": device}
    check_loaded(saved.embedding, folder)
    with fits(folder):
        agent = make_agent(saved.agent, (num_patches, dim), **options)
        agent.load_state_dict(saved.state)
        embedder = build_autoencoder(
            saved.model,
            image_size=autoencoder.image_size,
            patch_size=autoencoder.patch_size,
            channels=autoencoder.channels,
        )
        embedder.load_state_dict(embedder.state_dict() | saved.embedding)
    return FrozenAgent(agent, embedder.to(device))

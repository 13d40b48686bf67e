"""Agents that learn masks, by name."""

if __name__ == "agents":
    raise ImportError(
        "import this package as ahm_gym.agents: the bare name belongs to other distributions too."
    )

import importlib
from typing import Any

from ahm_gym.agents.base import Agent
from ahm_gym.errors import unknown_name

AGENTS = {"a3c": "ahm_gym.agents.a3c:A3C", "ahm2025": "ahm_gym.agents.ahm2025:AHM2025"}
"""Name to class, imported when asked for. A class takes the observation's shape and keyword arguments."""

__all__ = ["AGENTS", "Agent", "agent_class", "make_agent"]


def make_agent(name: str, observation_shape: tuple[int, int], **options: Any) -> Agent:
    """A new agent of that name.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    return agent_class(name)(observation_shape, **options)


def agent_class(name: str) -> Any:
    """The class of that name.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    if name not in AGENTS:
        raise unknown_name("agent", name, AGENTS)
    module, _, cls = AGENTS[name].partition(":")
    return getattr(importlib.import_module(module), cls)

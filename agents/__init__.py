"""Agents that learn masks, by name."""

if __name__ == "agents":
    raise ImportError(
        "import this package as ahm_gym.agents: the bare name belongs to other distributions too."
    )

import inspect
from importlib.metadata import EntryPoint
from typing import Any

from ahm_gym.agents.base import Agent
from ahm_gym.errors import InputError
from ahm_gym.plugins import load, with_installed

SB3 = ("ppo", "a2c", "sac", "td3", "dqn", "maskable_ppo", "trpo", "tqc")
AGENTS = {"a3c": "ahm_gym.agents.a3c:A3C", "ahm2025": "ahm_gym.agents.ahm2025:AHM2025"} | {
    name: f"ahm_gym.agents.sb3:{name}" for name in SB3
}
"""Name to class, imported when asked for. A class takes what `make_agent` hands on."""

__all__ = ["AGENTS", "Agent", "agent_class", "agents", "make_agent"]


def agents() -> dict[str, EntryPoint]:
    """Ours, and those that installed packages add as entry points of the group `ahm_gym.agents`."""
    return with_installed("ahm_gym.agents", AGENTS)


def make_agent(
    name: str, observation_shape: tuple[int, int], *, num_workers: int = 1, **options: Any
) -> Agent:
    """A new agent of that name.

    Args:
        name: one of `agents()`.
        observation_shape: patches L and width D.
        num_workers: handed on where it is not 1, to a class that names it.
        options: handed on; the training loop gives `grid`, `seed` and `device`.

    Raises:
        InputError: for an unknown name, with the nearest one; for several workers of an agent that has one; for
            what is no `Agent`.
    """
    cls = agent_class(name)
    if num_workers != 1:
        if "num_workers" not in inspect.signature(cls).parameters:
            raise InputError(f"agent {name} learns in one process and takes 1 worker, not {num_workers}.")
        options["num_workers"] = num_workers
    agent = cls(observation_shape, **options)
    if not isinstance(agent, Agent):
        raise not_an_agent(name, type(agent))
    return agent


def agent_class(name: str) -> Any:
    """The class of that name, or the function that makes one.

    Raises:
        InputError: for an unknown name, with the nearest one; for a class that does not inherit from `Agent`.
    """
    cls = load("agent", name, agents())
    if isinstance(cls, type) and not issubclass(cls, Agent):
        raise not_an_agent(name, cls)
    return cls


def not_an_agent(name: str, cls: type) -> InputError:
    return InputError(
        f"agent {name} is a {cls.__name__}, which is no Agent: let it inherit from ahm_gym.agents.Agent."
    )

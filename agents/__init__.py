"""Agents that learn to mask, by name."""

if __name__ == "agents":
    raise ImportError("import this package as ahm_gym.agents: other distributions use the bare name, too.")

import inspect
from importlib.metadata import EntryPoint
from typing import Any

from ahm_gym.agents.base import Agent
from ahm_gym.errors import InputError
from ahm_gym.plugins import load, with_installed

SB3: tuple[str, ...] = ("ppo", "a2c", "sac", "td3", "dqn", "maskable_ppo", "trpo", "tqc")
AGENTS: dict[str, str] = {
    "a3c": "ahm_gym.agents.a3c:A3C",
    "patch_ppo": "ahm_gym.agents.patch_ppo:PatchPPO",
    "group": "ahm_gym.agents.group:Group",
    "ahm2025": "ahm_gym.agents.ahm2025:AHM2025",
} | {name: f"ahm_gym.agents.sb3:{name}" for name in SB3}
"""Name to class, imported on demand. A class accepts the arguments that `make_agent` passes on."""

__all__ = ["AGENTS", "Agent", "agent_class", "agents", "make_agent"]


def agents() -> dict[str, EntryPoint]:
    """Our agents, and those of installed packages: their entry points in the group `ahm_gym.agents`."""
    return with_installed("ahm_gym.agents", AGENTS)


def make_agent(
    name: str, observation_shape: tuple[int, int], *, num_workers: int = 1, **options: Any
) -> Agent:
    """A new agent of that name.

    Args:
        name: one of `agents()`.
        observation_shape: number of patches L and width of an embedding D.
        num_workers: number of workers; passed on unless it is 1.
        options: keyword arguments, passed on; the training loop sets `grid`, `seed` and `device`.

    Raises:
        InputError: if the name is unknown, the agent does not support several workers, or the result is not an
            `Agent`.
    """
    cls = agent_class(name)
    if num_workers != 1:
        if "num_workers" not in inspect.signature(cls).parameters:
            raise InputError(f"agent {name} learns in one process: it needs 1 worker, not {num_workers}.")
        options["num_workers"] = num_workers
    agent = cls(observation_shape, **options)
    if not isinstance(agent, Agent):
        raise _not_an_agent(name, type(agent))
    return agent


def agent_class(name: str) -> Any:
    """The class of that name, or the function that makes one.

    Raises:
        InputError: if the name is unknown, or the class is not a subclass of `Agent`.
    """
    cls = load("agent", name, agents())
    if isinstance(cls, type) and not issubclass(cls, Agent):
        raise _not_an_agent(name, cls)
    return cls


def _not_an_agent(name: str, cls: type[Any]) -> InputError:
    return InputError(
        f"agent {name} is a {cls.__name__}, which is not an Agent: let it inherit from ahm_gym.agents.Agent."
    )

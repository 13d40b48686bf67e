"""Checks for your own agents, policies and environments, and a quick task for agents.

A check raises an AssertionError with one sentence about the first requirement that is not met.
"""

from ahm_gym.testing.agents import check_agent
from ahm_gym.testing.environments import check_vector_env
from ahm_gym.testing.identity import (
    IdentityTask,
    PixelIdentityTask,
    SequentialIdentityTask,
    identity_task,
    solved,
)
from ahm_gym.testing.policies import check_policy

__all__ = [
    "IdentityTask",
    "PixelIdentityTask",
    "SequentialIdentityTask",
    "check_agent",
    "check_policy",
    "check_vector_env",
    "identity_task",
    "solved",
]

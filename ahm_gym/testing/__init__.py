"""Checks for parts of one's own, each with one sentence about the first thing that does not hold, and a task."""

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

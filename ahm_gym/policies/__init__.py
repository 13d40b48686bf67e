"""Mask policies by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from ahm_gym.errors import InputError
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.plugins import load, with_installed
from ahm_gym.policies.base import MaskPolicy

POLICIES: dict[str, str] = {
    "random": "ahm_gym.policies.random:RandomPolicy",
    "spread": "ahm_gym.policies.random:SpreadPolicy",
    "block": "ahm_gym.policies.block:BlockPolicy",
    "grid": "ahm_gym.policies.grid:GridPolicy",
    "hard_patches": "ahm_gym.policies.hard_patches:HardPatchesPolicy",
    "teacher_loss": "ahm_gym.policies.teacher_loss:TeacherLossPolicy",
    "attention": "ahm_gym.policies.attention:AttentionPolicy",
    "attention_low": "ahm_gym.policies.attention:AttentionLowPolicy",
    "attention_hints": "ahm_gym.policies.attention:AttentionHintsPolicy",
    "adamae": "ahm_gym.policies.adamae:AdaMAEPolicy",
    "curriculum": "ahm_gym.policies.curriculum:CurriculumPolicy",
    "thompson": "ahm_gym.policies.thompson:ThompsonPolicy",
    "oracle_hard": "ahm_gym.policies.patch_loss:OracleHardPolicy",
    "low_loss": "ahm_gym.policies.patch_loss:LowLossPolicy",
    "textured": "ahm_gym.policies.texture:TexturedPolicy",
    "flat": "ahm_gym.policies.texture:FlatPolicy",
    "agent": "ahm_gym.pretraining.trained_agent:from_run",
}
"""Name to factory, imported on demand: `factory(autoencoder)`, plus the part of the name after a colon, if any."""

__all__ = ["POLICIES", "MaskPolicy", "make_policy", "policies"]


def policies() -> dict[str, EntryPoint]:
    """Our mask policies, and those of installed packages: their entry points in the group `ahm_gym.policies`."""
    return with_installed("ahm_gym.policies", POLICIES)


def make_policy(name: str, autoencoder: Autoencoder, **options: Any) -> MaskPolicy:
    """The mask policy of that name; `agent:RUN_DIR` is the frozen, trained agent of a run.

    Args:
        name: one of `policies()`.
        autoencoder: autoencoder for which the policy masks images.
        options: keyword arguments of the policy, passed on.

    Raises:
        InputError: if the name is unknown, the run folder holds no agent, or the policy is not a `MaskPolicy`.
    """
    key, colon, argument = name.partition(":")
    factory = load("policy", key, policies())
    if (key == "agent") != bool(argument):
        raise InputError(
            f"policy {name!r} cannot be used: write agent:RUN_DIR for the trained agent of a run, and the bare name of "
            "any other policy."
        )
    policy = factory(autoencoder, argument) if colon else factory(autoencoder, **options)
    if not isinstance(policy, MaskPolicy):
        raise InputError(
            f"policy {name} is a {type(policy).__name__}, which is not a MaskPolicy: let it inherit "
            "from ahm_gym.policies.MaskPolicy."
        )
    return policy

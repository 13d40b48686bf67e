"""Creates the agent that chooses the masks of a run, by name, and checks the settings that go with it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch

from ahm_gym.agents import agent_class, agents, make_agent
from ahm_gym.agents.base import Agent, sees_pixels
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.plugins import load
from ahm_gym.policies import POLICIES, make_policy, policies
from ahm_gym.policies.base import MaskPolicy
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.policy_options import FROZEN, split_options, written
from ahm_gym.pretraining.trained_agent import FrozenAgent

GIVEN: set[str] = {
    "observation_shape", "grid", "channels", "num_workers", "ray", "seed", "device", "callbacks",
}  # fmt: skip
"""Parameters of an agent's class that are not options."""


def make_mask_source(
    name: str,
    autoencoder: Autoencoder,
    *,
    num_workers: int,
    seed: int,
    device: torch.device,
    masking_steps: int = 1,
    options: dict[str, Any] | None = None,
    ray: str | None = None,
) -> Agent:
    """The agent with this name, or the mask policy with this name as an agent.

    Args:
        name: value of the setting `policy`.
        autoencoder: autoencoder for which the agent masks images.
        num_workers: number of worker processes of a learning agent.
        seed: seed of the agent's initial weights.
        device: device of the agent.
        masking_steps: number of steps in an episode.
        options: what `agent_options` returned.
        ray: the Ray cluster on which the workers run; passed on if there is one.

    Raises:
        InputError: if the name is unknown, the agent refuses the options, or there are settings for a policy that
            only a learning agent accepts.
    """
    if not is_agent(name):
        check_policy_name(name, num_workers, masking_steps, options)
        return PolicyAgent(make_policy(name, autoencoder, **(options or {})))
    shape = (autoencoder.num_patches, autoencoder.dim)
    given: dict[str, Any] = {
        "grid": autoencoder.grid,
        "num_workers": num_workers,
        "seed": seed,
        "device": device,
    }
    if ray is not None:
        given["ray"] = ray
    try:
        return make_agent(name, shape, **given, **(options or {}))
    except (TypeError, ValueError, AssertionError) as error:
        chosen = {option: value for option, value in (options or {}).items() if option not in GIVEN}
        if isinstance(error, InputError) or not chosen:
            raise
        shown = " ".join(f"{option}={value}" for option, value in chosen.items())
        raise InputError(f"agent {name} cannot be made with `agent_options={shown}`: {error}") from error


def is_agent(name: str) -> bool:
    """Whether this is the name of a learning agent; this project's policies take precedence over installed agents."""
    return name in agents() and name not in POLICIES


def check_policy_name(
    name: str, num_workers: int, masking_steps: int, options: dict[str, Any] | None
) -> None:
    """Checks the name of a mask policy and that no setting of learning agents was given.

    Raises:
        InputError: with the nearest name, or with the setting to leave out.
    """
    if name.partition(":")[0] not in policies():
        raise unknown_name("policy", name, [*policies(), *agents()])
    if num_workers != 1:
        raise InputError(
            f"`num_workers={num_workers}` needs a learning agent such as a3c: choose 1 with policy {name}."
        )
    if masking_steps != 1:
        raise InputError(
            f"`masking_steps={masking_steps}` goes with a learning agent such as a3c, which scores an image in every "
            f"step; policy {name} scores it only once: leave it out."
        )
    if options and not taken_by(name):
        raise InputError(
            f"`agent_options={' '.join(options)}` goes with a learning agent such as a3c, not with policy {name}: "
            "leave it out."
        )


def weighs(source: Agent | MaskPolicy) -> bool:
    """Whether an agent or a policy sets the weights of patches in the loss itself, by a `weigh` of its own."""
    if isinstance(source, PolicyAgent):
        return weighs(source.policy)
    if isinstance(source, FrozenAgent):
        return weighs(source.agent)
    base = Agent if isinstance(source, Agent) else MaskPolicy
    return type(source).weigh is not base.weigh


def agent_options(name: str, pairs: tuple[str, ...], autoencoder: Autoencoder, model: str) -> dict[str, Any]:
    """Keyword arguments for the agent: the checked NAME=VALUE pairs of `agent_options`, and `pixel_options`.

    Raises:
        InputError: if the agent does not accept an option or does not fit the autoencoder.
    """
    options = check_options(name, read_options(pairs))
    return options | pixel_options(name, autoencoder, model) if is_agent(name) else options


def canonical(policy: str) -> str:
    """The name of a policy with its options checked and written in one way, so that equal settings have one name.

    Raises:
        InputError: if the policy does not accept an option or its value.
    """
    name, pairs = split_options(policy)
    if pairs and not is_agent(name):
        check_policy_name(name, 1, 1, read_options(pairs))
    return written(name, check_options(name, read_options(pairs)))


def taken_by(name: str) -> dict[str, inspect.Parameter]:
    """The options of an agent or a policy: the parameters of its class, without those that are given to it."""
    if is_agent(name):
        parameters = inspect.signature(agent_class(name)).parameters
        return {option: one for option, one in parameters.items() if option not in GIVEN}
    key = name.partition(":")[0]
    if key not in policies() or key == FROZEN:
        return {}
    parameters = dict(list(inspect.signature(load("policy", key, policies())).parameters.items())[1:])
    return {option: one for option, one in parameters.items() if one.kind is not one.VAR_POSITIONAL}


def read_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Options from NAME=VALUE pairs; values that are valid JSON, such as numbers, are parsed.

    Raises:
        InputError: if the name or the equals sign is missing.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(f"`agent_options={pair}`: write NAME=VALUE, such as entropy_coef=0.05.")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The same options, with whole numbers converted to floats if the agent or the policy expects floats.

    Raises:
        InputError: if the agent does not accept an option or its value; the message names the nearest option.
    """
    taken = taken_by(name)
    if not taken:  # `check_policy_name` refuses options of a policy that has none
        return options
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    known = {option for option, one in taken.items() if one.kind is not one.VAR_KEYWORD}
    for option, value in options.items():
        if option in GIVEN or not (open_ended or option in known):
            raise unknown_name(f"option of {'agent' if is_agent(name) else 'policy'} {name}", option, known)
        if option in known and not fits(value, taken[option].default):
            raise InputError(
                f"`agent_options={option}={value}`: expected a value like {taken[option].default!r}, the default."
            )
    wants_float = {name for name, parameter in taken.items() if isinstance(parameter.default, float)}
    return {option: float(value) if option in wants_float else value for option, value in options.items()}


def fits(value: Any, default: Any) -> bool:
    """Whether a value from the command line has a type that can replace the default."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if default is None:
        return not isinstance(value, str)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return is_number and isinstance(value, int)
    if isinstance(default, float) or default == "auto":
        return is_number or (isinstance(default, str) and isinstance(value, str))
    return isinstance(value, type(default))


def pixel_options(name: str, autoencoder: Autoencoder, model: str) -> dict[str, Any]:
    """The number of channels for an agent that puts images together from raw pixels; empty for other agents.

    Raises:
        InputError: if such an agent would observe the embeddings of a vision transformer instead, or volumes.
    """
    if not sees_pixels(agent_class(name)):
        return {}
    if len(autoencoder.grid) == 3:
        raise InputError(f"agent {name} knows images and no volumes: choose `policy=a3c`.")
    if not autoencoder.embeds_pixels:
        raise InputError(
            f"agent {name} sees the raw image, and `model={model}` shows embeddings of its patches: choose "
            "`model=unet`, or `policy=a3c`."
        )
    return {"channels": autoencoder.channels}


def check_reconstructor(policy: str, reconstructor: Path | None, init: Path | None) -> None:
    """Checks the settings that go with a frozen autoencoder.

    Raises:
        InputError: if the policy does not learn, or there are two sources of weights.
    """
    if reconstructor is None:
        return
    if policy.partition(":")[0] in policies():
        raise InputError(
            f"`reconstructor` freezes the autoencoder, and policy {policy} learns nothing: choose a learning "
            "agent such as a3c, or leave it out."
        )
    if init is not None:
        raise InputError("`init` and `reconstructor` both set the initial weights: leave one of them out.")

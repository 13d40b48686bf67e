"""Options in the name of a policy: `a3c:entropy_coef=0.1,width=64` is a3c with two of its options."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import replace

from ahm_gym.errors import InputError
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.runs.storage import file_name

FROZEN: str = "agent"
"""The policy whose name has the folder of a run after the colon, and no options."""
COMMA = re.compile(r",(?![^\[\]]*\])")
"""A comma outside brackets, so that a list such as [64,64] is one value."""
OPTION = re.compile(r"\w+=")
MAX_NAME: int = 80
"""Largest number of characters in the name of a file that is made of a policy with options."""


def split_options(policy: str) -> tuple[str, tuple[str, ...]]:
    """The name of a policy and its options as NAME=VALUE; `agent:RUN_DIR` is a name without options.

    Raises:
        InputError: if what follows the colon is not a list of options.
    """
    name, colon, rest = policy.partition(":")
    if not colon or name == FROZEN:
        return policy, ()
    pairs = tuple(pair.strip() for pair in COMMA.split(rest))
    for pair in pairs:
        if not OPTION.match(pair):
            raise InputError(
                f"`policy={policy}` has {pair!r} after the colon: write NAME:OPTION=VALUE, such as "
                "a3c:entropy_coef=0.1,width=64, or agent:RUN_DIR for the trained agent of a run, and the bare name of "
                "any other policy."
            )
    names = [pair.partition("=")[0] for pair in pairs]
    for option in names:
        if names.count(option) > 1:
            raise InputError(f"`policy={policy}` sets {option} twice: give it once.")
    return name, pairs


def split_policies(values: Iterable[str]) -> tuple[str, ...]:
    """The policies in texts that hold one or several with commas between them.

    A part such as width=64 is an option of the policy before it in the same text, if that one has a colon.

    Raises:
        InputError: if an option has no policy to belong to.
    """
    policies: list[str] = []
    for value in values:
        own: list[str] = []
        for part in filter(None, (part.strip() for part in COMMA.split(value))):
            if not OPTION.match(part):
                own.append(part)
                continue
            before = own[-1] if own else "a3c"
            if not own or ":" not in before or before.startswith(f"{FROZEN}:"):
                raise InputError(
                    f"`policies={value}`: the option {part} belongs to no policy; write the options of a policy after "
                    f"a colon and without spaces, such as {before.partition(':')[0].replace(FROZEN, 'a3c')}:{part}, "
                    "and the folder of a run without commas."
                )
            own[-1] += f",{part}"
        policies += own
    return tuple(policies)


def with_options_of_policy(config: PretrainConfig) -> PretrainConfig:
    """The settings with the options in `policy` moved to `agent_options`.

    Raises:
        InputError: if the options cannot be read, or one is in both.
    """
    name, pairs = split_options(config.policy)
    if not pairs:
        return config
    own = {pair.partition("=")[0] for pair in pairs}
    for pair in config.agent_options:
        if pair.partition("=")[0] in own:
            raise InputError(
                f"`agent_options={pair}` and `policy={config.policy}` set the same option: leave one of them out."
            )
    return replace(config, policy=name, agent_options=(*config.agent_options, *pairs))


def written(name: str, options: dict[str, object]) -> str:
    """The policy as one text with its options in the order of their names, the same for the same options."""
    values = (
        f"{option}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for option, value in sorted(options.items())
    )
    return f"{name}:{','.join(values)}" if options else name


def folder_name(policy: str) -> str:
    """The name of a file or folder for a policy; with options it has at most `MAX_NAME` characters."""
    name = file_name(policy)
    if policy.startswith(f"{FROZEN}:") or "=" not in policy or len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(policy.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}-{digest}"

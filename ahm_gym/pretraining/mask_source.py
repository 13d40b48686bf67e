"""Whoever chooses the masks, policy or agent, behind one face for the training loop."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ahm_gym.agents import agent_class, agents, make_agent
from ahm_gym.agents.base import Agent, Callback, shares_of, update_metrics
from ahm_gym.agents.frozen import save_agent
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError, unknown_name
from ahm_gym.masking.masks import Masks
from ahm_gym.masking.schedules import share_at
from ahm_gym.masking.selection import MaskPolicy, PatchBatch
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.policies import POLICIES, make_policy, policies

DEFAULT_REWARD = "relative"


class PolicyActor:
    """A mask policy that acts in the environment, batch after batch."""

    env_id = "AHM/Masking-v0"
    resumes_exactly = True
    reward = DEFAULT_REWARD
    takes_tensors = True

    def __init__(self, policy: MaskPolicy) -> None:
        self.policy = policy
        self.generator = torch.Generator()

    def guided_fraction(self, progress: float) -> float:
        return self.policy.guided_fraction(progress)

    def spread_fraction(self, progress: float) -> float:
        """The policy's own schedule; most have none, and let any patch be masked."""
        return share_at(getattr(self.policy, "spread_fraction", 0.0), progress, "spread fraction")

    def learn(
        self,
        make_env: Callable[[], MaskingVectorEnv],
        num_steps: int,
        *,
        seed: int | None,
        callback: Callback | None = None,
    ) -> None:
        env = make_env()
        if seed is not None:
            self.generator.manual_seed(seed)
        env.reset(seed=seed)
        for _ in range(num_steps):
            patches = env.patches
            scores = self.policy.score(patches, self.generator).cpu().numpy()
            ended = False
            while not ended:
                _, reward, terminated, _, info = env.step(scores)
                ended = bool(terminated.all())
            masks = Masks(*(torch.as_tensor(info[name]) for name in ("mask", "guided", "weight")))
            patch_loss = torch.as_tensor(info["patch_loss"])
            metrics = update_metrics(info, reward) | self.policy.observe(patches, masks, patch_loss)
            if callback is not None and callback(metrics):
                return

    def score(self, patches: PatchBatch) -> Float[Tensor, "B L"]:
        """Scores to judge by; drawn from a generator of their own, so that looking changes nothing."""
        return self.policy.score(patches, torch.Generator().manual_seed(0))

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.generator.set_state(state["generator"])


class AgentActor:
    """A learning agent, the shares of its masks (`ahm_gym.agents.base.shares_of`) and what pays it."""

    def __init__(self, name: str, options: dict[str, Any], agent: Agent, model: str) -> None:
        self.name, self.options, self.agent, self.model = name, options, agent, model
        self.env_id = agent.env_id
        self.resumes_exactly = getattr(agent, "resumes_exactly", True)
        self.guided_fraction, self.spread_fraction = shares_of(agent)
        self.reward: str = getattr(agent, "reward", DEFAULT_REWARD)
        self.takes_tensors: bool = getattr(agent, "takes_tensors", False)

    def learn(
        self,
        make_env: Callable[[], MaskingVectorEnv],
        num_steps: int,
        *,
        seed: int | None,
        callback: Callback | None = None,
    ) -> None:
        self.agent.learn(make_env, num_steps, seed=seed, callback=callback)

    def score(self, patches: PatchBatch) -> Float[Tensor, "B L"]:
        """Scores to judge by: the agent's best choice, without its exploration."""
        return self.agent.act(patches.embeddings, deterministic=True)

    def export(self, folder: Path, autoencoder: Autoencoder) -> None:
        """Writes what `--policy agent:RUN_DIR` needs."""
        save_agent(folder, self.name, self.options, self.agent, self.model, autoencoder)

    def state_dict(self) -> dict[str, Any]:
        return self.agent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state)


Actor = PolicyActor | AgentActor


def make_actor(
    name: str,
    autoencoder: Autoencoder,
    model: str,
    *,
    num_workers: int,
    seed: int,
    device: torch.device,
    masking_steps: int = 1,
    agent_options: dict[str, Any] | None = None,
) -> Actor:
    """The policy or agent of that name.

    Raises:
        InputError: for a name in neither table, an option that the agent does not have, or several workers,
            several masking steps or options for a policy that needs none.
    """
    if name in agents() and name not in POLICIES:
        shape = (autoencoder.num_patches, autoencoder.dim)
        options = check_options(name, agent_options or {}) | pixel_options(name, autoencoder, model)
        given = {"grid": autoencoder.grid, "num_workers": num_workers, "seed": seed, "device": device}
        try:
            agent = make_agent(name, shape, **given, **options)
        except (TypeError, ValueError, AssertionError) as error:
            if isinstance(error, InputError) or not agent_options:
                raise
            shown = " ".join(f"{option}={value}" for option, value in agent_options.items())
            raise InputError(f"agent {name} cannot be made with --agent-options {shown}: {error}") from error
        return AgentActor(name, options, agent, model)
    if name.partition(":")[0] not in policies():
        raise unknown_name("policy", name, [*policies(), *agents()])
    if num_workers != 1:
        raise InputError(
            f"--num-workers {num_workers} goes with a learning agent such as a3c; policy {name} takes 1."
        )
    if masking_steps != 1:
        raise InputError(
            f"--masking-steps {masking_steps} goes with a learning agent such as a3c, which looks again after every "
            f"step; policy {name} scores an image once: leave it out."
        )
    if agent_options:
        raise InputError(
            f"--agent-options {' '.join(agent_options)} goes with a learning agent such as a3c, not with policy {name}."
        )
    return PolicyActor(make_policy(name, autoencoder))


def read_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Options from NAME=VALUE; a value that is JSON, such as a number, is read as that.

    Raises:
        InputError: where there is no equals sign.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(f"--agent-options {pair}: write NAME=VALUE, such as critic=relu6.")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The same options, whole numbers as floats where the agent wants these; each is one that it takes.

    Raises:
        InputError: with the nearest one that it takes.
    """
    taken = inspect.signature(agent_class(name)).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    known = taken.keys() - GIVEN
    for option, value in options.items():
        if option in GIVEN or not (open_ended or option in known):
            raise unknown_name(f"option of agent {name}", option, known)
        if option in known and not fits(value, taken[option].default):
            raise InputError(
                f"--agent-options {option}={value}: expected a value like {taken[option].default!r}, the default."
            )
    wants_float = {name for name, parameter in taken.items() if isinstance(parameter.default, float)}
    return {option: float(value) if option in wants_float else value for option, value in options.items()}


GIVEN = {"observation_shape", "grid", "channels", "num_workers", "seed", "device", "callbacks"}
"""What an agent's class is given besides its options."""


def fits(value: Any, default: Any) -> bool:
    """Whether a value from the command line can stand in for a default."""
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
    """What an agent that sees raw images must know to put them together; nothing for any other agent.

    Raises:
        InputError: where it would see a vision transformer's embeddings instead.
    """
    if not getattr(agent_class(name), "sees_pixels", False):
        return {}
    if not autoencoder.embeds_pixels:
        raise InputError(
            f"agent {name} sees the raw image, and --model {model} shows embeddings of its patches: choose --model "
            "unet, or --policy a3c."
        )
    return {"channels": autoencoder.channels}


def check_reconstructor(policy: str, reconstructor: Path | None, init: Path | None) -> None:
    """Refuses what a frozen autoencoder leaves without sense.

    Raises:
        InputError: for a policy that learns nothing, or two sources of weights.
    """
    if reconstructor is None:
        return
    if policy.partition(":")[0] in policies():
        raise InputError(
            f"--reconstructor freezes the autoencoder, and policy {policy} learns nothing: choose a learning "
            "agent such as a3c, or leave it out."
        )
    if init is not None:
        raise InputError("--init and --reconstructor both bring weights: leave one of them out.")

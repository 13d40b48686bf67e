"""Checks for agents: everything that the training loop relies on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from ahm_gym.agents.base import Agent, sees_pixels
from ahm_gym.model.autoencoder import Autoencoder
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.runs.storage import load_state, save_state

_NUM_ENVS, _CHANNELS, _IMAGE_SIZE, _PATCH_SIZE = 4, 1, (16, 32), 8


def check_agent(make_agent: Callable[..., Any]) -> None:
    """Checks an agent: its base class, environment, shares, scores, count of updates, seed and state.

    After loading a state, an agent must act and learn as before; with `resumes_exactly = False` it must only act so.

    Args:
        make_agent: the class, or a function, that builds a new agent from the observation's shape and the keywords
            `grid`, `seed` and `device`. A class with `sees_pixels = True` is tested on raw pixels.

    Raises:
        AssertionError: with a sentence about the first requirement that is not met.
    """
    check_class(make_agent, Agent)
    agent = _Trial.build(make_agent)
    check_base(agent, Agent)
    _check_environment(agent)
    check_shares(agent)
    _check_act(agent, _Trial(agent).observation())
    _check_learn(agent)
    _check_stop(make_agent)
    _check_seed(make_agent)
    _check_state(make_agent)


def check_class(make: Any, base: type[Any]) -> None:
    """Checks that a class is a subclass of `base` without abstract methods; a function passes."""
    if not isinstance(make, type):
        return
    assert issubclass(make, base), _not_a_subclass(make, base)
    missing = ", ".join(sorted(make.__abstractmethods__))  # pyright: ignore[reportAttributeAccessIssue]
    assert not missing, f"{make.__name__} has no {missing}: see {_path(base)}."


def check_base(part: Any, base: type[Any]) -> None:
    """Checks that an agent or policy is an instance of `base`."""
    assert isinstance(part, base), _not_a_subclass(type(part), base)


def _not_a_subclass(cls: type[Any], base: type[Any]) -> str:
    return f"{cls.__name__} is not a subclass of {base.__name__}: let it inherit from {_path(base)}."


def _path(base: type[Any]) -> str:
    """The name with which a base class is imported."""
    return f"{base.__module__.rpartition('.')[0]}.{base.__name__}"


def check_shares(part: Any) -> None:
    """Checks the share of guided patches, that of spread masks and the mask ratio of a policy or an agent."""
    for name, own in (
        ("guided_fraction", part.guided_fraction),
        ("spread_fraction", part.spread_fraction),
    ):
        for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
            share = own(progress) if callable(own) else own
            assert isinstance(share, (int, float)) and 0 <= share <= 1, (
                f"{name}({progress}) is {share!r}: expected a number from 0 to 1."
            )
    own = part.mask_ratio
    ratios = [own(progress) if callable(own) else own for progress in (0.0, 0.5, 1.0)]
    assert own is None or all(isinstance(ratio, (int, float)) and 0 < ratio < 1 for ratio in ratios), (
        f"mask_ratio is {ratios[0]!r} at the start: expected None, or a number between 0 and 1."
    )


class _Trial:
    """A small masking environment around one autoencoder, whose updates are counted."""

    def __init__(self, agent: Agent) -> None:
        self.env_id, self.takes_tensors = agent.env_id, agent.takes_tensors
        self.pretrainer = Pretrainer(_autoencoder(agent.sees_pixels), num_steps=100)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(3 * _NUM_ENVS, _CHANNELS, *_IMAGE_SIZE, generator=generator)

    @staticmethod
    def build(make_agent: Callable[..., Any], seed: int = 0) -> Any:
        autoencoder = _autoencoder(sees_pixels(make_agent))
        shape = (autoencoder.num_patches, autoencoder.dim)
        return make_agent(shape, grid=autoencoder.grid, seed=seed, device=torch.device("cpu"))

    def make_env(self) -> VectorEnv[Any, Any, Any]:
        options: dict[str, Any] = {"tensors": True} if self.takes_tensors else {}
        return gymnasium.make_vec(
            f"ahm_gym:{self.env_id}",
            num_envs=_NUM_ENVS,
            data=self.images,
            pretrainer=self.pretrainer,
            **options,
        )

    def observation(self) -> np.ndarray:
        return np.asarray(self.make_env().reset(seed=9)[0])

    def learn(self, agent: Any, num_steps: int, seed: int | None) -> list[dict[str, Any]]:
        """Metrics of every call of the callback, with the number of updates at that time."""
        calls: list[dict[str, Any]] = []

        def callback(metrics: Any) -> bool:
            _check_metrics(metrics)
            calls.append({**metrics, "updates": self.pretrainer.updates})
            return False

        agent.learn(self.make_env, num_steps, seed=seed, callback=callback)
        return calls


def _autoencoder(shows_pixels: bool) -> Autoencoder:
    model = "unet" if shows_pixels else "tiny"
    return build_autoencoder(model, image_size=_IMAGE_SIZE, patch_size=_PATCH_SIZE, channels=_CHANNELS)


def _check_environment(agent: Agent) -> None:
    assert agent.env_id in gymnasium.registry, (
        f"env_id is {agent.env_id!r}: expected the id of a registered environment, such as AHM/Masking-v0."
    )


def _check_act(agent: Any, observation: np.ndarray) -> None:
    for batch in (observation, observation[:1], torch.from_numpy(observation)):
        for deterministic in (True, False):
            _scores(agent, batch, deterministic)
        first, second = (_scores(agent, batch, deterministic=True) for _ in range(2))
        assert torch.equal(first, second), "act(deterministic=True) returns other scores the second time."


def _scores(agent: Any, observation: Any, deterministic: bool) -> Tensor:
    """The scores of the agent, checked."""
    scores = agent.act(observation, deterministic=deterministic)
    said = f"act() on {type(observation).__name__} {tuple(observation.shape)} returns"
    assert isinstance(scores, Tensor), f"{said} a {type(scores).__name__}: expected a tensor."
    expected = tuple(observation.shape[:2])
    assert tuple(scores.shape) == expected and scores.is_floating_point(), (
        f"{said} {scores.dtype} {tuple(scores.shape)}: expected one float score per patch, {expected}."
    )
    assert bool(torch.isfinite(scores).all()), f"{said} scores that are not finite."
    assert not scores.requires_grad, f"{said} scores that require a gradient: use torch.no_grad()."
    return scores.clone()


def _check_metrics(metrics: Any) -> None:
    assert isinstance(metrics, dict), f"the callback got a {type(metrics).__name__}: expected a dict."
    for key in ("loss", "reward"):
        assert key in metrics, f"the callback's metrics have no {key!r}: expected loss and reward."
    for key, value in metrics.items():
        assert isinstance(value, (int, float)), (
            f"metrics[{key!r}] is a {type(value).__name__}: expected a number."
        )


def _check_learn(agent: Any) -> None:
    """Checks the number of updates and of callback calls, in a first call of learn and in one that continues."""
    trial = _Trial(agent)
    counts = [call["updates"] for call in trial.learn(agent, 3, seed=0)]
    assert trial.pretrainer.updates == 3, (
        f"learn(num_steps=3) made {trial.pretrainer.updates} updates of the autoencoder: expected 3."
    )
    assert counts == [1, 2, 3], (
        f"the callback was called after updates {counts}: expected one call right after each of the 3 updates."
    )
    trial.learn(agent, 2, seed=None)
    assert trial.pretrainer.updates == 5, (
        f"learn(num_steps=2, seed=None) made {trial.pretrainer.updates - 3} more updates: expected 2."
    )


def _check_stop(make_agent: Callable[..., Any]) -> None:
    agent = _Trial.build(make_agent)
    trial = _Trial(agent)
    agent.learn(trial.make_env, 6, seed=0, callback=lambda metrics: trial.pretrainer.updates >= 2)
    assert trial.pretrainer.updates == 2, (
        f"the callback returned True after update 2, but learn() continued to update {trial.pretrainer.updates}."
    )


def _check_seed(make_agent: Callable[..., Any]) -> None:
    first, second, other = (_learned(make_agent, seed) for seed in (0, 0, 1))
    assert first == second, "two agents that learn with the same seed differ in loss, reward or scores."
    assert first != other, (
        "another seed of learn() changes nothing: it must seed the agent's draws and env.reset()."
    )


def _learned(make_agent: Callable[..., Any], seed: int) -> list[Any]:
    agent = _Trial.build(make_agent)
    trial = _Trial(agent)
    calls = trial.learn(agent, 3, seed)
    scores = _scores(agent, trial.observation(), deterministic=True)
    return [[call["loss"], call["reward"]] for call in calls] + scores.tolist()


def _check_state(make_agent: Callable[..., Any]) -> None:
    """Checks that another agent with the saved and loaded state behaves in the same way."""
    agent, other = _Trial.build(make_agent), _Trial.build(make_agent, seed=1)
    trial = _Trial(agent)
    trial.learn(agent, 3, seed=0)
    other.load_state_dict(saved_and_loaded(agent.state_dict()))
    observation = trial.observation()
    for deterministic in (True, False):
        first, second = (_scores(a, observation, deterministic) for a in (agent, other))
        assert torch.equal(first, second), (
            f"after load_state_dict() another agent acts differently (deterministic={deterministic}): the state "
            "is incomplete."
        )
    if not agent.resumes_exactly:
        return
    first, second = (_Trial(a).learn(a, 2, seed=5) for a in (agent, other))
    same = all(a[key] == b[key] for a, b in zip(first, second, strict=True) for key in ("loss", "reward"))
    after = [_scores(a, observation, deterministic=True) for a in (agent, other)]
    assert same and torch.equal(*after), (
        "after load_state_dict() another agent learns differently: the state is incomplete."
    )


def saved_and_loaded(state: Any) -> dict[Any, Any]:
    """The state after it was saved and loaded."""
    assert isinstance(state, dict), f"state_dict() returns a {type(state).__name__}: expected a dict."
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_state(Path(folder), state)
        except TypeError as error:
            raise AssertionError(f"state_dict() cannot be saved: {error}") from error
        return load_state(Path(folder))

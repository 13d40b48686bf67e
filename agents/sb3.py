"""stable-baselines3's algorithms as agents."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import random
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Float
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from ahm_gym.agents.base import Agent, Callback, MakeEnv, Metrics
from ahm_gym.agents.networks import ObservationNorm, RunningScale, available_patches, square_grid
from ahm_gym.agents.ordering import draw_scores
from ahm_gym.agents.sb3_env import CountUpdates, MaskingVecEnv
from ahm_gym.agents.sb3_presets import ALGORITHMS, Algorithm
from ahm_gym.errors import InputError, unknown_name

CPU: torch.device = torch.device("cpu")
SET_HERE: tuple[str, ...] = ("policy", "env", "seed", "device", "_init_setup_model")
"""Arguments of SB3's algorithms that the agent sets itself."""


class SB3Agent(Agent):
    """An algorithm of stable-baselines3, with patch-wise networks and settings that suit masking.

    It sees only the scalar reward of a mask, divided by its running root mean square. Its state holds networks,
    optimisers and statistics, but no replay buffer and no unfinished rollout, so a resumed run is approximate.

    Args:
        name: ppo, a2c, trpo, sac, td3, tqc, dqn or maskable_ppo.
        observation_shape: number of patches L and width of an embedding D.
        grid: rows and columns of patches; None means a square.
        seed: seed of the networks' initial weights.
        device: device of the networks.
        callbacks: SB3 callbacks that run during training.
        progress_bar: whether to show SB3's progress bar.
        settings: keyword arguments of SB3's algorithm, which replace the presets.

    Raises:
        InputError: if the algorithm or a setting is unknown, or a package is not installed.
    """

    resumes_exactly: bool = False
    divides: bool = False

    def __init__(
        self,
        name: str,
        observation_shape: tuple[int, int],
        *,
        grid: tuple[int, ...] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        callbacks: tuple[BaseCallback, ...] = (),
        progress_bar: bool = False,
        **settings: Any,
    ) -> None:
        if name not in ALGORITHMS:
            raise unknown_name("stable-baselines3 algorithm", name, ALGORITHMS)
        self.name: str = name
        self.settings: dict[str, Any] = settings
        self.recipe: Algorithm = ALGORITHMS[name]
        known = {parameter.name for parameter in settings_of(name)}
        for setting in settings.keys() - known:
            raise unknown_name(f"setting of {name}", setting, known)
        self.env_id: str = self.recipe.env_id
        self.device: torch.device = torch.device(device)
        self.callbacks: tuple[BaseCallback, ...] = callbacks
        self.progress_bar: bool = progress_bar
        num_patches, dim = observation_shape
        self.grid: tuple[int, ...] = grid or square_grid(num_patches)
        self.normalise: ObservationNorm = ObservationNorm(num_patches, dim).to(self.device)
        self.reward_scale: RunningScale = RunningScale().to(self.device)
        self.generator: torch.Generator = torch.Generator().manual_seed(seed)
        self.num_updates: int = 0
        with seeded(seed, self.device), warnings.catch_warnings():
            # SB3 warns that its batch sizes do not fit the few images of this stand-in.
            warnings.simplefilter("ignore", UserWarning)
            self.algorithm: Any = self._build(MaskingVecEnv(SpacesOnly(observation_shape, self.env_id)))

    def learn(
        self, make_env: MakeEnv, num_steps: int, *, seed: int | None, callback: Callback | None = None
    ) -> None:
        def counted(metrics: Metrics) -> bool:
            self.num_updates += 1
            return callback is not None and callback(metrics)

        env = MaskingVecEnv(make_env(), self._normalised, self._scaled)
        draw = int(torch.randint(2**31, (), generator=self.generator)) if seed is None else seed
        with seeded(draw, self.device):
            before, self.algorithm = self.algorithm, self._build(env)
            self._take(parameters_of(before))
            self.algorithm.num_timesteps = before.num_timesteps
            self.algorithm.action_space.seed(draw % 2**32)
            if seed is not None:  # for None, SB3 would draw a seed and start the environment again
                env.seed(seed)
            self.algorithm.learn(
                num_steps * env.num_envs * self._longest_episode(env.env),
                callback=[*self.callbacks, CountUpdates(num_steps, counted, before=self.num_updates)],
                reset_num_timesteps=False,
                progress_bar=self.progress_bar,
            )

    def _longest_episode(self, env: VectorEnv[Any, Any, Any]) -> int:
        """Upper bound of the steps of an episode; learning ends by the number of updates."""
        return self.normalise.mean.shape[0] if self._is_discrete else getattr(env, "masking_steps", 1)

    def act(self, observation: Any, *, deterministic: bool) -> Float[Tensor, "B L"]:
        """One score per patch; if the algorithm chooses one patch per step, its preferences for the first patch."""
        observation = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        policy = self.algorithm.policy
        policy.set_training_mode(False)
        with torch.no_grad():
            shown = self.normalise(observation)
            if not self._is_discrete and deterministic:
                return policy._predict(shown, deterministic=True)
            if not self._is_discrete:
                with seeded(int(torch.randint(2**31, (), generator=self.generator)), self.device):
                    return policy._predict(shown, deterministic=False)
            if hasattr(policy, "q_net"):
                logits = policy.q_net(shown)
            else:
                logits = policy.get_distribution(shown).distribution.logits
        if deterministic:
            return logits
        return draw_scores(logits, available_patches(observation), self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {
            "algorithm": parameters_of(self.algorithm),
            "num_timesteps": self.algorithm.num_timesteps,
            "normalise": self.normalise.state_dict(),
            "reward_scale": self.reward_scale.state_dict(),
            "generator": self.generator.get_state(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._take(state["algorithm"])
        self.algorithm.num_timesteps = state["num_timesteps"]
        self.normalise.load_state_dict(state["normalise"])
        self.reward_scale.load_state_dict(state["reward_scale"])
        self.generator.set_state(state["generator"])
        self.num_updates = state["num_updates"]

    @property
    def _is_discrete(self) -> bool:
        return isinstance(self.algorithm.action_space, gym.spaces.Discrete)

    def _build(self, env: MaskingVecEnv) -> Any:
        presets = self.recipe.presets(env.env)
        policy = presets.get("policy_kwargs", {}) | self.settings.get("policy_kwargs", {})
        features = {"grid": self.grid} | policy.get("features_extractor_kwargs", {})
        settings = presets | self.settings
        settings["policy_kwargs"] = policy | {"features_extractor_kwargs": features}
        return load(self.recipe.algorithm)(load(self.recipe.policy), env, device=self.device, **settings)

    def _take(self, parameters: dict[str, Any]) -> None:
        self.algorithm.set_parameters(copy.deepcopy(parameters["networks"]), device=self.device)
        for name, value in parameters["variables"].items():
            getattr(self.algorithm, name).data.copy_(value)

    def _normalised(self, observation: np.ndarray, begins: bool) -> np.ndarray:
        shown = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        if begins:
            self.normalise.follow(shown)
        with torch.no_grad():
            return self.normalise(shown).cpu().numpy()

    def _scaled(self, reward: np.ndarray) -> float:
        if reward.any():
            paid = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
            self.reward_scale.follow(paid.square().mean())
        return float(self.reward_scale.value()) if self.reward_scale.count else 1.0


class SpacesOnly(VectorEnv[Any, Any, Any]):
    """Spaces without an environment: enough to build the networks of an algorithm."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    render_mode: str | None = None
    num_envs: int = 4

    def __init__(self, observation_shape: tuple[int, int], env_id: str) -> None:
        num_patches = observation_shape[0]
        self.single_observation_space: gym.Space[Any] = gym.spaces.Box(
            -np.inf, np.inf, observation_shape, np.float32
        )
        self.single_action_space: gym.Space[Any] = (
            gym.spaces.Box(-1.0, 1.0, (num_patches,), np.float32)
            if env_id == "AHM/Masking-v0"
            else gym.spaces.Discrete(num_patches)
        )

    def action_masks(self) -> np.ndarray:
        return np.ones((self.num_envs, (self.single_observation_space.shape or (0,))[0]), dtype=bool)


def settings_of(name: str) -> list[inspect.Parameter]:
    """The keyword arguments of SB3's algorithm that an agent accepts as settings."""
    taken = inspect.signature(load(ALGORITHMS[name].algorithm)).parameters.values()
    return [p.replace(kind=p.KEYWORD_ONLY) for p in taken if p.name not in SET_HERE]


def parameters_of(algorithm: Any) -> dict[str, Any]:
    """Everything that SB3 would save, as nested state dicts."""
    _, variables = algorithm._get_torch_save_params()
    return {
        "networks": algorithm.get_parameters(),
        "variables": {name: getattr(algorithm, name).detach() for name in variables},
    }


def load(path: str) -> Any:
    """The class at `module:name`.

    Raises:
        InputError: if its package is not installed.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sb3_contrib":
            raise
        raise InputError(
            f"{name} comes with sb3-contrib, which is not installed: pip install 'ahm-gym[contrib]'."
        ) from error


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seeds the global generators, from which SB3 draws, and restores them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if on_gpu:
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class SB3Factory:
    """Makes agents of one algorithm; its signature lists their options."""

    def __init__(self, name: str) -> None:
        self.name: str = name

    def __call__(self, observation_shape: tuple[int, int], **options: Any) -> SB3Agent:
        return SB3Agent(self.name, observation_shape, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        keywords = ("observation_shape", "grid", "seed", "device", "callbacks", "progress_bar")
        own = inspect.signature(SB3Agent).parameters
        return inspect.Signature([own[name] for name in keywords] + settings_of(self.name))


def __getattr__(name: str) -> SB3Factory:
    """The factory of the algorithm of that name, which the table of agents refers to."""
    if name not in ALGORITHMS:
        raise AttributeError(name)
    return SB3Factory(name)

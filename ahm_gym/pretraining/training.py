"""The parts of a pretraining run: how they are built from the settings, saved and restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator
from torch import Tensor

from ahm_gym.agents import Agent
from ahm_gym.data import ImageDataset
from ahm_gym.device import ranks
from ahm_gym.device.choice import count_data_workers, pick_device
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError, say
from ahm_gym.masking.schedules import (
    MixedMaskRatio,
    RisingMaskRatio,
    Share,
    check_target_fraction,
    chosen_share,
    typical_mask_ratio,
)
from ahm_gym.model.encoders import export_encoder
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.published import PretrainState
from ahm_gym.pretraining.config import PretrainConfig, check_counts
from ahm_gym.pretraining.defaults import completed, note_on_length
from ahm_gym.pretraining.inputs import (
    check_joint,
    check_ranks,
    check_ray,
    joint_task,
    open_images,
    starting_autoencoder,
)
from ahm_gym.pretraining.inspection import Inspection
from ahm_gym.pretraining.mask_source import agent_options, check_reconstructor, make_mask_source, weighs
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.policy_options import with_options_of_policy
from ahm_gym.pretraining.trained_agent import save_agent
from ahm_gym.runs.folder import RunFolder
from ahm_gym.runs.provenance import origin_of
from ahm_gym.runs.schema import checked, fits
from ahm_gym.runs.settings import to_json
from ahm_gym.runs.storage import check_loaded, check_trained


@dataclass
class EnvFactory:
    """Creates an environment around the shared pretrainer, in this or in a worker process; picklable."""

    env_id: str
    dataset: ImageDataset | Tensor
    pretrainer: Pretrainer
    options: dict[str, Any]
    """Keyword arguments of the environment."""
    shared: bool
    """Whether several processes update the pretrainer."""

    def __call__(self) -> MaskingVectorEnv:
        """A new environment."""
        pretrainer = self.pretrainer.attach() if self.shared else self.pretrainer
        make_env: Any = load_env_creator(str(gym.spec(self.env_id).vector_entry_point))
        return make_env(data=self.dataset, pretrainer=pretrainer, **self.options)


class Training:
    """The parts of a pretraining run; creating them checks all settings and writes nothing.

    Args:
        config: settings of the run.
        fresh: whether the run has no checkpoint yet, so that the initial weights are needed.

    Raises:
        InputError: if settings or data cannot be used.
    """

    def __init__(self, config: PretrainConfig, *, fresh: bool = True) -> None:
        config = with_options_of_policy(config)
        check_counts(config)
        check_reconstructor(config.policy, config.reconstructor, config.init)
        check_joint(config)
        check_ranks(config)
        self.device: torch.device = pick_device(config.device)
        check_ray(config, self.device)
        if config.num_workers > 1 and self.device.type != "cpu":
            raise InputError(
                "`num_workers` above 1 shares weights in main memory: choose `device=cpu` or 1 worker."
            )
        if config.num_workers > 1 and config.target == "latent":
            raise InputError(
                "`num_workers` above 1 does not go with `target=latent`, whose teacher belongs to one process: choose "
                "1 worker, or another `target`."
            )
        needs_labels = config.joint_labels is not None or config.crop == "oracle"
        with ranks.in_turn():
            self.dataset: ImageDataset = open_images(config, need_labels=None if needs_labels else False)
        self.config: PretrainConfig = completed(config, len(self.dataset.indices("train")))
        config = self.config
        assert config.learning_rate is not None, "completed"
        autoencoder = starting_autoencoder(config, self.dataset.channels, fresh=fresh)
        ranks.check_statistics(autoencoder)
        ranks.synchronise(autoencoder)
        self.pretrainer: Pretrainer = Pretrainer(
            autoencoder,
            num_steps=config.steps,
            learning_rate=config.learning_rate,
            device=self.device,
            frozen=config.reconstructor is not None,
            average=config.average,
            joint=joint_task(config, self.dataset, autoencoder),
        )
        self.agent_options: dict[str, Any] = agent_options(
            config.policy, config.agent_options, autoencoder, config.model
        )
        self.agent: Agent = make_mask_source(
            config.policy,
            autoencoder,
            num_workers=config.num_workers,
            seed=config.seed,
            device=self.device,
            masking_steps=config.masking_steps,
            options=self.agent_options,
            ray=config.ray,
        )
        if ranks.world_size() > 1 and not self.agent.divides:
            raise InputError(
                f"policy {config.policy} learns in one process, and torchrun started {ranks.world_size()}: start the "
                "command without torchrun, or choose `policy=a3c`."
            )
        self._set_shares_and_reward()
        self.by_workers: bool = False
        """Whether the environments belong to worker processes."""
        self.factory: EnvFactory = self._env_factory(shared=False)
        self.env: MaskingVectorEnv = self.factory()
        self.inspection: Inspection = Inspection(
            self.dataset,
            autoencoder,
            self.agent,
            mask_ratio=typical_mask_ratio(config.mask_ratio),
            guided_fraction=self.guided_fraction,
            spread_fraction=self.spread_fraction,
        )

    def _set_shares_and_reward(self) -> None:
        """Uses the shares and the reward of the settings, or else those of the policy or the agent."""
        config = self.config
        guided, spread, reward = self.agent.guided_fraction, self.agent.spread_fraction, self.agent.reward
        if config.reconstructor is not None:
            # Only the agent learns, so it chooses every masked patch; the frozen autoencoder makes no progress.
            guided, spread, reward = 1.0, 0.0, Agent.reward
        self.reward: str = config.reward or reward
        self.guided_fraction: Share = chosen_share(
            "guided", config.guided_fraction, config.guided_ramp, guided, falls=False
        )
        self.spread_fraction: Share = chosen_share(
            "spread", config.spread_fraction, config.spread_ramp, spread, falls=True
        )

    def _env_factory(self, *, shared: bool) -> EnvFactory:
        config = self.config
        options: dict[str, Any] = {
            "num_envs": config.batch_size,
            "mask_ratio": self._mask_ratio(),
            "reward": self.reward,
            "guided_fraction": self.guided_fraction,
            "spread_fraction": self.spread_fraction,
            **self._weights(),
            "data_workers": count_data_workers(config.data_workers, self.device),
        }
        if config.crop != "uniform":
            options["crop"] = config.crop
        if self.agent.takes_tensors:
            options["tensors"] = True
        if config.masking_steps != 1:
            options["masking_steps"] = config.masking_steps
        return EnvFactory(self.agent.env_id, self.dataset, self.pretrainer, options, shared)

    def _weights(self) -> dict[str, Any]:
        """What sets the weights of the patches in the loss: `target_fraction`, or else the policy or the agent."""
        share = check_target_fraction(self.config.target_fraction, weighs=weighs(self.agent))
        return {"target_fraction": share} if share < 1.0 else {"weigh": self.agent.weigh}

    def _mask_ratio(self) -> Share:
        initial, ratio = self.config.initial_mask_ratio, self.config.mask_ratio
        if self.agent.mask_ratio is not None:
            if initial is not None or ratio != PretrainConfig.mask_ratio:
                name = "initial_mask_ratio" if initial is not None else "mask_ratio"
                raise InputError(
                    f"`{name}` does not go with policy {self.config.policy}, which chooses the mask ratio of every "
                    "update itself: leave it out."
                )
            return self.agent.mask_ratio
        if isinstance(ratio, tuple):
            if initial is not None:
                raise InputError(
                    "`initial_mask_ratio` rises to one `mask_ratio`, and several were given: leave one of the two out."
                )
            return MixedMaskRatio(ratio)
        return ratio if initial is None else RisingMaskRatio(initial, ratio)

    @property
    def make_env(self) -> Callable[[], MaskingVectorEnv]:
        """What the agent calls for its environment: a new one in every worker, or the one of this process."""
        return self.factory if self.by_workers else lambda: self.env

    @property
    def is_asynchronous(self) -> bool:
        """Whether the settings ask for worker processes, whose generators are not saved."""
        return self.config.num_workers > 1 or self.config.ray is not None

    def share(self) -> None:
        """Lets worker processes update the autoencoder: in shared memory, or by Ray, which sends gradients here."""
        self.by_workers = True
        if self.config.ray is None:
            self.pretrainer.share_memory(torch.multiprocessing.get_context("spawn").Lock())
            self.factory = self._env_factory(shared=True)

    def close(self) -> None:
        """Ends the processes that load images."""
        self.env.close()

    def describe(self) -> dict[str, Any]:
        """The content of `config.json`: the settings, and what follows from them."""
        return {
            "kind": "pretrain",
            **to_json(self.config),
            "reward": self.reward,
            "image_size": list(self.pretrainer.autoencoder.image_size),
            "channels": self.dataset.channels,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
            **({"processing": self.dataset.processing} if self.dataset.processing else {}),
            **origin_of(self.dataset.content_digest()),
        }

    def print_notes(self, *, resumed: bool) -> None:
        """Prints the data, and what the user should know about this run."""
        say(self.dataset)
        if note := note_on_length(self.config, len(self.dataset.indices("train"))):
            say(f"note: {note}.")
        if not self.dataset.indices("val"):
            say(
                f"note: {self.dataset.name} has no validation images: pictures and metrics under val/ show training "
                "images.",
            )
        if resumed and not self.agent.resumes_exactly:
            say(
                f"note: {self.config.policy} continues with its weights and statistics, but without its stored "
                "experience: the run is sound, but not the same as one without a stop.",
            )

    def save(self, run: RunFolder, step: int, recorded: dict[str, Any]) -> None:
        """Exports the encoder and the agent, then writes the checkpoint, so that no checkpoint exists without them.

        Raises:
            RunError: if the weights are not finite; nothing is written.
        """
        self.pretrainer.check()
        check_trained(self.pretrainer.autoencoder.state_dict(), step)
        check_trained(self.pretrainer.trained.state_dict(), step)
        autoencoder, trained = self.pretrainer.autoencoder, self.pretrainer.trained.encoder
        statistics = {"mean": self.dataset.mean, "std": self.dataset.std}
        run.replace("encoder", lambda folder: export_encoder(trained, folder, **statistics))
        if not isinstance(self.agent, PolicyAgent):
            made = (self.config.policy, self.agent_options, self.agent, self.config.model)
            run.replace("agent", lambda folder: save_agent(folder, *made, autoencoder))
        run.save_checkpoint(step, self.state_dict() | recorded)

    def restore(self, run: RunFolder) -> tuple[int, dict[str, Any] | None]:
        """Loads the newest checkpoint; returns its step and its state, or 0 and None if there is none.

        Raises:
            InputError: if an older version wrote the checkpoint, or it does not fit the run.
        """
        found = ranks.from_first(run.load_checkpoint)
        if found is None:
            return 0, None
        step, state = found
        if "counts" not in state:
            raise InputError(
                f"the checkpoint in {run.path} is of an older version: start again in another `run_dir`."
            )
        source = run.path / "checkpoint"
        checked(PretrainState, state, source)
        with fits(source):
            self.load_state_dict(state)
        check_loaded(self.pretrainer.autoencoder.state_dict(), source)
        return step, state

    def state_dict(self) -> dict[str, Any]:
        """The state of the pretrainer, the agent and the environment."""
        return {
            "pretrainer": self.pretrainer.state_dict(),
            "agent": self.agent.state_dict(),
            "env": None if self.by_workers else self.env.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.pretrainer.load_state_dict(state["pretrainer"])
        self.agent.load_state_dict(state["agent"])
        if state["env"] is not None:
            self.env.load_state_dict(state["env"])

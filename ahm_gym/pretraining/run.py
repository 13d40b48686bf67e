"""A pretraining run: its parts, its loop, and how it is saved and resumed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Container
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator

from ahm_gym.agents import Agent
from ahm_gym.data import ImageDataset, open_data
from ahm_gym.device.choice import count_data_workers, pick_device
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.masking.schedules import RisingMaskRatio, chosen_share
from ahm_gym.model.encoders import export_encoder
from ahm_gym.model.patches import image_size_of
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.pretraining.config import PretrainConfig, check_counts
from ahm_gym.pretraining.frozen import save_agent
from ahm_gym.pretraining.inputs import run_stem, starting_autoencoder, with_absolute_paths
from ahm_gym.pretraining.inspection import Inspection
from ahm_gym.pretraining.mask_source import agent_options, check_reconstructor, make_mask_source
from ahm_gym.pretraining.policy_agent import PolicyAgent
from ahm_gym.pretraining.recorder import Recorder
from ahm_gym.runs.folder import RunFolder, free_run_dir, resume_flags
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.settings import merge_resumed, to_json
from ahm_gym.runs.storage import locked


def pretrain(
    config: PretrainConfig,
    *,
    resume: bool = False,
    given: Container[str] = (),
    title: str = "pretraining",
    interrupt: Interrupt | None = None,
) -> Path:
    """Pretrains an encoder; gives back the run folder.

    With `resume` the run in `config.run_dir` goes on with its own settings, exactly where its last
    checkpoint stands; settings that differ from the defaults, or are named in `given`, must be its own.
    `title` stands before the progress; `interrupt` tells the caller of a signal in the very last step.

    Raises:
        InputError: for settings or data that cannot be used; no folder is left behind.
        RunError: where the run cannot go on; its last checkpoint is good.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    run = None
    config = with_absolute_paths(config)
    if resume:
        run = RunFolder.open(config.run_dir, "pretrain")
        config = merge_resumed(config, run.config, given)
        if run.checkpoint_step() == config.steps:
            return run.path
    training = Training(config, fresh=run is None or run.checkpoint_step() is None)
    if run is None:
        run = RunFolder.create(config.run_dir or free_run_dir(run_stem(config)), training.describe())
    with closing(run), closing(training), locked(run.path):
        training.run(run, interrupt or Interrupt(), title)
    return run.path


@dataclass
class EnvFactory:
    """Makes a worker's environment around the shared pretrainer; picklable."""

    env_id: str
    dataset: ImageDataset
    pretrainer: Pretrainer
    options: dict[str, Any]
    shared: bool

    def __call__(self) -> MaskingVectorEnv:
        pretrainer = self.pretrainer.attach() if self.shared else self.pretrainer
        make_env: Any = load_env_creator(str(gym.spec(self.env_id).vector_entry_point))
        return make_env(data=self.dataset, pretrainer=pretrainer, **self.options)


class Training:
    """Everything that a run is made of; building it checks all settings and touches no run folder.

    Args:
        config: the settings.
        fresh: whether there is no checkpoint that would overwrite the initial weights.
    """

    def __init__(self, config: PretrainConfig, *, fresh: bool = True) -> None:
        check_counts(config)
        check_reconstructor(config.policy, config.reconstructor, config.init)
        self.config = config
        self.device = pick_device(config.device)
        if config.num_workers > 1 and self.device.type != "cpu":
            raise InputError(
                "`num_workers` above 1 shares weights in main memory: choose `device=cpu` or 1 worker."
            )
        image_size = image_size_of(config.image_size)
        self.dataset = open_data(config.data, root=config.data_root, image_size=image_size)
        autoencoder = starting_autoencoder(config, self.dataset.channels, fresh=fresh)
        self.pretrainer = Pretrainer(
            autoencoder,
            num_steps=config.steps,
            learning_rate=config.learning_rate,
            device=self.device,
            frozen=config.reconstructor is not None,
        )
        self.agent_options = agent_options(config.policy, config.agent_options, autoencoder, config.model)
        self.agent = make_mask_source(
            config.policy,
            autoencoder,
            num_workers=config.num_workers,
            seed=config.seed,
            device=self.device,
            masking_steps=config.masking_steps,
            options=self.agent_options,
        )
        self._choose_masks()
        self.factory = self._env_factory(shared=False)
        self.env = self.factory()
        self.inspection = Inspection(
            self.dataset,
            autoencoder,
            self.agent,
            mask_ratio=config.mask_ratio,
            guided_fraction=self.guided_fraction,
            spread_fraction=self.spread_fraction,
        )

    def _choose_masks(self) -> None:
        """Shares and reward: those that were asked for, or else the policy's or the agent's own."""
        config = self.config
        guided, spread, reward = self.agent.guided_fraction, self.agent.spread_fraction, self.agent.reward
        if config.reconstructor is not None:
            # Only the agent learns: from every masked patch, and not from the progress of the autoencoder.
            guided, spread, reward = 1.0, 0.0, Agent.reward
        self.reward = config.reward or reward
        self.guided_fraction = chosen_share(
            "guided", config.guided_fraction, config.guided_ramp, guided, falls=False
        )
        self.spread_fraction = chosen_share(
            "spread", config.spread_fraction, config.spread_ramp, spread, falls=True
        )

    def _env_factory(self, *, shared: bool) -> EnvFactory:
        config = self.config
        initial, ratio = config.initial_mask_ratio, config.mask_ratio
        options = {
            "num_envs": config.batch_size,
            "mask_ratio": ratio if initial is None else RisingMaskRatio(initial, ratio),
            "reward": self.reward,
            "guided_fraction": self.guided_fraction,
            "spread_fraction": self.spread_fraction,
            "weigh": self.agent.weigh,
            "data_workers": count_data_workers(config.data_workers, self.device),
        }
        if self.agent.takes_tensors:
            options["tensors"] = True
        if config.masking_steps != 1:
            options["masking_steps"] = config.masking_steps
        return EnvFactory(self.agent.env_id, self.dataset, self.pretrainer, options, shared)

    def describe(self) -> dict[str, Any]:
        """What `config.json` holds: the settings, and what follows from them."""
        return {
            "kind": "pretrain",
            **to_json(self.config),
            "reward": self.reward,
            "image_size": list(self.pretrainer.autoencoder.image_size),
            "channels": self.dataset.channels,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }

    def run(self, run: RunFolder, interrupt: Interrupt, title: str = "pretraining") -> None:
        """Trains to the last step, from the newest checkpoint of `run` if it has one.

        The loop itself is `agent.learn`: it acts in the environment, whose steps update the autoencoder, and calls
        the recorder after every update.
        """
        start, state = self._restored(run)
        self._say_what_is_known(resumed=state is not None)
        save = functools.partial(self.save, run)
        recorder = Recorder(
            self.config, run, self.inspection, save, start=start, title=title, interrupt=interrupt
        )
        if state is not None:
            recorder.load_state_dict(state)
        else:
            recorder.inspect()
            recorder.snapshot()
        seed = self.config.seed if start == 0 else None
        if self.config.num_workers > 1:
            self._share()
            # The workers' draws are not saved: continue with new ones instead of the same ones again.
            seed = self.config.seed + start
        if state is None:
            self.env.reset(seed=self.config.seed)
            recorder.checkpoint()
        with interrupt, recorder.progress:
            self.agent.learn(self._make_env, self.config.steps - start, seed=seed, callback=recorder)
        if recorder.step < self.config.steps:
            recorder.step = self.pretrainer.updates
            recorder.checkpoint()
            raise Interrupted(
                f"stopped at step {recorder.step}; go on with: {resume_flags(run.path)}",
                interrupt.signal or 2,
            )

    def _restored(self, run: RunFolder) -> tuple[int, dict[str, Any] | None]:
        """The step and the state of the newest checkpoint, loaded; step 0 and None without one."""
        found = run.load_checkpoint()
        if found is None:
            return 0, None
        step, state = found
        if "counts" not in state:
            raise InputError(
                f"the checkpoint in {run.path} is of an older version: start again in another `run_dir`."
            )
        self.load_state_dict(state)
        return step, state

    def _say_what_is_known(self, *, resumed: bool) -> None:
        print(self.dataset, file=sys.stderr)
        if not self.dataset.indices("val"):
            print(
                f"note: {self.dataset.name} has no validation images: pictures and figures of val/ are of training "
                "images.",
                file=sys.stderr,
            )
        if resumed and not self.agent.resumes_exactly:
            print(
                f"note: {self.config.policy} continues with its weights and statistics, but without its stored "
                "experience: the run is sound, but not the same as one without a stop.",
                file=sys.stderr,
            )

    def save(self, run: RunFolder, step: int, recorded: dict[str, Any]) -> None:
        """Exports the encoder and the agent, then writes the checkpoint: it never stands without them."""
        autoencoder = self.pretrainer.autoencoder
        statistics = {"mean": self.dataset.mean, "std": self.dataset.std}
        run.replace("encoder", lambda folder: export_encoder(autoencoder.encoder, folder, **statistics))
        if not isinstance(self.agent, PolicyAgent):
            made = (self.config.policy, self.agent_options, self.agent, self.config.model)
            run.replace("agent", lambda folder: save_agent(folder, *made, autoencoder))
        run.save_checkpoint(step, self.state_dict() | recorded)

    @property
    def _make_env(self) -> Any:
        return self.factory if self.factory.shared else lambda: self.env

    def _share(self) -> None:
        self.pretrainer.share_memory(torch.multiprocessing.get_context("spawn").Lock())
        self.factory = self._env_factory(shared=True)

    def close(self) -> None:
        """Ends the processes that load images."""
        self.env.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "pretrainer": self.pretrainer.state_dict(),
            "agent": self.agent.state_dict(),
            "env": None if self.factory.shared else self.env.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pretrainer.load_state_dict(state["pretrainer"])
        self.agent.load_state_dict(state["agent"])
        if state["env"] is not None:
            self.env.load_state_dict(state["env"])

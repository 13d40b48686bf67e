"""The one loop: any policy or agent masks in the environment, and the run survives."""

from __future__ import annotations

import sys
from collections.abc import Container
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator

from ahm_gym.agents import Agent
from ahm_gym.data import ImageDataset, open_data
from ahm_gym.data.sources import absolute, stem_of
from ahm_gym.device.choice import count_data_workers, pick_device
from ahm_gym.envs import MaskingVectorEnv
from ahm_gym.errors import InputError, Interrupted
from ahm_gym.masking.schedules import RisingMaskRatio, chosen_share
from ahm_gym.masking.selection import count_masked
from ahm_gym.model.patches import image_size_of
from ahm_gym.model.pretrainer import Pretrainer
from ahm_gym.model.published import load_autoencoder, load_published
from ahm_gym.model.vit import build_autoencoder
from ahm_gym.pretraining.config import PretrainConfig, check_counts
from ahm_gym.pretraining.mask_source import agent_options, check_reconstructor, make_mask_source
from ahm_gym.pretraining.recorder import Recorder
from ahm_gym.runs.folder import RunFolder, free_run_dir, resume_flags
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.settings import merge_resumed, to_json
from ahm_gym.runs.storage import locked

NUM_JUDGED = 64


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
    training = Training(config, fresh=run is None or run.checkpoint_step() is None, title=title)
    if run is None:
        run = RunFolder.create(config.run_dir or free_run_dir(run_stem(config)), training.describe())
    with closing(run), closing(training), locked(run.path):
        training.run(run, interrupt or Interrupt())
    return run.path


def with_absolute_paths(config: PretrainConfig) -> PretrainConfig:
    """The same settings, so that they can be used from any folder.

    Raises:
        InputError: where the data is not there.
    """
    data, root = config.data, config.data_root
    if data is not None:
        data, root = absolute(data, root)
    policy, colon, argument = config.policy.partition(":")
    return replace(
        config,
        data=data,
        data_root=None if root is None else root.absolute(),
        policy=f"{policy}:{Path(argument).absolute()}" if colon and argument else config.policy,
        init=None if config.init is None else config.init.absolute(),
        reconstructor=None if config.reconstructor is None else config.reconstructor.absolute(),
    )


def run_stem(config: PretrainConfig) -> str:
    """DATA-POLICY: what a run's folder is called unless its name is given."""
    return f"{stem_of(config.data)}-{config.policy.partition(':')[0]}"


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
        title: what the progress is called.
    """

    def __init__(self, config: PretrainConfig, *, fresh: bool = True, title: str = "pretraining") -> None:
        check_counts(config)
        check_reconstructor(config.policy, config.reconstructor, config.init)
        self.config = config
        self.title = title
        self.device = pick_device(config.device)
        image_size = image_size_of(config.image_size)
        if config.num_workers > 1 and self.device.type != "cpu":
            raise InputError(
                "`num_workers` above 1 shares weights in main memory: choose `device=cpu` or 1 worker."
            )
        self.dataset = open_data(config.data, root=config.data_root, image_size=image_size)
        autoencoder = build_autoencoder(
            config.model,
            image_size=image_size,
            patch_size=config.patch_size,
            channels=self.dataset.channels,
            seed=config.seed,
            normalise_target=config.normalise_target,
        )
        if config.init is not None and fresh:
            print(f"{config.init}: {load_published(autoencoder, config.init)}", file=sys.stderr)
        if config.reconstructor is not None and fresh:
            load_autoencoder(autoencoder, config.reconstructor)
        self.pretrainer = Pretrainer(
            autoencoder,
            num_steps=config.steps,
            learning_rate=config.learning_rate,
            device=self.device,
            frozen=config.reconstructor is not None,
        )
        self.agent_options = agent_options(config.policy, config.agent_options, autoencoder, config.model)
        self.actor: Agent = make_mask_source(
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
        indices = self.dataset.indices("val") or self.dataset.indices("train")
        picked = np.linspace(0, len(indices) - 1, min(NUM_JUDGED, len(indices))).round().astype(int)
        self.judged = self.dataset.resized([indices[i] for i in picked], image_size).to(self.device)
        # With the final ratio from the beginning on, so that figures of one run can be compared over training.
        self.num_judged_masked = count_masked(autoencoder.num_patches, config.mask_ratio)

    def _choose_masks(self) -> None:
        """The shares of the masks and what pays them: what was asked for, or else the policy's or the agent's own."""
        config = self.config
        guided, spread, reward = self.actor.guided_fraction, self.actor.spread_fraction, self.actor.reward
        if config.reconstructor is not None:
            # It is the agent alone that learns: from every masked patch, and not by the progress of the autoencoder.
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
            "weigh": self.actor.weigh,
            "data_workers": count_data_workers(config.data_workers, self.device),
        }
        if self.actor.takes_tensors:
            options["tensors"] = True
        if config.masking_steps != 1:
            options["masking_steps"] = config.masking_steps
        return EnvFactory(self.actor.env_id, self.dataset, self.pretrainer, options, shared)

    def describe(self) -> dict[str, Any]:
        """What `config.json` holds: the settings, and what they came to."""
        return {
            "kind": "pretrain",
            **to_json(self.config),
            "reward": self.reward,
            "image_size": list(self.pretrainer.autoencoder.image_size),
            "channels": self.dataset.channels,
            "mean": list(self.dataset.mean),
            "std": list(self.dataset.std),
        }

    def run(self, run: RunFolder, interrupt: Interrupt) -> None:
        """Trains to the last step, from the newest checkpoint of `run` where it has one."""
        found = run.load_checkpoint()
        start = 0 if found is None else found[0]
        if found is not None and "counts" not in found[1]:
            raise InputError(
                f"the checkpoint in {run.path} is of an older version: begin anew in another `run_dir`."
            )
        print(self.dataset, file=sys.stderr)
        if not self.dataset.indices("val"):
            print(
                f"note: {self.dataset.name} has no validation images: pictures and figures of val/ are of training "
                "images.",
                file=sys.stderr,
            )
        recorder = Recorder(self, run, start)
        if found is None:
            recorder.judge()
            recorder.snapshot()
        else:
            if not self.actor.resumes_exactly:
                print(
                    f"note: {self.config.policy} goes on with its weights and statistics, but without its stored "
                    "experience: the run is a good one, not the same one.",
                    file=sys.stderr,
                )
            self.load_state_dict(found[1])
            recorder.sums.update(found[1]["sums"])
            recorder.counts.update(found[1]["counts"])
        seed = self.config.seed if start == 0 else None
        if self.config.num_workers > 1:
            self._share()
            # The workers' draws are not saved: go on with new ones instead of the same ones again.
            seed = self.config.seed + start
        if found is None:
            self.env.reset(seed=self.config.seed)
            recorder.checkpoint()
        with interrupt as recorder.interrupt, recorder.progress:
            self.actor.learn(self._make_env, self.config.steps - start, seed=seed, callback=recorder)
        if recorder.step < self.config.steps:
            recorder.step = self.pretrainer.updates
            recorder.checkpoint()
            raise Interrupted(
                f"stopped at step {recorder.step}; go on with: {resume_flags(run.path)}",
                recorder.interrupt.signal or 2,
            )

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
            "actor": self.actor.state_dict(),
            "env": None if self.factory.shared else self.env.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pretrainer.load_state_dict(state["pretrainer"])
        self.actor.load_state_dict(state["actor"])
        if state["env"] is not None:
            self.env.load_state_dict(state["env"])

"""A pretraining run: how it starts, its loop, and how it stops and resumes.

The loop is `Agent.learn`, which `_train` calls. For a mask policy it is, in short (see `PolicyAgent.learn`):

    for _ in range(num_steps):
        scores = policy.score(env.patches)  # choose the masks
        info = env.step(scores)             # mask the images and update the autoencoder
        metrics = policy.observe(info)      # learn to choose better masks
        recorder(metrics)                   # log, draw and save
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ahm_gym.data.stream import data_workers_may_fail
from ahm_gym.device import ranks
from ahm_gym.device.launch import begins
from ahm_gym.errors import Interrupted
from ahm_gym.pretraining.config import PretrainConfig
from ahm_gym.pretraining.inputs import run_stem, with_absolute_paths
from ahm_gym.pretraining.policy_options import with_options_of_policy
from ahm_gym.pretraining.recorder import Follower, Recorder
from ahm_gym.pretraining.training import Training
from ahm_gym.runs.folder import RunFolder, free_run_dir, resume_flags
from ahm_gym.runs.interrupt import Interrupt
from ahm_gym.runs.provenance import check_origin
from ahm_gym.runs.settings import MOVABLE, merge_resumed, to_json
from ahm_gym.runs.storage import locked
from ahm_gym.runs.weights_and_biases import WandbRun, project_of


def pretrain(
    config: PretrainConfig,
    *,
    resume: bool = False,
    given: Container[str] = (),
    title: str = "pretraining",
    interrupt: Interrupt | None = None,
    wandb: str | None = None,
) -> Path:
    """Pretrains an encoder; returns the run folder.

    Args:
        config: settings of the run.
        resume: continue the run in `config.run_dir` exactly from its last checkpoint, with its own settings. Under
            torchrun, begin it if it is not there.
        given: names of settings that were given explicitly. When resuming, they must have the values of the run, and
            so must all settings that differ from the defaults.
        title: title of the progress bar.
        interrupt: what can stop the run. If a signal arrives in the last step, the run completes, and only this
            object knows of the signal.
        wandb: project on Weights & Biases to which the metrics are logged, too; None: that of the run to resume.

    Raises:
        InputError: if settings or data cannot be used; no folder is left behind.
        RunError: if the run cannot continue; its last checkpoint is good.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    config = with_absolute_paths(with_options_of_policy(config))
    found = ranks.from_first(functools.partial(find_run, config, resume, given, wandb))
    run, config = found.run, found.config
    if run is not None and found.finished:
        return run.path
    training = Training(config, fresh=found.fresh)
    if run is None:
        path = config.run_dir or free_run_dir(run_stem(config))
        run = ranks.from_first(lambda: RunFolder.create(path, training.describe()))
    with ExitStack() as opened:
        opened.enter_context(closing(run))
        opened.enter_context(closing(training))
        if ranks.is_first():
            opened.enter_context(locked(run.path))
            if found.run is not None:
                check_origin(
                    run.config, training.dataset.content_digest(), config.data or training.dataset.name
                )
                run.follow({name: value for name, value in to_json(config).items() if name in MOVABLE})
            opened.enter_context(logged_to(found.project, run))
        _train(training, run, interrupt or Interrupt(), title)
    ranks.barrier()
    return run.path


@dataclass(frozen=True)
class Found:
    """What is known of a run before it is trained."""

    run: RunFolder | None
    """The run to resume, if there is one."""
    config: PretrainConfig
    project: str | None
    """Its project on Weights & Biases."""
    fresh: bool = True
    """Whether it has no checkpoint."""
    finished: bool = False


def find_run(config: PretrainConfig, resume: bool, given: Container[str], wandb: str | None) -> Found:
    """The run to resume, or to begin; the arguments are those of `pretrain`.

    Under torchrun, which repeats a command line, `resume` begins a run that is not there.
    """
    resume = resume and not begins(config.run_dir)
    project = project_of(config.run_dir if resume else None, wandb)
    if not resume:
        return Found(None, config, project)
    run = RunFolder.open(config.run_dir, "pretrain")
    config = merge_resumed(config, run.config, given)
    return Found(run, config, project, run.checkpoint_step() is None, run.has_finished())


@contextmanager
def logged_to(project: str | None, run: RunFolder) -> Iterator[None]:
    """While it is entered, `run` is also logged to this project on Weights & Biases, if there is one."""
    if project is None:
        yield
        return
    with WandbRun(run.path, project, run.config) as online:
        run.also = online.log
        yield


def _train(training: Training, run: RunFolder, interrupt: Interrupt, title: str) -> None:
    """Trains to the last step, starting from the newest checkpoint of `run` if it has one."""
    config = training.config
    start, state = training.restore(run)
    training.print_notes(resumed=state is not None)
    save = functools.partial(training.save, run)
    recorder = (Recorder if ranks.is_first() else Follower)(
        config,
        run,
        training.inspection,
        save,
        start=start,
        title=title,
        interrupt=interrupt,
        measured=training.pretrainer.metrics,
    )
    if state is not None:
        recorder.load_state_dict(state)
    else:
        recorder.inspect()
        recorder.snapshot()
    seed = config.seed if start == 0 else None
    if training.is_asynchronous:
        training.share()
        # The generators of the workers are not saved: draw with a new seed, not with the first one again.
        seed = config.seed + start
    elif state is not None and state["env"] is None:  # workers have trained so far
        seed = config.seed + start
    if state is None:
        training.env.reset(seed=config.seed)
        recorder.checkpoint()

    with data_workers_may_fail(), interrupt, recorder.progress:  # the loop
        training.agent.learn(training.make_env, config.steps - start, seed=seed, callback=recorder)

    if recorder.step < config.steps:
        recorder.step = training.pretrainer.updates
        recorder.checkpoint()
        signal = ranks.largest(interrupt.signal or 0) or 2
        raise Interrupted(f"stopped at step {recorder.step}; continue with: {resume_flags(run.path)}", signal)

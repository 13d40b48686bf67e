"""Workers of A3C on the machines of a Ray cluster: they send gradients to the process that owns the weights.

The owner is the process that calls `learn`. It holds the agent, the autoencoder, both optimisers and all counters, so
that callbacks and checkpoints see what they see without Ray, and nothing but this process has to survive. It hands a
worker the present weights; the worker plays one episode with them and sends back the gradients of both networks; the
owner applies what arrives, one after another, and counts how many updates the weights have had meanwhile (staleness).

Nothing changes the weights but the owner, so it has no lock, and no pause is needed for a consistent state.
"""

from __future__ import annotations

import copy
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ahm_gym.agents.base import Callback, MakeEnv, Metrics, StoppingCallback
from ahm_gym.agents.learner import Learned, Learner
from ahm_gym.agents.workers import RESUME, START, STUCK
from ahm_gym.device.ray_cluster import connected
from ahm_gym.errors import RunError, say

if TYPE_CHECKING:
    from ahm_gym.agents.a3c import A3C
    from ahm_gym.model.pretrainer import Pretrainer

DEATHS: int = 3
"""Number of workers per place that may die in a run; each is replaced."""
TICK: float = 1.0
"""Longest time in seconds between two looks at the workers."""


class Published(NamedTuple):
    """Weights and counters, on their way to a worker."""

    agent: Any
    """What `A3C.published` returned."""
    pretrainer: Any
    """What `Pretrainer.published` returned; None for an environment without one."""


class Played(NamedTuple):
    """What a worker sends after an episode."""

    metrics: Metrics
    learned: list[Learned]
    """Of the agent: gradients and statistics of each rollout."""
    gradients: list[list[Tensor | None]]
    """Of the autoencoder: the gradients of each update."""


class Failure(NamedTuple):
    """An error in a worker."""

    reason: str
    """Its traceback."""


def run_on_ray(
    agent: A3C,
    make_env: MakeEnv,
    num_steps: int,
    *,
    address: str,
    seed: int | None,
    callback: Callback | None,
) -> None:
    """Runs the agent's workers on a Ray cluster until the autoencoder has had `num_steps` more updates.

    If `make_env` has an attribute `pretrainer`, workers update copies of that autoencoder, and this process the
    original. A worker that dies is replaced, its gradient is lost, and the metric `agent/worker_deaths` counts it.

    Raises:
        InputError: if Ray is not installed.
        RunError: if no cluster answers or none of its machines starts a worker, a worker raises, with its traceback,
            or too many die.
    """
    pretrainer = pretrainer_of(make_env)
    weights = pytree.tree_leaves(published(agent, pretrainer))
    message = sum(value.nbytes for value in weights if isinstance(value, Tensor))
    with connected(address, agent.num_workers, message) as ray:
        Owner(ray, agent, make_env, num_steps, seed, callback).run()


def pretrainer_of(make_env: MakeEnv) -> Pretrainer | None:
    """The pretrainer that updates an autoencoder in the environments; None if there is none."""
    return getattr(make_env, "pretrainer", None)


def published(agent: A3C, pretrainer: Pretrainer | None) -> Published:
    """The weights and counters of this moment."""
    return Published(agent.published(), None if pretrainer is None else pretrainer.published())


def as_arrays(message: Any) -> Any:
    """The message with arrays for tensors: Ray sends arrays without a copy."""
    return pytree.tree_map_only(Tensor, lambda value: value.numpy(), message)


def as_tensors(message: Any) -> Any:
    """The message with tensors for arrays, copied, because those that arrive cannot be written to."""
    return pytree.tree_map_only(np.ndarray, torch.tensor, message)


class RemoteWorker:
    """A worker in a process of its own, on any machine of the cluster: it plays with copies of the weights."""

    agent: A3C
    pretrainer: Pretrainer | None
    learner: Learner

    def start(self, made: tuple[A3C, MakeEnv], seed: int, weights: Published) -> Failure | None:
        """Makes the environment, with copies of the agent and of the autoencoder that never update themselves.

        Args:
            made: the agent, and what makes the environment.
            seed: seed of this worker's draws.
            weights: what `as_arrays` made of the present weights.
        """
        try:
            torch.set_num_threads(1)
            self.agent, make_env = made
            self.pretrainer = pretrainer_of(make_env)
            for copied in (self.agent, self.pretrainer):
                if copied is not None:
                    copied.send_gradients()
            self._receive(weights)
            network = copy.deepcopy(self.agent.network)
            self.learner = Learner(self.agent, network, make_env(), torch.Generator(), seed)
        except Exception:
            return Failure(traceback.format_exc())
        return None

    def play(self, weights: Published) -> Played | Failure:
        """Plays one episode with these weights; returns the message to the owner, with arrays for tensors."""
        try:
            self._receive(weights)
            if self.pretrainer is not None:
                self.learner.see(self.learner.env.unwrapped.observe_again())  # pyright: ignore
            metrics = self.learner.episode()
            gradients = [] if self.pretrainer is None else self.pretrainer.sent()
            return as_arrays(Played(metrics, self.agent.sent(), gradients))
        except Exception:
            return Failure(traceback.format_exc())

    def _receive(self, weights: Published) -> None:
        received = as_tensors(weights)
        self.agent.receive(received.agent)
        if self.pretrainer is not None:
            self.pretrainer.receive(received.pretrainer)


@dataclass(eq=False)
class Running:
    """A worker as the owner knows it."""

    name: str
    actor: Any
    plays: bool = False
    """Whether it plays; otherwise it starts, perhaps once the cluster has room."""
    silent: float = 0.0
    """Seconds for which its answer has been awaited."""


class Owner:
    """The process that owns the weights: it starts workers, and applies what they send.

    Args:
        ray: the package ray, connected to a cluster.
        agent: its network and optimiser are updated here.
        make_env: makes the environment of a worker, in its process.
        num_steps: updates of the autoencoder, by all workers together.
        seed: seed of the workers' draws; None takes one from the state of the agent.
        callback: called after every update.
    """

    def __init__(
        self,
        ray: Any,
        agent: A3C,
        make_env: MakeEnv,
        num_steps: int,
        seed: int | None,
        callback: Callback | None,
    ) -> None:
        self.ray: Any = ray
        self.agent: A3C = agent
        self.pretrainer: Pretrainer | None = pretrainer_of(make_env)
        self.num_steps: int = num_steps
        self.seed: int = int(agent.writes) if seed is None else seed
        self.callback: Callback | None = callback
        self.done: int = 0
        self.deaths: int = 0
        self.started: int = 0
        self.stopped: bool = False
        self.calls: dict[Any, Running] = {}
        """The workers by the answer that is awaited from each."""
        self.workers: list[Running] = []
        """All that live, also those for which no episode is left."""
        self.without: float = 0.0
        """Seconds for which no worker has played."""
        self._made: Any = ray.put((agent, make_env))
        self._actor: Any = ray.remote(num_cpus=1, max_restarts=0)(RemoteWorker)
        self._sent: tuple[int, Any] = (-1, None)
        """How many updates the owner had made when it last put the weights into the cluster's store, and where."""

    def run(self) -> None:
        """Learns until the autoencoder has had all updates, or the callback wants to stop; then ends the workers."""
        try:
            for _ in range(self.agent.num_workers):
                self._start()
            self._learn()
        finally:
            for worker in self.workers:
                self.ray.kill(worker.actor)

    def _learn(self) -> None:
        while self.done < self.num_steps and not self._has_to_stop():
            began = time.monotonic()
            answered, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=TICK)
            for call in answered:
                self._take(call)
            self._watch(min(time.monotonic() - began, 2 * TICK))

    def _has_to_stop(self) -> bool:
        asked = isinstance(self.callback, StoppingCallback) and self.callback.has_to_stop()
        return self.stopped or asked

    def _start(self) -> None:
        """Starts a worker, whose draws no earlier one has made."""
        self.started += 1
        worker = Running(f"worker {self.started}", self._actor.remote())
        self.workers.append(worker)
        seed = 1_000_003 * self.started + self.seed
        self.calls[worker.actor.start.remote(self._made, seed, self._weights())] = worker

    def _play(self, worker: Running) -> None:
        """Lets a worker play an episode, if there is one left that no other one plays."""
        if self.done + sum(other.plays for other in self.calls.values()) < self.num_steps:
            worker.plays, worker.silent = True, 0.0
            self.calls[worker.actor.play.remote(self._weights())] = worker

    def _weights(self) -> Any:
        """Where the cluster keeps the present weights."""
        if self._sent[0] != self.done:
            self._sent = self.done, self.ray.put(as_arrays(published(self.agent, self.pretrainer)))
        return self._sent[1]

    def _take(self, call: Any) -> None:
        """Takes what a worker has answered, or replaces the worker if it died."""
        worker = self.calls.pop(call)
        try:
            answer = as_tensors(self.ray.get(call))
        except self.ray.exceptions.RayTaskError as error:
            answer = Failure(str(error))
        except self.ray.exceptions.RayError as error:
            self._replace(worker, str(error).partition("\n")[0])
            return
        if isinstance(answer, Failure):
            raise RunError(f"{worker.name} failed and ended the run; {RESUME}. {answer.reason}")
        if isinstance(answer, Played):
            self._apply(answer)
        self._play(worker)

    def _apply(self, played: Played) -> None:
        """Updates the weights by what a worker has sent, and reports it."""
        metrics = dict(played.metrics)
        for gradients in played.gradients:
            assert self.pretrainer is not None, "its copies have sent them"
            self.pretrainer.apply(gradients)
        for learned in played.learned:
            staleness = self.agent.apply(learned)
            if learned.gradients is not None:
                metrics["agent/staleness"] = float(staleness)
        self.agent.episodes += 1
        self.done += 1
        metrics["agent/worker_deaths"] = float(self.deaths)
        if self.callback is not None and self.callback(metrics):
            self.stopped = True

    def _replace(self, worker: Running, reason: str) -> None:
        """Counts the death of a worker, and starts another.

        Raises:
            RunError: if too many have died.
        """
        self.deaths += 1
        most = DEATHS * self.agent.num_workers
        died = f"{worker.name} died ({reason.rstrip('.')})"
        if self.deaths > most:
            raise RunError(f"{died}, after {most} others that were replaced, which ends the run; {RESUME}.")
        say(
            f"note: {died}: its gradient is lost, and another takes its place (death {self.deaths} of {most})."
        )
        self.workers.remove(worker)
        self.ray.kill(worker.actor)
        self._start()

    def _watch(self, seconds: float) -> None:
        """Replaces workers that hang.

        Args:
            seconds: time since the last call.

        Raises:
            RunError: if no worker has started for too long.
        """
        for call, worker in list(self.calls.items()):
            worker.silent += seconds
            if worker.plays and worker.silent > STUCK:
                del self.calls[call]
                self._replace(worker, f"no gradient for {worker.silent:.0f} s")
        self.without = 0.0 if any(worker.plays for worker in self.calls.values()) else self.without + seconds
        if self.without > START:
            raise RunError(
                f"no machine of the Ray cluster has started a worker for {self.without:.0f} s: see `ray status`; "
                f"{RESUME}."
            )

"""Stands in for the package ray: actors of this process, whose messages are pickled as if they were sent."""

from __future__ import annotations

import itertools
import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class RayActorError(RayError):
    pass


@dataclass(frozen=True)
class Ref:
    """A value of the store, or the answer to a call that is made when it is asked for."""

    number: int


@dataclass
class FakeRay:
    """Answers calls in the order in which they were made; `dies` names the calls after which an actor is dead."""

    dies: Callable[[int, str], bool] = lambda actor, method: False
    hangs: Callable[[int, str], bool] = lambda actor, method: False
    cpus: int = 2
    values: dict[Ref, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    exceptions: Any = field(
        default_factory=lambda: types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    )

    def __post_init__(self) -> None:
        self.numbers = itertools.count()
        self.actors = itertools.count(1)
        self.running = False

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **options: Any) -> None:
        self.options, self.running = options, True
        self.events.append("init")

    def shutdown(self) -> None:
        self.running = False
        self.events.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def put(self, value: Any) -> Ref:
        ref = Ref(next(self.numbers))
        self.values[ref] = pickle.dumps(value)
        return ref

    def remote(self, **options: Any) -> Callable[[type[Any]], Any]:
        self.asked = options

        def decorate(cls: type[Any]) -> Any:
            return types.SimpleNamespace(remote=lambda *arguments: Actor(self, cls(*arguments)))

        return decorate

    def call(self, actor: Actor, method: str, arguments: tuple[Any, ...]) -> Ref:
        ref = Ref(next(self.numbers))
        sent = [self.values[one] if isinstance(one, Ref) else pickle.dumps(one) for one in arguments]
        self.values[ref] = (actor, method, sent)
        return ref

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        able = [ref for ref in refs if not self.hangs(self.values[ref][0].number, self.values[ref][1])]
        return able[:num_returns], [ref for ref in refs if ref not in able[:num_returns]]

    def get(self, ref: Ref) -> Any:
        actor, method, sent = self.values.pop(ref)
        if actor.dead or self.dies(actor.number, method):
            actor.dead = True
            raise RayActorError("The actor died unexpectedly.\nSIGKILL")
        try:
            answer = getattr(actor.instance, method)(*map(pickle.loads, sent))
            return pickle.loads(pickle.dumps(answer))
        except Exception as error:
            raise RayTaskError(repr(error)) from error

    def kill(self, actor: Actor) -> None:
        actor.dead = True
        self.events.append(f"kill {actor.number}")


class Actor:
    """A handle of an actor; `actor.method.remote(...)` returns a `Ref`."""

    def __init__(self, ray: FakeRay, instance: Any) -> None:
        self.ray, self.instance, self.dead = ray, instance, False
        self.number = next(ray.actors)

    def __getattr__(self, method: str) -> Any:
        return types.SimpleNamespace(remote=lambda *arguments: self.ray.call(self, method, arguments))

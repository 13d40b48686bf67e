"""Sentences that are said while data is read. They are kept with the prepared data."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ahm_gym.errors import say


class Told:
    """Sentences on data, each of which is said once, however often the data is read."""

    def __init__(self, name: str) -> None:
        self.name: str = name
        """The name of the data."""
        self.sentences: list[str] = []
        """What was said, without a full stop."""

    def say(self, sentence: str) -> None:
        """Says a sentence, given without a full stop, unless it was said before."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            say(f"note: {self.name}: {sentence}.")


@runtime_checkable
class HasTold(Protocol):
    """A source that keeps what it tells."""

    told: Told

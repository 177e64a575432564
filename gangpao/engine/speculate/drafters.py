"""What a drafter is.

A drafter guesses tokens one after another, each with the kind of guess that it is; how often a kind is right is counted elsewhere
(chances.py). Guesses come from a generator, so that one that costs something is made only when it is asked for.

A guess never changes an answer: every token is chosen from the model's own row, with the request's own random numbers, and a
row has the same bits whatever stands beside it in a step (transformer.py). Right guesses save steps, wrong ones cost rows.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gangpao.engine.sample import Logits, Sampler, largest

CANDIDATES = 64  # that a certainty is worked out among


class Guess(NamedTuple):
    """A token that may come next, all guesses before it being right; kind: guesses that are right about as often."""

    token: int
    kind: str


class Price(NamedTuple):
    """Seconds (or steps) that guesses take: what has to be caught up with before the first, the first itself, each further one."""

    ready: float
    first: float
    each: float


FREE = Price(0.0, 0.0, 0.0)


class Drafter(Protocol):
    """Proposals for one answer."""

    name: str

    def guesses(self, ids: Sequence[int]) -> Generator[Guess, None, None]:
        """Tokens that may follow `ids`, the text so far, one behind the other."""

    def seconds(self, ids: Sequence[int]) -> Price:
        """What guesses behind `ids` are going to take."""

    def close(self, ids: Sequence[int]) -> None:
        """The answer is over; ids: prompt and answer."""


class PricedDrafter(Drafter, Protocol):
    """One whose guesses take time. plain_s: seconds of a step of one row; whoever asks keeps it up to date. most: guesses that it
    has at once."""

    plain_s: float

    @property
    def most(self) -> int: ...


LONGEST = 16  # tokens that are compared backwards at most
_CLASSES = ((2, "2"), (3, "3"), (7, "4-7"), (LONGEST - 1, "8-15"))


def kind_of(name: str, same: int) -> str:
    """The kind of a guess behind a stretch of so many tokens that are the same."""
    return f"{name} {next((label for most, label in _CLASSES if same <= most), '16+')}"


def choose(ahead: Sampler, logits: Logits, who: str) -> tuple[int, float]:
    """The token that the answer would have by these logits of a drafter, and how likely they say it is. ahead: a copy of what the
    answer's tokens are chosen by; who: whose logits they are, for an error."""
    try:
        token = ahead.sample(logits)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None
    ids = largest(logits, CANDIDATES)
    warmth = max(ahead.params.temperature, 1e-6) if ahead.params.temperature else 1.0
    weights = np.exp((logits[ids] - logits[ids].max()) / warmth)
    return token, float(np.exp((logits[token] - logits[ids].max()) / warmth) / weights.sum())


def graded(sure: float) -> float:
    """A certainty rounded down to a tenth, with finer steps near 1: guesses of a grade are of one kind."""
    return next((fine for fine in (0.99, 0.95) if sure >= fine), int(sure * 10) / 10)

"""What a drafter is.

A drafter guesses tokens one after another, each with the kind of guess that it is; how often a kind is right is counted elsewhere
(chances.py). Guesses come from a generator, so that one that costs something is made only when it is asked for.

A guess never changes an answer: every token is chosen from the model's own row, with the request's own random numbers, and a
row has the same bits whatever stands beside it in a step (transformer.py). Right guesses save steps, wrong ones cost rows.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol


class Guess(NamedTuple):
    """A token that may come next, all guesses before it being right; kind: guesses that are right about as often."""

    token: int
    kind: str


class Drafter(Protocol):
    """Proposals for one answer."""

    name: str

    def guesses(self, ids: Sequence[int]) -> Generator[Guess, None, None]:
        """Tokens that may follow `ids`, the text so far, one behind the other."""

    def seconds(self, ids: Sequence[int]) -> tuple[float, float]:
        """What the first guess behind `ids` takes, and each further one."""

    def close(self, ids: Sequence[int]) -> None:
        """The answer is over; ids: prompt and answer."""


LONGEST = 16  # tokens that are compared backwards at most
_CLASSES = ((2, "2"), (3, "3"), (7, "4-7"), (LONGEST - 1, "8-15"))


def kind_of(name: str, same: int) -> str:
    """The kind of a guess behind a stretch of so many tokens that are the same."""
    return f"{name} {next((label for most, label in _CLASSES if same <= most), '16+')}"

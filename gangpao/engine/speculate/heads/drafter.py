"""Guesses of a draft head for one answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from gangpao.engine.cache import KVCache
from gangpao.engine.sample import Logits, Sampler
from gangpao.engine.speculate.drafters import Guess, Price, choose, graded


class Head(Protocol):
    """What a drafter asks (head.py)."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> range: ...
    def run(self, cache: KVCache, last: int) -> int | None: ...
    def guess(self, number: int, row: int, before: int) -> tuple[Logits, float | None] | None: ...
    def seconds(self, ids: Sequence[int], plain_s: float) -> Price: ...


class HeadDrafter:
    """cache: where the answer's text is now, if it is anywhere. The kind of a guess is how sure the head is of it where it says
    so, else how likely it has the token."""

    name = "head"

    def __init__(self, head: Head, sampler: Sampler, cache: Callable[[], KVCache | None]) -> None:
        self._head = head
        self._sampler = sampler
        self._cache = cache
        self.plain_s = 0.0  # whoever asks keeps it up to date

    @property
    def most(self) -> int:
        """Guesses of a block."""
        return len(self._head.rows)

    def seconds(self, ids: Sequence[int]) -> Price:
        return self._head.seconds(ids, self.plain_s)

    def guesses(self, ids: Sequence[int]) -> Generator[Guess, None, None]:
        cache = self._cache()
        if cache is None or cache.length != len(ids) - 1:
            return
        before = ids[-1]
        number = self._head.run(cache, before)
        if number is None:
            return
        ahead = self._sampler.copy()
        for row in self._head.rows:
            found = self._head.guess(number, row, before)
            if found is None:
                return
            logits, sure = found
            before, likely = choose(ahead, logits, f"the draft head {self._head.name}")
            yield Guess(before, f"{self.name} {graded(likely if sure is None else sure)}")

    def close(self, ids: Sequence[int]) -> None:
        """Its part of the pages goes with the text's."""

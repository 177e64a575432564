"""Guesses from earlier answers: what followed the same three tokens in one that ended before.

Answers to many questions of one form (extraction into JSON, the same report every day, another try at the same question) repeat
each other where their own prompt has nothing to copy. The answers of one owner are kept in a ring of ids with an index.

Whose answers help whom: only those of the same owner and the same adapters. In a process of one person (run, chat, the Python API)
that is everything; a server takes the API key for the owner and pools nothing for requests without one, because how fast an
answer comes tells what was in the pool. Texts never change by it: a guess that is wrong is not said.
"""

import itertools
from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterator, Sequence

from gangpao.engine.speculate.drafters import FREE, Guess, Price, kind_of

SIZE = 3
TOKENS = 16_384  # of a pool; with its index about 4 MB
POOLS = 16  # owners at most; the one that was not used for longest goes


class Pool:
    """The newest TOKENS ids of ended answers, and where each run of SIZE of them was last followed by something."""

    def __init__(self, tokens: int = TOKENS) -> None:
        self._tokens = tokens
        self._ring: list[int] = []
        self._written = 0  # ids ever
        self._seen: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, ids: Sequence[int]) -> None:
        """Remember an answer, the last part of it if it is longer than the pool."""
        ids = list(ids[-self._tokens + 1 :])
        before: tuple[int, ...] = ()
        for token in itertools.chain(ids, (-1,)):  # -1: nothing follows across two answers
            if len(before) == SIZE and token >= 0:
                self._seen[before] = self._written
            self._put(token)
            before = (*before, token)[-SIZE:]

    def _put(self, token: int) -> None:
        place = self._written % self._tokens
        if place < len(self._ring):
            self._forget(self._written - self._tokens)
            self._ring[place] = token
        else:
            self._ring.append(token)
        self._written += 1

    def _forget(self, oldest: int) -> None:
        """The run in front of the oldest place but SIZE goes, if that place is still where it was last."""
        at = oldest + SIZE
        run = tuple(self._ring[(oldest + i) % self._tokens] for i in range(SIZE))
        if self._seen.get(run) == at:
            del self._seen[run]

    def behind(self, last: Sequence[int]) -> Iterator[int]:
        """What followed the last SIZE ids, oldest first, to the end of that answer."""
        at = self._seen.get(tuple(last[-SIZE:]))
        while at is not None and self._written - self._tokens <= at < self._written:
            token = self._ring[at % self._tokens]
            if token < 0:
                return
            yield token
            at += 1


class Pools:
    """Pools by owner, the POOLS that were used last."""

    def __init__(self, most: int = POOLS) -> None:
        self._most = most
        self._pools: OrderedDict[Hashable, Pool] = OrderedDict()

    def of(self, owner: Hashable) -> Pool:
        """The owner's pool; an empty one where there is none."""
        pool = self._pools.setdefault(owner, Pool())
        self._pools.move_to_end(owner)
        while len(self._pools) > self._most:
            self._pools.popitem(last=False)
        return pool


class PoolDrafter:
    """Guesses from a pool; the answer goes into it when it is over. begins: the length of its prompt."""

    name = "pool"

    def __init__(self, pool: Pool, begins: int) -> None:
        self._pool = pool
        self._begins = begins

    def seconds(self, ids: Sequence[int]) -> Price:
        return FREE

    def guesses(self, ids: Sequence[int]) -> Generator[Guess, None, None]:
        for i, token in enumerate(self._pool.behind(ids)):
            yield Guess(token, kind_of(self.name, SIZE + i))

    def close(self, ids: Sequence[int]) -> None:
        self._pool.add(ids[self._begins :])

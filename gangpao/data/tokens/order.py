"""The two choices a loader makes, without tables and without a generator's state: which source next, which document next.

Which document: a permutation of 0 .. n-1 computed for one index at a time by a Feistel network on a rectangle of a x b
numbers, just larger than n; a result outside n goes through again until it falls inside. Seed, source and epoch are the
key. Position in the data is then a handful of integers.

Which source: the one that is furthest behind its share of the tokens, looking one row ahead plus a pseudo-random part of
another; without that part the sources would take turns in a fixed pattern, and a rank could be left with one of them. The
share is off by no more than a few rows at any time, so the error of the share falls as one over the number of rows.

What it gives up: the permutation is good enough to shuffle documents, not to hide anything.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

_MASK = (1 << 64) - 1
_ROUNDS = 6


def key_of(*parts: object) -> int:
    """64 bits that depend on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def scramble(x: int) -> int:
    """64 bits to 64 well mixed ones, one to one (the finishing step of splitmix64)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


class Permutation:
    """A shuffled order of 0 .. count-1: `permutation(i)` is what stands at place i."""

    def __init__(self, count: int, key: int) -> None:
        if count < 1:
            raise ValueError("a permutation needs at least one element")
        self._count = count
        self._rows = math.isqrt(count - 1) + 1  # rows x columns >= count, and little more
        self._columns = -(-count // self._rows)
        self._keys = [scramble((key + 0x9E3779B97F4A7C15 * (i + 1)) & _MASK) for i in range(_ROUNDS)]

    def __call__(self, i: int) -> int:
        assert 0 <= i < self._count
        rows, columns = self._rows, self._columns
        while True:
            row, column = divmod(i, columns)
            for n, key in enumerate(self._keys):  # each step can be undone, so the whole is one to one
                if n % 2:
                    column = (column + scramble(row ^ key)) % columns
                else:
                    row = (row + scramble(column ^ key)) % rows
            i = row * columns + column
            if i < self._count:
                return i


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares that sum to 1. Raises ValueError when one is negative or not finite, or all are zero."""
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"the weight of {name} is {weight}; it must be a number from 0 up")
    total = math.fsum(weights.values())
    if not 0 < total < math.inf:
        raise ValueError("no source has a weight above 0; give at least one")
    return {name: weight / total for name, weight in weights.items()}


def choose(shares: Sequence[float], seen: Sequence[int], ahead: int, key: int) -> int:
    """The index of the source that comes next. shares sum to 1; seen: tokens so far; ahead: tokens of a row."""
    total = sum(seen)
    best, most = -1, -math.inf
    for i, share in enumerate(shares):
        if share <= 0:
            continue
        extra = scramble((key + 0x9E3779B97F4A7C15 * (i + 1)) & _MASK) / (1 << 64)
        behind = share * (total + ahead * (1 + extra)) - seen[i]
        if behind > most:
            best, most = i, behind
    assert best >= 0
    return best

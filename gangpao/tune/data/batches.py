"""Batches of preferences: answers to be compared, packed into rows, never parted from one another, resumable to the bit.

A unit is what may not be parted: the two answers to one prompt, or one answer with its label. Units come in a shuffled order,
every one once, then all again in another order; `take(rows)` counts units. Each answer is a document with its prompt in front of
it, and those of a batch lie in as few rows as they fit into (the longest first, each in the first row with room).

The order of units is one global order, as in gangpao/data/tokens/pack.py: rank r of w takes units r, r + w, ... of it.

What it gives up: batches of one shape; the number of rows and their length are what the answers need.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from gangpao.config import Frozen
from gangpao.data.tokens.order import Permutation, choose, key_of, normalised
from gangpao.data.tokens.pack import IGNORE, Ids
from gangpao.data.tokens.shards import Shards

STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Preferences:
    """Rows [B, T] that hold S answers. ids, labels, documents: as in pack.Batch. sequences[b, t]: the number of the answer that the
    label there belongs to, -1 where there is none. desirable [S]: whether an answer is a good one; of pairs, which come as chosen,
    rejected, chosen, rejected ..., every other one."""

    ids: Ids
    labels: Ids
    documents: Ids
    sequences: Ids
    desirable: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """One source: answers as documents of shards, `unit` of which belong together (2: pairs, 1: single answers)."""

    name: str
    shards: Shards
    desirable: npt.NDArray[np.bool_]
    unit: int
    weight: float = 1.0

    @property
    def units(self) -> int:
        """How many there are."""
        return self.shards.num_documents // self.unit


class _Position(Frozen):
    fingerprint: str
    weight: float
    seen: int = Field(ge=0)


class _State(Frozen):
    version: int
    seed: int
    rows: int = Field(ge=0)
    parts: dict[str, _Position]


class PreferenceLoader:
    """Batches from a mixture of sources; a `gangpao.train.loop.Source`.

    weight: of a source, its share of the units relative to the others.

    Raises ValueError for an empty source or an answer longer than seq_len.
    """

    def __init__(self, parts: Sequence[Answers], *, seq_len: int, seed: int) -> None:
        for part in parts:
            if not part.units:
                raise ValueError(f"source {part.name} has no answers; leave it out")
            if int(np.diff(part.shards.offsets).max()) > seq_len:
                raise ValueError(f"source {part.name} has an answer longer than seq_len = {seq_len}")
        self._parts = {part.name: part for part in parts}
        self._shares = list(normalised({part.name: part.weight for part in parts}).values())
        self.seq_len, self.seed = seq_len, seed
        self._rows = 0
        self._seen = dict.fromkeys(self._parts, 0)

    @property
    def rows_seen(self) -> int:
        """Units handed out so far, to all ranks together."""
        return self._rows

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through."""
        return {name: seen / self._parts[name].units for name, seen in self._seen.items()}

    def take(self, rows: int, rank: int = 0, world: int = 1) -> Preferences:
        """Of the next `rows` units of the global order those that belong to `rank`; the position moves by `rows`."""
        if rows < 1 or not 0 <= rank < world:
            raise ValueError(f"take: rows is {rows}, rank {rank}, world {world}; need rows >= 1 and 0 <= rank < world")
        chosen = [(part, unit) for i in range(rows) for part, unit in [self._next()] if i % world == rank]
        return laid_out([(part, part.unit * unit + k) for part, unit in chosen for k in range(part.unit)], self.seq_len)

    def _next(self) -> tuple[Answers, int]:
        i = choose(self._shares, list(self._seen.values()), 1, key_of("rows", self.seed, self._rows))
        name = list(self._parts)[i]
        part, seen = self._parts[name], self._seen[name]
        epoch, place = divmod(seen, part.units)
        self._rows, self._seen[name] = self._rows + 1, seen + 1
        return part, Permutation(part.units, key_of("documents", self.seed, name, epoch))(place)

    def state(self) -> dict[str, Any]:
        """The position as JSON: small, and the same for every rank and world size."""
        parts = {
            name: _Position(fingerprint=part.shards.fingerprint, weight=part.weight, seen=self._seen[name])
            for name, part in self._parts.items()
        }
        return _State(version=STATE_VERSION, seed=self.seed, rows=self._rows, parts=parts).model_dump()

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken; what follows is what would have followed then.

        Raises ValueError, and changes nothing, when the state is damaged or belongs to other data, another mixture or seed."""
        try:
            found = _State.model_validate(state)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"the saved data position is damaged: {where}: {first['msg']}") from error
        if found.version != STATE_VERSION or found.seed != self.seed:
            raise ValueError(
                f"the saved data position has seed {found.seed}, this run {self.seed}; use the same to go on"
            )
        theirs = {name: (position.fingerprint, position.weight) for name, position in found.parts.items()}
        if theirs != {name: (part.shards.fingerprint, part.weight) for name, part in self._parts.items()}:
            raise ValueError(
                "the data is not what it was when the position was saved; use the same files, or start anew"
            )
        seen = {name: found.parts[name].seen for name in self._parts}
        if sum(seen.values()) != found.rows:
            raise ValueError("the saved data position is damaged: its counts do not fit together")
        self._rows, self._seen = found.rows, seen


def preference_batches(parts: Sequence[Answers], seq_len: int, rows: int) -> Iterator[Preferences]:
    """Everything once in the order of the files, `rows` units in a batch."""
    units = [(part, unit) for part in parts for unit in range(part.units)]
    for at in range(0, len(units), rows):
        answers = [(part, part.unit * unit + k) for part, unit in units[at : at + rows] for k in range(part.unit)]
        yield laid_out(answers, seq_len)


def laid_out(answers: Sequence[tuple[Answers, int]], seq_len: int) -> Preferences:
    """A batch of these documents in this order of numbers, in as few rows of at most seq_len tokens as first-fit finds."""
    spans = [part.shards.span(document) for part, document in answers]
    lengths = [stop - start for start, stop in spans]
    rows: list[list[int]] = []
    used: list[int] = []
    for i in sorted(range(len(answers)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, full in enumerate(used) if full + lengths[i] <= seq_len), len(rows))
        if row == len(rows):
            rows.append([])
            used.append(0)
        rows[row].append(i)
        used[row] += lengths[i]
    shape = (len(rows), max(used, default=0))
    ids, documents = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, sequences = np.full(shape, IGNORE, np.int64), np.full(shape, -1, np.int64)
    for r, members in enumerate(rows):
        at = 0
        for number, i in enumerate(members):
            (part, document), (start, stop), end = answers[i], spans[i], at + lengths[i]
            ids[r, at:end] = part.shards.tokens[start:stop]
            learned = part.shards.document_mask(document)[1:] != 0
            labels[r, at : end - 1] = np.where(learned, part.shards.tokens[start + 1 : stop].astype(np.int64), IGNORE)
            sequences[r, at : end - 1] = np.where(learned, i, -1)
            documents[r, at:end] = number
            at = end
        documents[r, at:] = len(members)
    desirable = np.array([part.desirable[document] for part, document in answers], bool)
    return Preferences(ids, labels, documents, sequences, desirable)

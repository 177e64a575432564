"""Batches for training: documents packed end to end into rows, never attending across a border, resumable to the bit.

Each source is an endless stream: its documents in a shuffled order, every one once, then all again in another order. A row
is `seq_len` tokens of one stream; a document that does not end in it goes on in the stream's next row. Nothing is padded and
nothing is dropped: every token is an input once an epoch, and every token but a document's first is a label.
`documents` numbers the documents of a row, so that attention can be kept inside each.

Rows are handed out in another order than they lie in the stream, shuffled within windows of WINDOW rows. Else the rows of a
long document would follow each other, and a batch would be one page of a book: its gradient says little about the rest. A window
as long as the source shuffles all of it, for some tenths of a second at its start for each ten million tokens.

The order of rows is one global order. Rank r of w takes rows r, r + w, ... of it, whatever w is, and the position is
four integers a source: a run can be saved by eight processes and go on in two.

What it gives up: a document that is cut loses its context at the cut. Conversations are kept whole (`Part.whole`): those of a
window are laid into rows the longest first, each where it leaves the least room, and what stays free is padding.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from gangpao.config import Frozen
from gangpao.data.tokens.order import Permutation, choose, key_of, normalised
from gangpao.data.tokens.shards import Shards

IGNORE = -100  # the label that no loss is computed for, as in torch
STATE_VERSION = 2  # 1: rows in the order of the stream, which is a window of which nothing is taken yet
WINDOW = 1024  # rows that are shuffled together, where a loader is not told otherwise

Ids = npt.NDArray[np.int64]
Span = tuple[int, int, int]  # document, first token, token after the last


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows [B, T]. labels[b, t] is the id after ids[b, t] in the same document, or -100 where there is none to learn.

    documents[b, t] numbers the documents of a row from 0 on; padding, where there is any, has a number of its own.
    """

    ids: Ids
    labels: Ids
    documents: Ids


@dataclass(frozen=True, slots=True)
class Part:
    """One source in a mixture. weight: its share of the tokens, relative to the other parts.

    whole: a document that fits in a row is not cut; what no document of the window fits into is padding.
    """

    name: str
    shards: Shards
    weight: float
    whole: bool = False


class _Position(Frozen):
    fingerprint: str
    weight: float
    whole: bool
    epoch: int = Field(ge=0)
    index: int = Field(ge=0)
    offset: int = Field(ge=0)
    taken: int = Field(default=0, ge=0)
    tokens: int = Field(ge=0)


class _State(Frozen):
    version: int
    seed: int
    seq_len: int
    window: int = Field(default=1024, ge=1)  # of positions that were saved before it could be another
    rows: int = Field(ge=0)
    parts: dict[str, _Position]


class _Stream:
    """One source's endless stream, and where in it we are: the place where a window begins, and how many of its rows are taken."""

    def __init__(self, part: Part, seed: int, seq_len: int, window: int) -> None:
        self.part, self.shards = part, part.shards
        self.seed, self.seq_len, self.window = seed, seq_len, window
        self.tokens = 0
        self.move(0, 0, 0)

    def move(self, epoch: int, index: int, offset: int, taken: int = 0) -> None:
        """Go to the window that begins at a token of the document at place `index` of an epoch's order."""
        self.epoch, self.index, self.offset, self.taken = epoch, index, offset, taken
        self.rows: list[list[Span]] = []

    def _documents(self, epoch: int) -> Permutation:
        return Permutation(self.shards.num_documents, key_of("documents", self.seed, self.part.name, epoch))

    def row(self) -> list[Span]:
        """What the next row is made of."""
        self._look_ahead()
        spans = self.rows[self._order(self.taken)]
        self.tokens += sum(last - first for _, first, last in spans)
        self.taken += 1
        if self.taken == len(self.rows):
            self.move(*self._end)
        return spans

    def exists(self) -> bool:
        """Whether this is a place in the documents, and a row of its window is left."""
        if self.index >= self.shards.num_documents:
            return False
        start, stop = self.shards.span(self._documents(self.epoch)(self.index))
        if self.offset >= stop - start:
            return False
        if self.taken:
            self._look_ahead()
        return not self.taken or self.taken < len(self.rows)

    def next_window(self) -> tuple[int, int, int]:
        """Where to go on with rows or windows of another length: here, or behind the window that was begun."""
        if not self.taken:
            return self.epoch, self.index, self.offset
        self._look_ahead()
        return self._end

    def _look_ahead(self) -> None:
        """Work out the rows of the window that begins here, and where the next one begins, where that is not done. The row in which
        an epoch ends is its window's last one, so that everything was seen once before anything is seen twice."""
        if self.rows:
            return
        if self.part.whole:
            self.rows, self._end = self._fitted()
        else:
            self.rows, self._end = self._cut()
        key = key_of("window", self.seed, self.part.name, self.epoch, self.index, self.offset)
        self._order = Permutation(len(self.rows), key)

    def _fitted(self) -> tuple[list[list[Span]], tuple[int, int, int]]:
        """Rows of whole documents, and where the next window begins: behind as many documents as would fill this one's rows."""
        order, index, offset = self._documents(self.epoch), self.index, self.offset
        pieces: list[Span] = []
        tokens = 0
        while index < self.shards.num_documents and tokens < self.window * self.seq_len:
            start, stop = self.shards.span(order(index))
            length = stop - start
            cuts = [*range(offset, length, self.seq_len), length]
            pieces += [(order(index), first, last) for first, last in itertools.pairwise(cuts)]
            tokens += length - offset
            index, offset = index + 1, 0
        rows: list[list[Span]] = []
        rooms: list[tuple[int, int]] = []  # room that is left and the number of the row, in order
        for piece in sorted(pieces, key=lambda piece: piece[1] - piece[2]):  # equally long ones stay in their order
            length = piece[2] - piece[1]
            at = bisect.bisect_left(rooms, (length, 0))
            room, row = rooms.pop(at) if at < len(rooms) else (self.seq_len, len(rows))
            if row == len(rows):
                rows.append([])
            rows[row].append(piece)
            bisect.insort(rooms, (room - length, row))
        return rows, (self.epoch, index, 0) if index < self.shards.num_documents else (self.epoch + 1, 0, 0)

    def _cut(self) -> tuple[list[list[Span]], tuple[int, int, int]]:
        """Full rows, with documents cut where a row ends, and where the next window begins."""
        rows: list[list[Span]] = []
        epoch, index, offset = self.epoch, self.index, self.offset
        order = self._documents(epoch)
        while len(rows) < self.window and epoch == self.epoch:
            spans: list[Span] = []
            room = self.seq_len
            while room:
                document = order(index)
                start, stop = self.shards.span(document)
                length = stop - start
                last = min(length, offset + room)
                spans.append((document, offset, last))
                room -= last - offset
                offset = last
                if last == length:
                    index, offset = index + 1, 0
                    if index == self.shards.num_documents:
                        epoch, index = epoch + 1, 0
                        order = self._documents(epoch)
            rows.append(spans)
        return rows, (epoch, index, offset)


class Loader:
    """Batches from a mixture of sources. Sequential: there is one position, and `take` moves it.

    window: rows that are shuffled together; None: WINDOW.

    Raises ValueError for an empty or doubled source, a weight that is none, or a seq_len or window below 1.
    """

    def __init__(self, parts: Sequence[Part], *, seq_len: int, seed: int, window: int | None = None) -> None:
        self.window = WINDOW if window is None else window
        if min(seq_len, self.window) < 1:
            raise ValueError(f"seq_len is {seq_len}, window {self.window}; a row needs a token, a window a row")
        names = [part.name for part in parts]
        if len(set(names)) != len(names):
            raise ValueError(f"two sources have the same name in {', '.join(names)}")
        self._shares = list(normalised({part.name: part.weight for part in parts}).values())
        for part in parts:
            if part.weight > 0 and not part.shards.num_documents:
                raise ValueError(f"source {part.name} has a weight of {part.weight} and no documents; set it to 0")
        self.seq_len, self.seed = seq_len, seed
        self._rows = 0
        # Empty sources stay in the list of parts but have no stream to draw from.
        self._parts = list(parts)
        self._streams = {p.name: _Stream(p, seed, seq_len, self.window) for p in parts if p.shards.num_documents}

    @property
    def rows_seen(self) -> int:
        """Rows handed out so far, to all ranks together."""
        return self._rows

    @property
    def tokens_seen(self) -> dict[str, int]:
        """Tokens handed out so far by source, to all ranks together."""
        return {p.name: self._streams[p.name].tokens if p.name in self._streams else 0 for p in self._parts}

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through."""
        seen = self.tokens_seen
        return {p.name: seen[p.name] / max(1, p.shards.num_tokens) for p in self._parts}

    def take(self, rows: int, rank: int = 0, world: int = 1) -> Batch:
        """Of the next `rows` rows of the global order those that belong to `rank`; the position moves by `rows`."""
        if rows < 1 or not 0 <= rank < world:
            raise ValueError(f"take: rows is {rows}, rank {rank}, world {world}; need rows >= 1 and 0 <= rank < world")
        mine = len(range(rank, rows, world))
        batch = _blank(mine, self.seq_len)
        for i in range(rows):
            stream = self._next_stream()
            spans = stream.row()
            self._rows += 1
            if i % world == rank:
                _fill(batch, i // world, stream.shards, spans)
        return batch

    def _next_stream(self) -> _Stream:
        if len(self._parts) == 1:
            return self._streams[self._parts[0].name]
        seen = list(self.tokens_seen.values())
        i = choose(self._shares, seen, self.seq_len, key_of("rows", self.seed, self._rows))
        return self._streams[self._parts[i].name]

    def state(self) -> dict[str, Any]:
        """The position as JSON: small, and the same for every rank and world size."""
        parts = {
            name: _Position(
                fingerprint=s.shards.fingerprint, weight=s.part.weight, whole=s.part.whole,
                epoch=s.epoch, index=s.index, offset=s.offset, taken=s.taken, tokens=s.tokens,
            )
            for name, s in self._streams.items()
        }  # fmt: skip
        return _State(
            version=STATE_VERSION, seed=self.seed, seq_len=self.seq_len, window=self.window, rows=self._rows, parts=parts
        ).model_dump()  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken; what follows is what would have followed then.

        Raises ValueError, and changes nothing, when the state is damaged or belongs to other data, another mixture, seed,
        seq_len or window.
        """
        found = _read_state(state)
        for what in ("seed", "seq_len", "window"):
            theirs, ours = getattr(found, what), getattr(self, what)
            if theirs != ours:
                raise ValueError(f"the saved data position has {what} {theirs}, this run {ours}; use the same to go on")
        if found.parts.keys() != self._streams.keys():  # a file may have them in another order
            raise ValueError(
                f"the saved data position is for the sources {', '.join(found.parts)}, this run has "
                f"{', '.join(self._streams)}; use the same mixture to go on"
            )
        there = {name: self._at(name, found) for name in found.parts}
        for name, position in found.parts.items():
            part = self._streams[name].part
            if position.weight != part.weight or position.whole != part.whole:
                raise ValueError(
                    f"source {name}: saved with weight {position.weight} and whole {position.whole}, this run has "
                    f"{part.weight} and {part.whole}; use the same mixture to go on"
                )
        self._streams = {name: there[name] for name in self._streams}
        self._count_on(found)

    def adopt(self, state: dict[str, Any]) -> list[str]:
        """For a new stage: sources that also were in the stage before start where that one left them, so that what was
        not seen yet comes first (with another seq_len or window: what lies behind the windows that were begun).

        Counts start at zero, and with them the order of sources, unless the stage before had this very mixture: then this
        loader goes on as if there were no border, and a run cut into stages sees the rows of the uncut one.

        Returns their names; raises ValueError as `restore` does.
        """
        found = _read_state(state)
        if found.seed != self.seed:
            raise ValueError(f"the stage before had seed {found.seed}, this one {self.seed}: the orders differ")
        shared = {name: self._at(name, found) for name in self._streams if name in found.parts}
        same = (found.seq_len, found.window) == (self.seq_len, self.window)
        for name, stream in shared.items():
            if same:
                self._streams[name] = stream
            else:
                self._streams[name].move(*stream.next_window())
        if same and self._mixture() == {name: (p.weight, p.whole) for name, p in found.parts.items()}:
            self._count_on(found)
        return list(shared)

    def _mixture(self) -> dict[str, tuple[float, bool]]:
        return {name: (stream.part.weight, stream.part.whole) for name, stream in self._streams.items()}

    def _count_on(self, found: _State) -> None:
        """Take over what decides which source comes next."""
        for name, position in found.parts.items():
            self._streams[name].tokens = position.tokens
        self._rows = found.rows

    def _at(self, name: str, found: _State) -> _Stream:
        """A source's stream at a saved position, as the loader that saved it had it. Raises ValueError where there is none."""
        part, position = self._streams[name].part, found.parts[name]
        shards = part.shards
        if position.fingerprint != shards.fingerprint:
            raise ValueError(
                f"source {name}: the data is not what it was when the position was saved ({shards.path} has fingerprint "
                f"{shards.fingerprint[:12]}, saved was {position.fingerprint[:12]}); build the same data, or start anew"
            )
        there = _Stream(part, self.seed, found.seq_len, found.window)
        there.move(position.epoch, position.index, position.offset, position.taken)
        if not there.exists():
            raise ValueError(f"source {name}: the saved data position lies outside its documents; it is damaged")
        return there


def rows_in_epoch(part: Part, seq_len: int, seed: int) -> int:
    """How many rows go by until every document of a source was seen once (the first time; other orders may pack otherwise)."""
    stream = _Stream(part, seed, seq_len, part.shards.num_tokens + 1)
    stream.row()
    return len(stream.rows)


def _read_state(state: dict[str, Any]) -> _State:
    try:
        found = _State.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"the saved data position is damaged: {where}: {first['msg']}") from error
    if found.version not in (1, STATE_VERSION):
        raise ValueError(f"the saved data position has version {found.version}, this gangpao reads {STATE_VERSION}")
    return found


def evaluation_batches(
    shards: Shards, seq_len: int, rows: int, limit_tokens: int | None = None, *, whole: bool = False
) -> Iterator[Batch]:
    """Everything once, in the order of the file, in batches [rows, seq_len]; the end of the last one is padding.

    limit_tokens: stop after that many tokens. whole: a document that fits in a row is not cut, as in `Part`.
    """
    if seq_len < 1 or rows < 1:
        raise ValueError(f"evaluation: seq_len is {seq_len}, rows {rows}; both must be at least 1")
    batch, used = _blank(rows, seq_len), 0
    for spans in _in_order(shards, seq_len, limit_tokens, whole):
        _fill(batch, used, shards, spans)
        used += 1
        if used == rows:
            yield batch
            batch, used = _blank(rows, seq_len), 0
    if used:
        yield batch


def _in_order(shards: Shards, seq_len: int, limit: int | None, whole: bool) -> Iterator[list[Span]]:
    left = shards.num_tokens if limit is None else min(limit, shards.num_tokens)
    spans: list[Span] = []
    room = seq_len
    for document in range(shards.num_documents):
        start, stop = shards.span(document)
        at, length = 0, min(stop - start, left)
        if whole and spans and length > room:
            yield spans
            spans, room = [], seq_len
        while at < length:
            step = min(length - at, room)
            spans.append((document, at, at + step))
            at, room, left = at + step, room - step, left - step
            if not room:
                yield spans
                spans, room = [], seq_len
        if not left:
            break
    if spans:
        yield spans


def _blank(rows: int, seq_len: int) -> Batch:
    shape = (rows, seq_len)
    return Batch(np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64), np.zeros(shape, np.int64))


def _fill(batch: Batch, row: int, shards: Shards, spans: Iterable[Span]) -> None:
    """Write a row. The label of a span's last token is the next one of its document, also when that is in another row."""
    at = number = 0
    for number, (document, first, last) in enumerate(spans):
        start, stop = shards.span(document)
        size = last - first
        batch.ids[row, at : at + size] = shards.tokens[start + first : start + last]
        following = slice(start + first + 1, min(start + last + 1, stop))
        labels = batch.labels[row, at : at + following.stop - following.start]
        labels[:] = shards.tokens[following]
        if shards.mask is not None:
            labels[shards.mask[following] == 0] = IGNORE
        batch.documents[row, at : at + size] = number
        at += size
    batch.documents[row, at:] = number + 1

"""Recurrent states of texts: where each is, who shares it, how it goes back.

A state has one size, whatever the length of its text, and is much larger than a page of keys and values (Qwen3.5-0.8B: 19 MB
against 0.8 MB). A layer changes it with every token, so it cannot be cut like a cache. Three things take its past's place:

    snapshots   while a text grows, its state is kept at every 8th border of pages, and at the newest border of all. A prefix can
                be shared up to a snapshot, and a text can be cut back to one; what lies behind it is computed again
    a log       tokens that may be taken back (drafts) do not go into the state. Their inputs to the layer are kept, and those that
                were right go through the state in front of the next step's tokens, without output; dropping the rest costs nothing
    sharing     a slot with several users is read by all and written by none: who goes on writes into a slot of his own

A text needs a slot for its state; what is left of the pool holds snapshots. Remembered ones that nobody looks at go when slots
are needed, the longest unused first; a text that has no slot for a new snapshot gives up one between its first and its newest.
"""

from __future__ import annotations

from collections.abc import Callable

from gangpao import kernels
from gangpao.formats.layer_sizes import Delta

EVERY = 8 * kernels.PAGE  # positions between the snapshots that stay
LOG_ROWS = 8  # of a new log: as many drafts as speculation proposes, and more
SPARE = 4  # slots beside those that texts need


def slots_for(context: int, tokens: int) -> int:
    """Slots of a pool of so many positions: two for each text that fits at its full length, and some for what is remembered."""
    return 2 * -(-max(tokens, context) // context) + SPARE


def slot_bytes(layers: int, delta: Delta | None) -> int:
    """Bytes of one text's state in so many recurrent layers; 0 for a model that has none."""
    return kernels.States.slot_bytes(*_sizes(layers, delta)) if delta and layers else 0


def _sizes(layers: int, delta: Delta) -> tuple[int, int, int, int, int, int]:
    return layers, delta.k_heads, delta.v_heads, delta.k_dim, delta.v_dim, delta.taps


class StatePool:
    """Slots for the states of many texts. forget() frees a remembered one that nobody uses, and says whether there was one."""

    def __init__(self, layers: int, delta: Delta, slots: int, forget: Callable[[], bool]) -> None:
        self.native = kernels.States(*_sizes(layers, delta), slots)
        self.layers, self.width = layers, delta.width
        self.held = 0  # snapshots of texts that are under way
        self.most_held = slots - (slots - SPARE) // 2  # the rest is for the states themselves
        self._users = [0] * slots
        self._free = list(range(slots - 1, -1, -1))
        self._forget = forget

    @property
    def free_slots(self) -> int:
        """Slots that nobody uses."""
        return len(self._free)

    def users(self, slot: int) -> int:
        """How many texts and snapshots look at it."""
        return self._users[slot]

    def take(self) -> int | None:
        """A slot for one user, if need be a remembered one's; None where every slot is in use."""
        if not self._free and not self._forget():
            return None
        slot = self._free.pop()
        self._users[slot] = 1
        return slot

    def share(self, slot: int) -> int:
        """One more user."""
        self._users[slot] += 1
        return slot

    def free(self, slot: int) -> None:
        """One user less."""
        self._users[slot] -= 1
        if self._users[slot] == 0:
            self._free.append(slot)


class TextState:
    """The state of one text: `at` positions are in it, those of the log come behind; snapshots: position -> slot."""

    def __init__(self, pool: StatePool, at: int = 0, slot: int | None = None) -> None:
        self.pool = pool
        self.at = at
        self.slot = slot  # None: nothing yet
        self.snapshots: dict[int, int] = {}
        self.wanted: set[int] = set()  # further positions at which others want one
        self.logged = 0
        self._log: kernels.Array | None = None
        self._next_log: kernels.Array | None = None
        self._written: int | None = None  # where the last step wrote
        self._spare: int | None = None  # where the next step writes, while others look at `slot`

    @property
    def length(self) -> int:
        """Positions in the state and in the log."""
        return self.at + self.logged

    def reserve(self) -> bool:
        """A slot that only this text uses, for the next steps; False where there is none."""
        if self._target() is None:
            self._spare = self.pool.take()
        return self._target() is not None

    def _target(self) -> int | None:
        """Where a step may write."""
        alone = self.slot is not None and self.pool.users(self.slot) == 1
        return self.slot if alone else self._spare

    def plan(self, rows: kernels.StateRows, begin: int, n: int, drafts: int) -> None:
        """Put n tokens in rows from `begin` on into a step; the last `drafts` of them may be taken back."""
        done = self.logged + n - drafts
        assert done > 0, "a step of nothing but drafts"
        target = self._target()
        assert target is not None, "a step without a reserved state"
        commits = [(position - self.at, slot) for position, slot in self._new_snapshots(self.at + done)]
        commits.append((done, target))
        self._written = target
        source = -1 if self.slot is None else self.slot
        height = self._log.rows // self.pool.layers if self._log else 0
        rows.add(begin, n, source, commits, self._log, height, self.logged)
        self._next_log = self._log
        if drafts and height < drafts:
            self._next_log = kernels.Array(self.pool.layers * max(drafts, LOG_ROWS), self.pool.width)

    def will_share(self, position: int) -> bool:
        """Whether a text that begins with the same `position` tokens will be able to go on from there; the state is kept then."""
        if position > self.length:
            self.wanted.add(position)
        return position > self.length or position in self.snapshots

    def _new_snapshots(self, end: int) -> list[tuple[int, int]]:
        """Positions up to `end` at which the state is kept, and where: whole EVERYs, those wanted, the last border of pages."""
        page = kernels.PAGE
        wanted = self.wanted | {*range((self.at // EVERY + 1) * EVERY, end + 1, EVERY), end // page * page}
        out = []
        for position in sorted(p for p in wanted if self.at < p <= end):
            slot = self.new_snapshot(position)
            if slot is not None:
                out.append((position, slot))
        return out

    def new_snapshot(self, position: int) -> int | None:
        """A slot for the state behind a position, further than all that are kept; None where there is no room for one more."""
        slot = self._slot_for_snapshot()
        if slot is not None:
            self.snapshots[position] = slot
        return slot

    def _slot_for_snapshot(self) -> int | None:
        """That of the newest border, if that is neither an EVERY nor wanted; else a new one; else one between first and newest."""
        order = sorted(self.snapshots)
        if order and order[-1] % EVERY and order[-1] not in self.wanted and self._alone(order[-1]):
            return self.snapshots.pop(order[-1])
        if self.pool.held < self.pool.most_held and (slot := self.pool.take()) is not None:
            self.pool.held += 1
            return slot
        middle = next((position for position in order[1:-1] if self._alone(position)), None)
        return None if middle is None else self.snapshots.pop(middle)

    def _alone(self, position: int) -> bool:
        return self.pool.users(self.snapshots[position]) == 1

    def _forget_snapshot(self, position: int) -> None:
        self.pool.free(self.snapshots.pop(position))
        self.pool.held -= 1

    def log(self, layer: int, x: kernels.Array, end: int, drafts: int) -> None:
        """Keep the inputs of the last `drafts` of the rows before `end`."""
        if drafts:
            assert self._next_log is not None
            begin = layer * (self._next_log.rows // self.pool.layers)
            self._next_log.numpy()[begin : begin + drafts] = x.numpy()[end - drafts : end, : self.pool.width]

    def advance(self, n: int, drafts: int) -> None:
        """Behind a step of n tokens."""
        if self._written != self.slot:  # others may have left the slot since `plan`
            assert self._written == self._spare
            if self.slot is not None:
                self.pool.free(self.slot)
            self.slot, self._spare = self._spare, None
        self.at += self.logged + n - drafts
        self.logged, self._log = drafts, self._next_log

    def truncate(self, length: int) -> int:
        """Back to `length` positions, or to the last snapshot before; the positions that are left."""
        if length >= self.at:
            self.logged = min(self.logged, length - self.at)
            return self.length
        position = max((p for p in self.snapshots if p <= length), default=0)
        for behind in [p for p in self.snapshots if p > position]:
            self._forget_snapshot(behind)
        self._drop()
        self.at = position
        self.slot = self.pool.share(self.snapshots[position]) if position else None
        return position

    def fork(self) -> TextState:
        """A text that begins with all of this one."""
        other = TextState(self.pool, self.at, None if self.slot is None else self.pool.share(self.slot))
        if self.logged:
            assert self._log is not None
            other._log = kernels.Array(self._log.rows, self._log.cols)
            other._log.numpy()[:] = self._log.numpy()
            other.logged = self.logged
        return other

    def release(self) -> None:
        """Give all slots back."""
        for position in list(self.snapshots):
            self._forget_snapshot(position)
        self._drop()

    def _drop(self) -> None:
        for slot in (self.slot, self._spare):
            if slot is not None:
                self.pool.free(slot)
        self.at = self.logged = 0
        self.slot = self._spare = None

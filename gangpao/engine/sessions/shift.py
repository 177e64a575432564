"""Context shift: when a context is full, the oldest turns behind its beginning go, and the text goes on.

What stays of a text are its first ids (`keep`: the system message; a few tokens where there are no turns, on which attention leans
whatever they say) and its newest part. The kept ids are computed anew. The cheaper way, moving the keys that are there to their
new positions, leaves in them what they saw of the tokens that went: no text has such a cache, so no prefix could be shared, no
answer that gave its pages back could go on where it was, and the bits would depend on the company. Computed anew, an answer behind
a shift is to the last bit that of a fresh cache over the kept ids. It costs one token of prompt for each token of answer, in one
piece for each half of a context.

How much goes is a whole number of halves of what lies behind `keep`, as few as are needed, on to the next turn where one begins
soon enough. So it depends on the text from its beginning and on nothing else: a client that sends all of a long chat with every
question gets the same cut each time, and finds its prefix remembered, until another half is full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gangpao.engine.cache import common

SINKS = 4  # ids that stay of a text without turns
LEAST = 16  # positions behind what stays, so that a part of them can go
Encode = Callable[[Sequence[Mapping[str, Any]]], list[int]]


@dataclass(slots=True)
class ContextShift:
    """What goes of one text when it is full. keep: ids at its beginning that stay; opening: the ids with which each turn begins
    (the first one behind keep), empty where a text has none; dropped: ids that went so far; whole: whether the last cut was in
    front of a turn, and turns: how many openings went."""

    context: int
    vocab_size: int
    keep: int = SINKS
    opening: tuple[int, ...] = ()
    dropped: int = 0
    turns: int = 0
    whole: bool = True

    @property
    def possible(self) -> bool:
        """Whether what stays leaves enough to drop."""
        return self.context - self.keep >= LEAST

    def fit(self, ids: Sequence[int], room: int = 0) -> list[int]:
        """The ids without those that have to go so that `room` positions of the context stay free; all, if nothing has to.

        Raises ValueError where the beginning that stays, or pictures, leave too little to cut.
        """
        limit = self.context - room
        if len(ids) <= limit:
            return list(ids)
        keep = min(self.keep, len(ids))
        half = (self.context - keep) // 2
        count = self.dropped // half if half > 0 else 0
        while half > 0:
            count += 1
            begin = keep + max(1, count * half - self.dropped)
            if begin >= len(ids):
                break
            at, whole = self._border(ids, begin, begin + half // 2)
            if len(ids) - (at - keep) <= limit and at < len(ids):
                self.turns += self._openings(ids[keep:at])
                self.dropped, self.whole = self.dropped + at - keep, whole
                return [*ids[:keep], *ids[at:]]
        raise ValueError(
            f"the context of {self.context} tokens is full, and nothing can be dropped from it: {keep} tokens at its beginning "
            "stay; shorten them, or take a larger --context"
        )

    def _border(self, ids: Sequence[int], begin: int, until: int) -> tuple[int, bool]:
        """Where to cut, from `begin` on: at the next turn, if it begins before `until`, else right there, but in no picture."""
        n = len(self.opening)
        if n:
            for at in range(begin, min(until, len(ids) - n) + 1):
                if ids[at] == self.opening[0] and tuple(ids[at : at + n]) == self.opening:
                    return at, True
        while begin < len(ids) and ids[begin] >= self.vocab_size and ids[begin - 1] >= self.vocab_size:
            begin += 1
        return begin, False

    def _openings(self, ids: Sequence[int]) -> int:
        n = len(self.opening)
        return sum(tuple(ids[at : at + n]) == self.opening for at in range(len(ids) - n + 1)) if n else 0


def turns_of(encode: Encode, head: Sequence[Mapping[str, Any]]) -> tuple[int, tuple[int, ...]]:
    """How many ids stand in front of the first turn behind `head` (the system message), and with which ids every turn of the user
    begins; read off what the chat template makes of small talks."""

    def before_user(talk: Sequence[Mapping[str, Any]]) -> list[int]:
        one, other = (encode([*talk, {"role": "user", "content": word}]) for word in ("A", "B"))
        return one[: common(one, other)]

    said = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    first, later = before_user(head), before_user([*head, *said])
    size = common(first[::-1], later[::-1])
    return len(first) - size, tuple(first[len(first) - size :])

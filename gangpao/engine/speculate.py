"""Drafts for speculative decoding from the text itself: what followed the last time the same words were there.

The idea: code, edits and answers that quote their question repeat stretches of what stands before. The last three tokens (or
two) are looked up in an index of the text so far, and what followed them is proposed. The model checks all proposals in one
step, which on a CPU costs less than as many steps (three rows about 1.4 x one). A proposal never changes the answer: every
token is chosen from the model's own row, and proposals only save steps where they were right.

How many are proposed follows from how often they were right so far: a further token pays while the chance that all up to it
are right is more than its share of a step. An answer that cannot be foreseen soon gets none, with a try now and then.
What it gives up: no draft model, nothing is learnt between answers.
"""

from collections.abc import Callable, Iterable, Sequence

from gangpao.engine.sample import Logits

MAX_DRAFT = 6
SIZES = (3, 2)  # tokens that have to be the same, longest first
# What a row more costs, as a part of a step with one row: 0.22 measured for 4-bit weights on two cores (docs/log.md); more, so
# that a gain is left.
ROW_COST = 0.3
FORGET = 0.2  # weight of the newest drafts in the share that was right
RETRY = 24  # tokens without a draft after which one is tried again
READ = 2048  # tokens that are looked through in one step at most, a millisecond or two: a long prompt must not hold up the others


def verify(rows: Iterable[Logits], drafts: Sequence[int], say: Callable[[Logits], int | None]) -> int:
    """Say a token for each row behind the last id and the drafts, for as long as they were right; how many were.

    say(logits) chooses a token, takes it into the answer and returns it, or None when that ended the answer.
    """
    for right, logits in enumerate(rows):
        token = say(logits)
        if token is None or right == len(drafts) or token != drafts[right]:
            return right
    return 0


class Drafter:
    """Proposals for one answer. Cheap: a dictionary lookup a token. ids are looked through only when a proposal is due."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._seen: dict[tuple[int, ...], int] = {}
        self._indexed = min(SIZES)
        self._known = len(ids)  # when it was last asked
        self._right = 0.6
        self._silent = 0

    def propose(self, ids: Sequence[int], room: int, beside: int) -> list[int]:
        """At most `room` ids that may follow `ids`. beside: answers that share the step, this one included."""
        count = min(room, self._worth(beside))
        drafts: list[int] = []
        if count > 0:
            # Not the newest ids: a place right before the end has little behind it that could be proposed.
            self._index(ids, self._known)
            at = self._find(ids)
            drafts = list(ids[at : at + count]) if at is not None else []
        self._known = len(ids)
        self._silent = 0 if drafts else self._silent + 1
        return drafts

    def learn(self, drafted: int, right: int) -> None:
        """Take note of how many of the last drafts were right."""
        tried = min(drafted, right + 1)  # behind the first wrong one nothing was tried
        for i in range(tried):
            self._right += FORGET * ((i < right) - self._right)

    def _worth(self, beside: int) -> int:
        # A step of n answers costs 1 + ROW_COST (n - 1); a token is worth its n-th part, a row costs ROW_COST.
        price = ROW_COST * beside / (1 + ROW_COST * (beside - 1))
        count, chance = 0, self._right
        while chance > price and count < MAX_DRAFT:
            count, chance = count + 1, chance * self._right
        return 1 if count == 0 and self._silent >= RETRY and beside == 1 else count

    def _find(self, ids: Sequence[int]) -> int | None:
        """Where the text goes on behind the last earlier place that ends like this one."""
        for size in SIZES:
            at = self._seen.get(tuple(ids[-size:]))
            if at is not None and len(ids) > size:
                return at
        return None

    def _index(self, ids: Sequence[int], until: int) -> None:
        """Note for every short run of tokens before `until` where it was last followed by something; READ of them a time."""
        stop = min(until, self._indexed + READ)
        for end in range(self._indexed, stop):
            for size in SIZES:
                if end >= size:
                    self._seen[tuple(ids[end - size : end])] = end
        self._indexed = max(self._indexed, stop)

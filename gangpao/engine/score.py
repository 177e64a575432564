"""How likely endings are after contexts: what multiple choice and perplexity are made of, as fast as prompts go through.

    score       (context, endings) in order -> log-probabilities of every token of every ending

Steps are filled with tokens of many items, up to CHUNK. A context goes through once: its endings start from the pages in which
it lies, all first tokens of endings are read off the one row behind it, and endings of one token cost nothing more. What a
context shares with one before it (a subject's examples) is taken from memory, page by page. Only rows in front of a token that
is scored go through the head.

A result has the same bits in any company and any order (transformer.py). Memory is that of the pool, whatever the number of
items. What it gives up: an item whose head another one is reading just now waits for it, so items with one head should be
neighbours (sort them).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gangpao.engine.cache import PAGE, KVCache, KVPool, common
from gangpao.engine.generate import Engine
from gangpao.engine.transformer import CHUNK, Segment

POOL_TOKENS = 8192  # positions for items that are under way, and for heads that are remembered


@dataclass(frozen=True, slots=True)
class EndingScore:
    """Natural-log probabilities of an ending's tokens, each given all before it; greedy: whether each is the likeliest."""

    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """Of the whole ending."""
        return sum(self.logprobs)


@dataclass(slots=True)
class ScoreStats:
    """Tokens that were computed, and taken from what was computed before, and steps of the model."""

    computed: int = 0
    cached: int = 0
    steps: int = 0


@dataclass(slots=True)
class _Item:
    number: int
    context: Sequence[int]
    endings: Sequence[Sequence[int]]
    tokens: int  # positions that it may take in the pool
    logprobs: list[list[float]] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)
    missing: int = 0


@dataclass(slots=True)
class _Run:
    """Ids on their way into a cache; wanted: behind which of them which tokens of which endings are scored."""

    item: _Item
    cache: KVCache
    ids: Sequence[int]
    wanted: dict[int, list[tuple[int, int]]]  # place in ids -> (ending, token)
    ending: int | None = None  # None: the context

    def segment(self, room: int) -> tuple[Segment, list[int]]:
        """The next ids, at most `room`, and the endings that its scores are of."""
        begin = self.cache.length
        end = min(len(self.ids), begin + room)
        scored = [(at - begin, e, token) for at in range(begin, end) for e, token in self.wanted.get(at, ())]
        segment = Segment(self.cache, self.ids[begin:end], scored=[(place, token) for place, _, token in scored])
        return segment, [e for _, e, _ in scored]


class Scorer:
    """Scores items with one engine; its pool is kept between calls, so heads are remembered. `stats` counts since it was made.

    adapters: names -> scales (None: their own); not given: what the engine uses.
    """

    def __init__(
        self,
        engine: Engine,
        pool_tokens: int = POOL_TOKENS,
        *,
        adapters: Mapping[str, float | None] | None = None,
    ) -> None:
        self.engine = engine
        self._adapters = engine.mix(adapters)
        self.stats = ScoreStats()
        # A lone item of the whole context has to fit, with a page of its own for the ending that is being read.
        self._tokens = max(pool_tokens, engine.context + 2 * PAGE)
        self._pool: KVPool = engine.model.new_pool(engine.context, engine.kv_dtype, self._tokens)

    def score(
        self, items: Iterable[tuple[Sequence[int], Sequence[Sequence[int]]]]
    ) -> Iterator[tuple[int, list[EndingScore]]]:
        """(number of the item, scores of its endings) as they are done, which need not be the order of the items.

        Contexts and endings have at least one token. Raises ValueError for one that has none, or that does not fit into the
        context of the engine, before anything of it is computed.
        """
        waiting = enumerate(items)
        queue: deque[_Item] = deque()
        runs: list[_Run] = []
        committed = 0
        while True:
            while len(queue) < 16 and (following := next(waiting, None)) is not None:
                queue.append(self._checked(*following))
            committed += self._begin(queue, runs, committed)
            if not runs:
                assert not queue
                return
            for item in self._step(runs):
                committed -= item.tokens
                yield item.number, [EndingScore(tuple(x), y) for x, y in zip(item.logprobs, item.greedy, strict=True)]

    def _checked(self, number: int, pair: tuple[Sequence[int], Sequence[Sequence[int]]]) -> _Item:
        context, endings = pair
        if not context or not endings or not all(endings):
            raise ValueError(f"item {number}: a context, its endings, or one of them has no tokens")
        longest = len(context) + max(map(len, endings)) - 1
        if longest > self.engine.context:
            raise ValueError(
                f"item {number}: {longest} tokens do not fit into the context of {self.engine.context}; load the model "
                "with a wider one (--context), or leave the item out"
            )
        pages = -(-len(context) // PAGE) + sum(-(-len(e) // PAGE) + 1 for e in endings if len(e) > 1)
        return _Item(
            number, context, endings, PAGE * pages, [[] for _ in endings], [True] * len(endings), sum(map(len, endings))
        )

    def _begin(self, queue: deque[_Item], runs: list[_Run], committed: int) -> int:
        """Start contexts while a step has room for them and the pool does; positions that they may take."""
        began = 0
        room = CHUNK - sum(len(run.ids) - run.cache.length for run in runs)
        while queue and room > 0:
            item = queue[0]
            waiting = sum(run.cache.length == 0 for run in runs)
            if runs and (committed + began + item.tokens > self._tokens or not self._pool.has_state(waiting)):
                break
            cache = self._pool.match_prefix(item.context, self._adapters)
            shared = [(run.cache, common(run.ids, item.context) // PAGE) for run in runs if run.ending is None]
            if any(pages > -(-cache.length // PAGE) and other.will_share(pages * PAGE) for other, pages in shared):
                self._pool.release(cache)
                break
            queue.popleft()
            self.stats.cached += cache.length
            first = [(e, ending[0]) for e, ending in enumerate(item.endings)]
            runs.append(_Run(item, cache, item.context, {len(item.context) - 1: first}))
            room -= len(item.context) - cache.length
            began += item.tokens
        return began

    def _step(self, runs: list[_Run]) -> list[_Item]:
        """One pass over the weights; the items that are done. Runs that ended go, endings of contexts that ended come."""
        room, parts = CHUNK, []
        for run in runs:
            if room == 0:
                break
            segment, endings = run.segment(room)
            if not run.cache.reserve(len(segment.ids)):
                continue
            parts.append((run, segment, endings))
            room -= len(segment.ids)
        assert parts, "a pool that holds a whole context has no room for a lone item"
        self.engine.model.step([segment for _, segment, _ in parts])
        self.stats.steps += 1
        self.stats.computed += CHUNK - room
        done = []
        for run, segment, endings in parts:
            item = run.item
            for ending, score in zip(endings, segment.scores, strict=True):
                assert score is not None  # endings are tokens
                item.logprobs[ending].append(score.logprob)
                item.greedy[ending] &= score.rank == 1
                item.missing -= 1
            if run.cache.length == len(run.ids):
                runs.remove(run)
                self._end(run, runs)
                if not item.missing:
                    done.append(item)
        return done

    def _end(self, run: _Run, runs: list[_Run]) -> None:
        """What follows a run: the endings of a context, in front of all contexts, so that few items are under way."""
        if run.ending is None:
            item = run.item
            self._pool.insert_prefix(run.cache, item.context, whole=True)
            for e in reversed(range(len(item.endings))):
                if len(ending := item.endings[e]) > 1:
                    ids = [*item.context, *ending[:-1]]
                    wanted = {len(item.context) + i: [(e, token)] for i, token in enumerate(ending[1:])}
                    runs.insert(0, _Run(item, self._pool.fork(run.cache), ids, wanted, e))
        self._pool.release(run.cache)

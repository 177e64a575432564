"""Many answers at once: requests join and leave between any two steps of the model (continuous batching).

    Scheduler.submit    request -> waiting, in turns between clients -> Handle; pieces come through a callback
    a step              one token of every running answer, drafts behind some of them, and a chunk of a waiting prompt, as
                        one pass over the weights; then every answer chooses its tokens from its own rows
    out of pages        the youngest answer gives its pages back and waits; it goes on later where it was. A request for which
                        there are too few is passed by some smaller ones, then by none until it is in

A row's result depends on nothing beside it (transformer.py), so an answer is the same to the last bit alone or in any
company, from a cold start or from a cached prefix, with drafts or without, interrupted or not. Prompts go through in
chunks, small ones while others are being answered, so that a long prompt does not silence them. Unfinished prompts share a
chunk: the shortest go first, so that a short question behind a long prompt waits for two chunks and not for the prompt, and a
quarter is the oldest one's, so that no number of short ones holds it up for ever.

One thread runs the model; callbacks are called from it and must not block. What it gives up: there are no priorities, and a
step is as long as its longest part.
"""

import threading
import time
from collections import abc
from dataclasses import dataclass
from typing import Literal

from gangpao.engine import memory
from gangpao.engine.cache import PAGE, KVCache, common
from gangpao.engine.generate import Engine, check_prompt
from gangpao.engine.pictures.rows import Hold
from gangpao.engine.sequences import (
    AnswerSequence,
    EmbeddingSequence,
    Handle,
    OnEmbedding,
    OnEvent,
    Queue,
    Request,
    Sequence,
)
from gangpao.engine.sessions.store import PrefixFolder, PrefixStore
from gangpao.engine.speculate.speculation import Company
from gangpao.engine.transformer import CHUNK, Segment

__all__ = ["Busy", "Counters", "Handle", "Request", "Scheduler"]

# Tokens of prompts in a step while somebody is being answered. A step of 8 answers and 32 such tokens takes two and a half times
# one without them, one of a single answer five times (docs/log.md): an answer slows down for the length of a prompt and never
# stops.
CHUNK_BESIDE = 32
OLDEST_SHARE = 4  # the oldest unfinished prompt has one of so many parts of a chunk, whatever is shorter
# Younger requests that may begin before one for which there are not enough pages. More use the memory better, and each makes
# the large one wait for another answer to end.
MAX_OVERTAKEN = 8
DEFAULT_BATCH = 8
DEFAULT_QUEUE = 64


class Busy(Exception):
    """The queue is full. retry_after: seconds after which a place is likely to be free."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@dataclass(slots=True)
class Counters:
    """Totals of a scheduler since it began, and what it holds now. Read them at any time."""

    running: int = 0
    waiting: int = 0
    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    step_s: float = 0.0
    pages: int = 0
    pages_used: int = 0


class Scheduler:
    """Answers of one engine, up to `batch` at a time; `queue` more may wait. Close it to end its thread.

    pool_tokens: positions of keys and values in memory, for running answers and remembered prefixes together. prefixes: where
    prefixes are kept for the next process. pools: the clients whose earlier answers may foresee their later ones
    (speculate/pool.py).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        batch: int = DEFAULT_BATCH,
        queue: int = DEFAULT_QUEUE,
        pool_tokens: int | None = None,
        prefixes: PrefixFolder | None = None,
        pools: abc.Callable[[str], bool] = lambda client: False,
    ) -> None:
        self.engine = engine
        self.counters = Counters()
        tokens = pool_tokens or memory.pool_tokens(
            engine.model.config, engine.context, engine.kv_dtype, batch, engine.model.sparse
        )
        self.pool = engine.model.new_pool(engine.context, engine.kv_dtype, tokens)
        self.store = PrefixStore.open(prefixes, engine.model, engine.model_id, self.pool) if prefixes else None
        if engine.seeing is not None:
            engine.seeing.table.limit = memory.row_bytes(engine.model.config, tokens)
        self.batch = batch
        self._pools = pools
        self.places = batch + queue  # for answers that run or wait
        self.preparing = 0  # requests that are about to be submitted; whoever prepares them counts
        self._queue = Queue()
        self._running: list[Sequence] = []
        self._wake = threading.Condition()
        self._closing = self._draining = False
        self._seconds = 5.0  # of an answer, a moving average
        self._thread = threading.Thread(target=self._loop, name=f"scheduler-{engine.name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: OnEvent) -> Handle:
        """Queue a request. Raises ValueError for a prompt that cannot be answered, and Busy when too many wait."""
        request = request.fitted()
        check_prompt(request.prompt_ids, self.engine)
        owner = request.client if self._pools(request.client) else None
        return self._put(AnswerSequence(self.engine, request, on_event, owner))

    def embed(
        self,
        ids: abc.Sequence[int],
        on_done: OnEmbedding,
        *,
        client: str = "",
        adapters: abc.Mapping[str, float | None] | None = None,
        pictures: Hold | None = None,
    ) -> Handle:
        """Queue a text for its embedding: the mean over its tokens of the last hidden states, float32 [D], not scaled.

        on_done gets it, or one exception. pictures: what keeps the rows of pictures in ids. Raises as submit does.
        """
        check_prompt(ids, self.engine)
        return self._put(EmbeddingSequence(ids, client, on_done, self.engine.mix(adapters), pictures))

    def _put(self, sequence: Sequence) -> Handle:
        if sequence.adapters is None:
            sequence.adapters = self.pool.adapters
        with self._wake:
            if self._closing or self._draining or not self._thread.is_alive():
                raise Busy(len(self._queue), 1.0)
            if self.full():
                self.counters.refused += 1
                raise Busy(len(self._queue), self.retry_after())
            self._queue.put(sequence)
            self.counters.requests += 1
            self.counters.waiting = len(self._queue)
            self._wake.notify()
        return sequence.handle

    def full(self, more: int = 0) -> bool:
        """Whether no place is left, in the batch or in the queue, when `more` requests are about to be submitted."""
        return len(self._running) + len(self._queue) + more >= self.places

    def retry_after(self) -> float:
        """Seconds until a place in the queue is likely to be free."""
        return min(120.0, max(1.0, self._seconds / self.batch))

    @property
    def alive(self) -> bool:
        """Whether the scheduler's thread runs; False after close() and after a bug of ours."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether nothing is running or waiting."""
        with self._wake:
            return not self._running and not len(self._queue)

    def close(self, *, finish: bool = True, timeout: float | None = None) -> None:
        """End the thread: after all that was accepted when `finish`, else after the step in progress."""
        with self._wake:
            self._draining = True
            self._closing = self._closing or not finish
            self._wake.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._wake:
                self._closing = True
                self._wake.notify()
            self._thread.join()
        if self.store is not None:
            self.store.close()

    # --- the scheduler's thread

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._running or len(self._queue)):
                    if self._draining:
                        return
                    self._wake.wait()
                closing = self._closing
            if closing:
                self._abandon(RuntimeError("the server is shutting down"))
                return
            try:
                self._step()
            except Exception as error:  # our bug: whoever waits must hear of it, and nobody may wait for a dead thread
                with self._wake:
                    self._closing = True
                self._abandon(error)
                raise

    def _abandon(self, error: Exception) -> None:
        with self._wake:
            left = [*self._running, *self._queue]
            self._running, self._queue = [], Queue()
        for sequence in left:
            sequence.fail(error)
        for sequence in left:
            self._release(sequence, keep=False)

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        start = time.perf_counter()
        plan = self._plan()
        if not plan:
            return
        asked = time.perf_counter()
        try:
            rows = self.engine.model.step([segment for _, segment in plan])
        except Exception as error:  # nothing of this step can be trusted: its answers end, the others go on
            for sequence, _ in plan:
                self._end(sequence, error)
            return
        if all(len(segment.ids) == segment.logits for _, segment in plan):
            self.engine.speculation.costs.take(sum(map(len, rows)), time.perf_counter() - asked)
        for (sequence, _), found in zip(plan, rows, strict=True):
            try:
                sequence.take_rows(found)
            except Exception as error:  # of its sampler, grammar or listener: no concern of the others
                self._end(sequence, error)
        self._account(plan, time.perf_counter() - start)
        for sequence, segment in plan:
            if sequence.done:
                self._end(sequence)
            elif segment.logits and sequence.stats.completion_tokens == 1 and sequence.cache is not None:
                # The prompt is whole: others may begin with it.
                self.pool.insert_prefix(sequence.cache, sequence.ids, sequence.scores, whole=True)
                if self.store is not None and sequence.axes is None:
                    self.store.offer(sequence.cache, sequence.ids, sequence.stats.prompt_tokens)

    def _drop_cancelled(self) -> None:
        for sequence in [j for j in self._running if j.cancelled]:
            self._end(sequence)
        with self._wake:
            self.counters.cancelled += self._queue.drop_cancelled()

    def _admit(self) -> None:
        """Let waiting sequences in while there is room; one whose beginning another is just computing waits for it.

        The first without room may be passed by smaller ones, a few times: then all wait until it is in.
        """
        with self._wake:
            later: list[Sequence] = []
            short: Sequence | None = None
            while len(self._running) < self.batch and (short is None or short.overtaken < MAX_OVERTAKEN):
                sequence = self._queue.take()
                if sequence is None:
                    break
                came_to = self._begin(sequence)
                if came_to == "began":
                    if short is not None:
                        short.overtaken += 1
                    continue
                later.append(sequence)
                if came_to == "no room":
                    if short is not None:
                        break
                    short = sequence
            for sequence in reversed(later):
                self._queue.put_back(sequence)
            self.counters.waiting, self.counters.running = len(self._queue), len(self._running)

    def _awaits(self, sequence: Sequence, cached: int) -> bool:
        """Whether a running sequence is computing more pages of this one's beginning than there are."""
        if sequence.skips_prefix_cache:
            return False
        computing = [
            (j.cache, common(j.ids, sequence.ids[:-1]) // PAGE * PAGE) for j in self._running if j.helps(sequence)
        ]
        return any(cache is not None and shared > cached and cache.will_share(shared) for cache, shared in computing)

    def _begin(self, sequence: Sequence) -> Literal["began", "no room", "later"]:
        """Take a sequence in, or say why not: no pages, or a beginning that is about to be there ("later")."""
        cache = self._match(sequence)
        awaits = self._awaits(sequence, cache.length)
        if self._running and (awaits or not self.pool.can_allocate(len(sequence.ids) + 1 - cache.length)):
            self.pool.release(cache)
            return "later" if awaits else "no room"
        sequence.cache, cache.axes = cache, sequence.axes
        if not sequence.started_at:
            sequence.started_at = time.perf_counter()
            sequence.stats.queue_s = sequence.started_at - sequence.submitted
            sequence.stats.cached_tokens = cache.length
            self.counters.prompt_tokens += sequence.stats.prompt_tokens
            self.counters.cached_tokens += cache.length
        self._running.append(sequence)
        return "began"

    def _match(self, sequence: Sequence) -> KVCache:
        """A cache with what is remembered of the sequence's ids, as far as everything that is wanted of them is known."""
        if sequence.skips_prefix_cache:
            return self.pool.new(sequence.adapters)
        cache = self.pool.match_prefix(sequence.ids, sequence.adapters)
        if self.store is not None and sequence.axes is None:
            self.store.extend(cache, sequence.ids)
        if sequence.scores is not None:
            prompt = sequence.ids[: sequence.stats.prompt_tokens]
            known = self.pool.match_scores(prompt, sequence.scores.alternatives, cache.adapters)
            sequence.scores.values = max(sequence.scores.values, known, key=len)
            if len(sequence.scores.values) < sequence.stats.prompt_tokens:
                cache.truncate(min(cache.length, len(sequence.scores.values) - 1))
        return cache

    def _plan(self) -> list[tuple[Sequence, Segment]]:
        """What the next step computes: a token (and drafts) of every answer, and a chunk of the unfinished prompts."""
        decoding = sum(sequence.decoding for sequence in self._running)
        shares = shares_of(
            [sequence for sequence in self._running if not sequence.decoding], CHUNK_BESIDE if decoding else CHUNK
        )
        company = Company(decoding + sum(shares.values()), decoding)
        plan: list[tuple[Sequence, Segment]] = []
        for sequence in list(self._running):
            drafts: list[int] = []
            if sequence not in self._running:  # gave its pages to one before it
                continue
            if sequence.decoding:
                ids = sequence.ids[-1:]
                drafts = sequence.draft(self.engine.context, company)
            else:
                ids = sequence.ids[len(sequence.ids) - sequence.to_compute :][: shares[sequence]]
            if ids and self._reserve(sequence, len(ids) + len(drafts)):
                plan.append((sequence, sequence.segment(ids, drafts)))
        return [(j, segment) for j, segment in plan if j in self._running]

    def _reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Pages for the sequence's next tokens, taken from the youngest others if need be."""
        assert sequence.cache is not None
        while not sequence.cache.reserve(tokens):
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.counters.preempted += 1
        self._running.remove(sequence)
        self._release(sequence)
        sequence.overtaken = MAX_OVERTAKEN  # whoever has begun is passed by nobody
        with self._wake:
            self._queue.put_back(sequence)

    def _account(self, plan: list[tuple[Sequence, Segment]], seconds: float) -> None:
        total = sum(len(segment.ids) for _, segment in plan)
        for sequence, segment in plan:
            sequence.stats.machine_s += seconds * len(segment.ids) / total
        counters = self.counters
        counters.steps += 1
        counters.step_s += seconds
        counters.pages, counters.pages_used = self.pool.pages, self.pool.pages_used

    def _end(self, sequence: Sequence, error: Exception | None = None) -> None:
        """Take a sequence out: finished, failed or cancelled."""
        if sequence not in self._running:
            return
        self._running.remove(sequence)
        sequence.close()
        stats, counters = sequence.stats, self.counters
        counters.completion_tokens += stats.completion_tokens
        counters.drafted += stats.drafted
        counters.accepted += stats.accepted
        counters.running = len(self._running)
        if error is not None:
            counters.failed += 1
        elif sequence.done:
            counters.finished += 1
            self._seconds += 0.1 * (time.perf_counter() - sequence.started_at - self._seconds)
        else:
            counters.cancelled += 1
        try:
            self._release(sequence, keep=error is None)
        finally:  # it is in no list any more: nobody else would tell it
            if error is not None:
                sequence.fail(error)

    def _release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take the sequence's pages. keep: remember what they hold; after an error that may be wrong, or drafts that ids lacks."""
        if sequence.cache is not None:
            if keep:
                self.pool.finish(sequence.cache, sequence.ids, sequence.scores)
            else:
                self.pool.release(sequence.cache)
            sequence.cache = None


def shares_of(prompts: abc.Sequence[Sequence], budget: int) -> dict[Sequence, int]:
    """Tokens of each unfinished prompt (oldest first) in a step that has room for `budget` of them."""
    if not prompts:
        return {}
    oldest = prompts[0]
    shares = dict.fromkeys(prompts, 0)
    shares[oldest] = min(oldest.to_compute, budget // OLDEST_SHARE)
    left = budget - shares[oldest]
    for sequence in sorted(prompts, key=lambda sequence: sequence.to_compute):
        more = min(left, sequence.to_compute - shares[sequence])
        shares[sequence] += more
        left -= more
    return shares

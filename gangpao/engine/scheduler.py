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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gangpao.engine import memory
from gangpao.engine.cache import PAGE, KVCache, common
from gangpao.engine.generate import Engine, check_prompt
from gangpao.engine.sequences import AnswerJob, EmbeddingJob, Handle, Job, OnEmbedding, OnEvent, Queue, Request
from gangpao.engine.transformer import CHUNK, Segment

__all__ = ["Busy", "Counters", "Handle", "Request", "Scheduler"]

# Tokens of prompts in a step while somebody is being answered. A step of 8 answers and 32 such tokens takes two and a half times
# one without them, one of a single answer five times (docs/log.md): an answer slows down for the length of a prompt and never
# stops.
CHUNK_BESIDE = 32
OLDEST_SHARE = 4  # the oldest unfinished prompt has one of so many parts of a chunk, whatever is shorter
# Younger requests that may begin before one for which there are not enough pages. More use the memory better, and each makes
# the large one wait for another answer to end.
MAX_PASSED = 8
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

    pool_tokens: positions of keys and values in memory, for running answers and remembered prefixes together.
    """

    def __init__(
        self, engine: Engine, *, batch: int = DEFAULT_BATCH, queue: int = DEFAULT_QUEUE, pool_tokens: int | None = None
    ) -> None:
        self.engine = engine
        self.counters = Counters()
        tokens = pool_tokens or memory.pool_tokens(engine.model.config, engine.context, engine.kv_dtype, batch)
        self.pool = engine.model.new_pool(engine.context, engine.kv_dtype, tokens)
        self.batch = batch
        self._limit = queue
        self._queue = Queue()
        self._running: list[Job] = []
        self._wake = threading.Condition()
        self._closing = self._draining = False
        self._seconds = 5.0  # of an answer, a moving average
        self._thread = threading.Thread(target=self._loop, name=f"scheduler-{engine.name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: OnEvent) -> Handle:
        """Queue a request. Raises ValueError for a prompt that cannot be answered, and Busy when too many wait."""
        check_prompt(request.prompt_ids, self.engine)
        return self._put(AnswerJob(self.engine, request, on_event))

    def embed(self, ids: Sequence[int], on_done: OnEmbedding, *, client: str = "") -> Handle:
        """Queue a text for its embedding: the mean over its tokens of the last hidden states, float32 [D], not scaled.

        on_done gets it, or one exception. Raises as submit does.
        """
        check_prompt(ids, self.engine)
        return self._put(EmbeddingJob(ids, client, on_done))

    def _put(self, job: Job) -> Handle:
        with self._wake:
            if self._closing or self._draining or not self._thread.is_alive():
                raise Busy(len(self._queue), 1.0)
            if self.full():
                self.counters.refused += 1
                raise Busy(len(self._queue), self.retry_after())
            self._queue.put(job)
            self.counters.requests += 1
            self.counters.waiting = len(self._queue)
            self._wake.notify()
        return job.handle

    def full(self, more: int = 0) -> bool:
        """Whether no place is left, in the batch or in the queue, when `more` requests are about to be submitted."""
        return len(self._running) + len(self._queue) + more >= self.batch + self._limit

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
        for job in left:
            job.fail(error)
        for job in left:
            self._release(job, keep=False)

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        plan = self._plan()
        if not plan:
            return
        start = time.perf_counter()
        try:
            rows = self.engine.model.step([segment for _, segment in plan])
        except Exception as error:  # nothing of this step can be trusted: its answers end, the others go on
            for job, _ in plan:
                self._end(job, error)
            return
        for (job, _), found in zip(plan, rows, strict=True):
            try:
                job.hear(found)
            except Exception as error:  # of its sampler, grammar or listener: no concern of the others
                self._end(job, error)
        self._account(plan, time.perf_counter() - start)
        for job, segment in plan:
            if job.done:
                self._end(job)
            elif segment.logits and job.stats.completion_tokens == 1 and job.cache is not None:
                self.pool.share(
                    job.cache, job.ids, job.scores, whole=True
                )  # the prompt is whole: others may begin with it

    def _drop_cancelled(self) -> None:
        for job in [j for j in self._running if j.cancelled]:
            self._end(job)
        with self._wake:
            self.counters.cancelled += self._queue.drop_cancelled()

    def _admit(self) -> None:
        """Let waiting jobs in while there is room; one whose beginning another is just computing waits for it.

        The first without room may be passed by smaller ones, a few times: then all wait until it is in.
        """
        with self._wake:
            later: list[Job] = []
            short: Job | None = None
            while len(self._running) < self.batch and (short is None or short.passed < MAX_PASSED):
                job = self._queue.take()
                if job is None:
                    break
                came_to = self._begin(job)
                if came_to == "began":
                    if short is not None:
                        short.passed += 1
                    continue
                later.append(job)
                if came_to == "no room":
                    if short is not None:
                        break
                    short = job
            for job in reversed(later):
                self._queue.put_back(job)
            self.counters.waiting, self.counters.running = len(self._queue), len(self._running)

    def _awaits(self, job: Job, cached: int) -> bool:
        """Whether a running job is computing more pages of this one's beginning than there are."""
        if job.fresh:
            return False
        computing = (j for j in self._running if j.helps(job))
        return any(common(j.ids, job.ids[:-1]) // PAGE * PAGE > cached for j in computing)

    def _begin(self, job: Job) -> Literal["began", "no room", "later"]:
        """Take a job in, or say why not: no pages, or a beginning that is about to be there ("later")."""
        cache = self._match(job)
        awaits = self._awaits(job, cache.length)
        if self._running and (awaits or not self.pool.can_hold(len(job.ids) + 1 - cache.length)):
            self.pool.discard(cache)
            return "later" if awaits else "no room"
        job.cache = cache
        if not job.began:
            job.began = time.perf_counter()
            job.stats.queue_s = job.began - job.submitted
            job.stats.cached_tokens = cache.length
            self.counters.prompt_tokens += job.stats.prompt_tokens
            self.counters.cached_tokens += cache.length
        self._running.append(job)
        return "began"

    def _match(self, job: Job) -> KVCache:
        """A sequence with what is remembered of the job's ids, as far as everything that is wanted of them is known."""
        if job.fresh:
            return self.pool.new()
        cache = self.pool.begin(job.ids)
        if job.scores is not None:
            known = self.pool.scores(job.ids[: job.stats.prompt_tokens], job.scores.alternatives)
            job.scores.values = max(job.scores.values, known, key=len)
            if len(job.scores.values) < job.stats.prompt_tokens:
                cache.truncate(min(cache.length, len(job.scores.values) - 1))
        return cache

    def _plan(self) -> list[tuple[Job, Segment]]:
        """What the next step computes: a token (and drafts) of every answer, and a chunk of the unfinished prompts."""
        decoding = sum(job.decoding for job in self._running)
        shares = shares_of([job for job in self._running if not job.decoding], CHUNK_BESIDE if decoding else CHUNK)
        plan: list[tuple[Job, Segment]] = []
        for job in list(self._running):
            drafts: list[int] = []
            if job not in self._running:  # gave its pages to one before it
                continue
            if job.decoding:
                ids = job.ids[-1:]
                drafts = job.draft(self.engine.context, decoding)
            else:
                ids = job.ids[len(job.ids) - job.to_compute :][: shares[job]]
            if ids and self._reserve(job, len(ids) + len(drafts)):
                plan.append((job, job.segment(ids, drafts)))
        return [(j, segment) for j, segment in plan if j in self._running]

    def _reserve(self, job: Job, tokens: int) -> bool:
        """Pages for the job's next tokens, taken from the youngest others if need be."""
        assert job.cache is not None
        while not job.cache.reserve(tokens):
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is job:
                return False
        return True

    def _preempt(self, job: Job) -> None:
        self.counters.preempted += 1
        self._running.remove(job)
        self._release(job)
        job.passed = MAX_PASSED  # whoever has begun is passed by nobody
        with self._wake:
            self._queue.put_back(job)

    def _account(self, plan: list[tuple[Job, Segment]], seconds: float) -> None:
        total = sum(len(segment.ids) for _, segment in plan)
        for job, segment in plan:
            job.stats.machine_s += seconds * len(segment.ids) / total
        counters = self.counters
        counters.steps += 1
        counters.step_s += seconds
        counters.pages, counters.pages_used = self.pool.pages, self.pool.pages_used

    def _end(self, job: Job, error: Exception | None = None) -> None:
        """Take a job out: finished, failed or cancelled."""
        if job not in self._running:
            return
        self._running.remove(job)
        stats, counters = job.stats, self.counters
        counters.completion_tokens += stats.completion_tokens
        counters.drafted += stats.drafted
        counters.accepted += stats.accepted
        counters.running = len(self._running)
        if error is not None:
            counters.failed += 1
        elif job.done:
            counters.finished += 1
            self._seconds += 0.1 * (time.perf_counter() - job.began - self._seconds)
        else:
            counters.cancelled += 1
        try:
            self._release(job, keep=error is None)
        finally:  # it is in no list any more: nobody else would tell it
            if error is not None:
                job.fail(error)

    def _release(self, job: Job, *, keep: bool = True) -> None:
        """Take the job's pages. keep: remember what they hold; after an error that may be wrong, or drafts that ids lacks."""
        if job.cache is not None:
            if keep:
                self.pool.keep(job.cache, job.ids, job.scores)
            else:
                self.pool.discard(job.cache)
            job.cache = None


def shares_of(prompts: Sequence[Job], budget: int) -> dict[Job, int]:
    """Tokens of each unfinished prompt (oldest first) in a step that has room for `budget` of them."""
    if not prompts:
        return {}
    oldest = prompts[0]
    shares = dict.fromkeys(prompts, 0)
    shares[oldest] = min(oldest.to_compute, budget // OLDEST_SHARE)
    left = budget - shares[oldest]
    for job in sorted(prompts, key=lambda job: job.to_compute):
        more = min(left, job.to_compute - shares[job])
        shares[job] += more
        left -= more
    return shares

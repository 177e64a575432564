"""Many answers at once: requests join and leave between any two steps of the model (continuous batching).

    Scheduler.submit    request -> waiting, in turns between clients -> Handle; pieces come through a callback
    a step              one token of every running answer, drafts behind some of them, and a chunk of a waiting prompt, as
                        one pass over the weights; then every answer chooses its tokens from its own rows
    out of pages        the youngest answer gives its pages back and waits; it goes on later where it was

A row's result depends on nothing beside it (transformer.py), so an answer is the same to the last bit alone or in any
company, from a cold start or from a cached prefix, with drafts or without, interrupted or not. Prompts go through in
chunks, short ones while others are speaking, so that a long prompt does not silence them.

One thread runs the model; callbacks are called from it and must not block. What it gives up: all waiting prompts are served
first come first served within a client, there are no priorities; a step is as long as its longest part.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gangpao.engine.answer import Answer, FinishReason, Piece, Stats
from gangpao.engine.cache import KVCache, KVPool
from gangpao.engine.generate import Engine, check_prompt
from gangpao.engine.sample import Logits, SamplingParams
from gangpao.engine.speculate import Drafter
from gangpao.engine.transformer import CHUNK, Segment

# Tokens of prompts in a step while somebody is being answered. A step of 8 answers and 32 such tokens takes about three times
# one without them (benchmarks/serving.py), so an answer slows down for the length of a prompt and never stops.
CHUNK_BESIDE = 32
DEFAULT_BATCH = 8
DEFAULT_QUEUE = 64


class Constraint(Protocol):
    """What an answer may say next: a grammar's state. Used by one answer only, from the scheduler's thread."""

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""

    def apply(self, logits: Logits) -> None:
        """Set the logits [V] of every token that may not come next to -inf, in place."""

    def accept(self, token: int) -> None:
        """Go on behind a chosen token."""


class Busy(Exception):
    """The queue is full. retry_after: seconds after which a place is likely to be free."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to make. stop: a chat template's turn marks, beside those of params. client: whose turn it uses up.

    continues: the text goes on from the prompt's, so a space at its beginning is part of it. speculate: drafts from the
    text so far may be tried (they never change the answer).
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: Sequence[str] = ()
    client: str = ""
    constraint: Constraint | None = None
    continues: bool = False
    speculate: bool = True


Event = Piece | Exception
OnEvent = Callable[[Event], None]


class Handle:
    """A request on its way. on_event gets Pieces, the last with a finish_reason, or one exception; nothing after cancel()."""

    def __init__(self, answer: Answer, cancel: Callable[[], None]) -> None:
        self._answer = answer
        self._cancel = cancel
        self.queue_s = 0.0

    @property
    def stats(self) -> Stats:
        """Counts and seconds so far; machine_s is this answer's share of the steps it took part in."""
        return self._answer.stats

    @property
    def seed(self) -> int:
        """The seed in use, also when none was asked for."""
        return self._answer.sampler.seed

    @property
    def text(self) -> str:
        """Everything handed out so far."""
        return self._answer.text

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before it has."""
        return self._answer.finish_reason

    def cancel(self) -> None:
        """Stop before the next step and free everything. Harmless when it has ended already."""
        self._cancel()


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


class _Sequence:
    """A request in the scheduler: what it has said, its cache, and the ids that are to go into it."""

    def __init__(self, engine: Engine, request: Request, on_event: OnEvent) -> None:
        self.request = request
        self.answer = Answer(
            engine.tokenizer, engine.model.config.vocab_size, request.prompt_ids, request.params,
            stop=request.stop, continues=request.continues, capacity=engine.context,
        )  # fmt: skip
        self.ids = list(request.prompt_ids)  # prompt and answer, without what is only drafted
        self.drafts: list[int] = []
        self.drafter = Drafter(self.ids) if request.speculate else None
        self.cache: KVCache | None = None
        self.on_event = on_event
        self.cancelled = False
        self.submitted = time.perf_counter()
        self.began = 0.0
        self.spoke = 0.0
        self.handle = Handle(self.answer, self._cancel)

    def _cancel(self) -> None:
        self.cancelled = True

    @property
    def to_compute(self) -> int:
        """How many ids are not in the cache yet."""
        assert self.cache is not None
        return len(self.ids) - self.cache.length

    @property
    def decoding(self) -> bool:
        """Whether the prompt is done and the answer grows token by token."""
        return self.to_compute == 1 and self.answer.stats.completion_tokens > 0

    def send(self, event: Event) -> None:
        """Hand an event out; a consumer that fails is a consumer that left."""
        if not self.cancelled:
            try:
                self.on_event(event)
            except RuntimeError:  # its event loop is closed
                self.cancelled = True

    def choose(self, logits: Logits) -> int:
        """The next token by the request's settings and constraint."""
        constraint = self.request.constraint
        if constraint is None:
            return self.answer.sampler.sample(logits)
        allowed = logits.copy()
        constraint.apply(allowed)
        token = self.answer.sampler.sample(allowed)
        constraint.accept(token)
        return token

    def hear(self, rows: npt.NDArray[np.float32]) -> None:
        """Go through the rows of logits behind the last id and each draft, for as long as the drafts were right."""
        assert self.cache is not None
        drafts, self.drafts = self.drafts, []
        stats = self.answer.stats
        stats.drafted += len(drafts)
        for i, logits in enumerate(rows):
            token = self.choose(logits)
            self.take(token, logits)
            right = i < len(drafts) and token == drafts[i]
            stats.accepted += right
            if self.answer.finish_reason or not right:
                break
        self.cache.truncate(min(self.cache.length, len(self.ids) - 1))
        if self.drafter:
            self.drafter.learn(len(drafts), stats.accepted)

    def take(self, token: int, logits: Logits) -> None:
        """One chosen token: into the answer, and out what may go out."""
        now, stats = time.perf_counter(), self.answer.stats
        if stats.completion_tokens == 0:
            stats.ttft_s, self.spoke = now - self.submitted, now
        else:
            stats.decode_steps += 1
            stats.decode_s = now - self.spoke
        piece = self.answer.take(token, logits)
        self.ids.append(token)
        constraint = self.request.constraint
        if constraint is not None and constraint.finished and not self.answer.finish_reason:
            if piece:
                self.send(piece)
            piece = self.answer.finish("stop")
        if piece:
            self.send(piece)


class _Queue:
    """Waiting sequences, one line for each client, served in turns."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[_Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[_Sequence]:
        for line in self._lines.values():
            yield from line

    def put(self, sequence: _Sequence, *, first: bool = False) -> None:
        line = self._lines.setdefault(sequence.request.client, deque())
        if first:
            line.appendleft(sequence)
        else:
            line.append(sequence)

    def take(self) -> _Sequence | None:
        """The first of the client whose turn it is, who then goes to the end of the round."""
        for client in list(self._lines):
            line = self._lines.pop(client)
            if not line:
                continue
            sequence = line.popleft()
            if line:
                self._lines[client] = line
            return sequence
        return None


class Scheduler:
    """Answers of one engine, up to `batch` at a time; `queue` more may wait. Close it to end its thread.

    pool_tokens: positions of keys and values in memory, for running answers and remembered prefixes together.
    """

    def __init__(
        self, engine: Engine, *, batch: int = DEFAULT_BATCH, queue: int = DEFAULT_QUEUE, pool_tokens: int | None = None
    ) -> None:
        self.engine = engine
        self.counters = Counters()
        self.pool = KVPool(engine.model, engine.context, engine.kv_dtype, pool_tokens)
        self._batch = batch
        self._limit = queue
        self._queue = _Queue()
        self._running: list[_Sequence] = []
        self._wake = threading.Condition()
        self._closing = self._draining = False
        self._seconds = 5.0  # of an answer, a moving average
        self._thread = threading.Thread(target=self._loop, name=f"scheduler-{engine.name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: OnEvent) -> Handle:
        """Queue a request. Raises ValueError for a prompt that cannot be answered, and Busy when too many wait."""
        check_prompt(request.prompt_ids, self.engine)
        sequence = _Sequence(self.engine, request, on_event)
        with self._wake:
            if self._closing or self._draining:
                raise Busy(len(self._queue), 1.0)
            if len(self._queue) >= self._limit:
                self.counters.refused += 1
                raise Busy(len(self._queue), self.retry_after())
            self._queue.put(sequence)
            self.counters.requests += 1
            self.counters.waiting = len(self._queue)
            self._wake.notify()
        return sequence.handle

    def retry_after(self) -> float:
        """Seconds until a place in the queue is likely to be free."""
        return min(120.0, max(1.0, self._seconds / self._batch))

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
                        return None
                    self._wake.wait()
                if self._closing:
                    return self._abandon(RuntimeError("the server is shutting down"))
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
            self._running, self._queue = [], _Queue()
        for sequence in left:
            self._release(sequence)
            sequence.send(error)

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
            for sequence, _ in plan:
                self._end(sequence, error)
            return
        for (sequence, segment), logits in zip(plan, rows, strict=True):
            if segment.logits:
                try:
                    sequence.hear(logits)
                except ValueError as error:
                    self._end(sequence, error)
        self._account(plan, time.perf_counter() - start)
        for sequence in [s for s, _ in plan if s.answer.finish_reason]:
            self._end(sequence)

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self._running if s.cancelled]:
            self._end(sequence)
        with self._wake:
            kept = _Queue()
            for sequence in self._queue:
                if sequence.cancelled:
                    self.counters.cancelled += 1
                else:
                    kept.put(sequence)
            if len(kept) != len(self._queue):
                self._queue = kept

    def _admit(self) -> None:
        """Let waiting sequences in while there is room. A prompt that a running one is computing waits for it."""
        with self._wake:
            while len(self._running) < self._batch and len(self._queue):
                sequence = self._queue.take()
                assert sequence is not None
                if not self._begin(sequence):
                    self._queue.put(sequence, first=True)
                    break
            self.counters.waiting, self.counters.running = len(self._queue), len(self._running)

    def _begin(self, sequence: _Sequence) -> bool:
        cache = self.pool.begin(sequence.ids)
        if self._running and not self.pool.can_hold(len(sequence.ids) + 1 - cache.length):
            self.pool.release(cache)
            return False
        sequence.cache, stats = cache, sequence.answer.stats
        if not sequence.began:
            sequence.began = time.perf_counter()
            sequence.handle.queue_s = sequence.began - sequence.submitted
            stats.cached_tokens = cache.length
            self.counters.prompt_tokens += stats.prompt_tokens
            self.counters.cached_tokens += cache.length
        self._running.append(sequence)
        return True

    def _plan(self) -> list[tuple[_Sequence, Segment]]:
        """What the next step computes: a token (and drafts) of every answer, and a chunk of the first unfinished prompts."""
        speaking = [s for s in self._running if s.decoding]
        budget = CHUNK_BESIDE if speaking else CHUNK
        plan: list[tuple[_Sequence, Segment]] = []
        for sequence in self._running:
            if sequence.decoding:
                ids = [sequence.ids[-1], *self._draft(sequence, len(speaking))]
            else:
                ids = sequence.ids[len(sequence.ids) - sequence.to_compute :][:budget]
                budget -= len(ids)
            if not ids or not self._reserve(sequence, len(ids), plan):
                continue
            assert sequence.cache is not None
            whole = sequence.cache.length + len(ids) >= len(sequence.ids)
            plan.append((sequence, Segment(sequence.cache, ids, 1 + len(sequence.drafts) if whole else 0)))
        return [(s, g) for s, g in plan if s in self._running]

    def _draft(self, sequence: _Sequence, speaking: int) -> list[int]:
        stats, params = sequence.answer.stats, sequence.request.params
        room = min(params.max_tokens - stats.completion_tokens, self.engine.context - len(sequence.ids)) - 1
        if sequence.drafter is None or room < 1:
            return []
        sequence.drafts = sequence.drafter.propose(room, speaking)
        return sequence.drafts

    def _reserve(self, sequence: _Sequence, tokens: int, plan: list[tuple[_Sequence, Segment]]) -> bool:
        """Pages for the sequence's next tokens, taken from the youngest others if need be."""
        assert sequence.cache is not None
        while not sequence.cache.reserve(tokens):
            youngest = self._running[-1]
            self._preempt(youngest)
            plan[:] = [(s, g) for s, g in plan if s is not youngest]
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self.counters.preempted += 1
        self._running.remove(sequence)
        self._release(sequence)
        with self._wake:
            self._queue.put(sequence, first=True)

    def _account(self, plan: list[tuple[_Sequence, Segment]], seconds: float) -> None:
        total = sum(len(segment.ids) for _, segment in plan)
        for sequence, segment in plan:
            sequence.answer.stats.machine_s += seconds * len(segment.ids) / total
        counters = self.counters
        counters.steps += 1
        counters.step_s += seconds
        counters.pages, counters.pages_used = self.pool.pages, self.pool.pages_used

    def _end(self, sequence: _Sequence, error: Exception | None = None) -> None:
        """Take a sequence out: finished, failed or cancelled."""
        if sequence not in self._running:
            return
        self._running.remove(sequence)
        self._release(sequence)
        stats, counters = sequence.answer.stats, self.counters
        counters.completion_tokens += stats.completion_tokens
        counters.drafted += stats.drafted
        counters.accepted += stats.accepted
        counters.running = len(self._running)
        if error is not None:
            counters.failed += 1
            sequence.send(error)
        elif sequence.answer.finish_reason:
            counters.finished += 1
            self._seconds += 0.1 * (time.perf_counter() - sequence.began - self._seconds)
        else:
            counters.cancelled += 1

    def _release(self, sequence: _Sequence) -> None:
        if sequence.cache is not None:
            self.pool.keep(sequence.cache, sequence.ids)
            sequence.cache = None

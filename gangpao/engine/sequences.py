"""What a scheduler works on: requests for answers and for embeddings, each with its cache and what it has come to.

A sequence knows which ids are to go into its cache next and what to do with the rows that come out of a step. An answer chooses a
token from a row, checks its drafts row by row, and hands pieces out; an embedding adds up hidden states. When to run
what is the scheduler's business (scheduler.py).
"""

import bisect
import time
from collections import abc, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gangpao.engine.answer import Answer, FinishReason, Piece, Stats
from gangpao.engine.cache import KVCache, common
from gangpao.engine.config import Mix
from gangpao.engine.generate import Engine
from gangpao.engine.pictures.rows import Hold
from gangpao.engine.sample import Logits, PromptScores, SamplingParams, TokenLogprob
from gangpao.engine.sessions.shift import ContextShift
from gangpao.engine.speculate.speculation import Company, verify
from gangpao.engine.thinking.rule import ThoughtRule
from gangpao.engine.transformer import Segment

T = TypeVar("T")
Floats = npt.NDArray[np.float32]


class Constraint(Protocol):
    """What an answer may say next: a grammar's state. Used by one answer only, from the scheduler's thread. It neither sees nor
    restricts a thought that stands before the answer by the request's rule."""

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""

    def apply(self, logits: Logits) -> None:
        """Set the logits [V] of every token that may not come next to -inf, in place."""

    def accept(self, token: int) -> None:
        """Go on behind a chosen token."""

    def forced(self) -> list[int]:
        """Tokens that must come next, one after the other; empty when there is a choice."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to make. stop: a chat template's turn marks, beside those of params. client: whose turn it uses up.

    continues: the text goes on from the prompt's, so a space at its beginning is part of it. speculate: drafts from the
    text so far may be tried (they never change the answer). prompt_logprobs: log-probabilities of the prompt's tokens are
    wanted, with so many alternatives each. prompt_only: no answer, the prompt is read and that is all. adapters: names ->
    scales (None: their own); not given: what the engine uses. axes: positions of the prompt, where it has pictures (KVCache).
    pictures: what keeps the rows of pictures in prompt_ids. shift: drops the oldest of prompt and answer when the context is full,
    unless there are axes or log-probabilities of the prompt. thinking: how the answer may think.
    """

    prompt_ids: abc.Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: abc.Sequence[str] = ()
    client: str = ""
    constraint: Constraint | None = None
    continues: bool = False
    speculate: bool = True
    prompt_logprobs: int | None = None
    prompt_only: bool = False
    adapters: abc.Mapping[str, float | None] | None = None
    axes: npt.NDArray[np.int64] | None = None
    pictures: Hold | None = None
    shift: ContextShift | None = None
    thinking: ThoughtRule | None = None

    def fitted(self) -> "Request":
        """The same with a prompt that leaves room in the context, as far as something may be dropped. Raises ValueError."""
        if self.shift is None or self.axes is not None or self.prompt_logprobs is not None or self.prompt_only:
            return replace(self, shift=None)
        shift = replace(self.shift)  # each answer drops its own
        return replace(self, prompt_ids=shift.fit(self.prompt_ids, room=1), shift=shift)


Event = Piece | Exception
OnEvent = Callable[[Event], None]
OnEmbedding = Callable[[Floats | Exception], None]
MAX_FORCED = 16  # tokens of a grammar without a choice that are computed at once


class Handle:
    """A request on its way. on_event gets Pieces, the last with a finish_reason, or one exception; nothing after cancel()."""

    def __init__(self, sequence: "Sequence") -> None:
        self._sequence = sequence

    @property
    def stats(self) -> Stats:
        """Counts and seconds so far; machine_s is this answer's share of the steps it took part in."""
        return self._sequence.stats

    @property
    def queue_s(self) -> float:
        """Seconds from submit to the first step; 0 before that."""
        return self._sequence.stats.queue_s

    @property
    def seed(self) -> int:
        """The seed in use, also when none was asked for; 0 for an embedding."""
        return self._sequence.answer.sampler.seed if isinstance(self._sequence, AnswerSequence) else 0

    @property
    def text(self) -> str:
        """Everything handed out so far."""
        return self._sequence.answer.text if isinstance(self._sequence, AnswerSequence) else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before it has."""
        return self._sequence.answer.finish_reason if isinstance(self._sequence, AnswerSequence) else None

    @property
    def stopped_by(self) -> str:
        """The stop string that ended the answer; empty when none did."""
        return self._sequence.answer.stopped_by if isinstance(self._sequence, AnswerSequence) else ""

    @property
    def prompt_logprobs(self) -> list[TokenLogprob | None]:
        """One entry a token of the prompt, None for the first; whole from the first piece on, empty if not asked for."""
        scores = self._sequence.scores
        return list(scores.values) if scores else []

    def cancel(self) -> None:
        """Stop before the next step and free everything. Harmless when it has ended already."""
        self._sequence.cancelled = True


class Sequence:
    """A request in the scheduler. `ids` is everything that belongs into its cache, of which to_compute are not there yet."""

    done = False
    skips_prefix_cache = False  # whether remembered prefixes are of no use
    scores: PromptScores | None = None  # of its prompt, where they are wanted
    axes: npt.NDArray[np.int64] | None = None  # positions of its prompt, where it has pictures

    def __init__(self, ids: abc.Sequence[int], client: str, adapters: Mix | None = None) -> None:
        self.ids = list(ids)
        self.client = client
        self.adapters = adapters
        self.cache: KVCache | None = None
        self.stats = Stats(prompt_tokens=len(self.ids))
        self.cancelled = False
        self.submitted = time.perf_counter()
        self.started_at = 0.0
        self.overtaken = 0  # by younger ones, while there was no room for it
        self.handle = Handle(self)

    def helps(self, other: "Sequence") -> bool:
        """Whether what this one computes of a common beginning spares the other one computing it."""
        if self.decoding or self.skips_prefix_cache or self.adapters != other.adapters:
            return False
        if other.scores is None:
            return True
        return self.scores is not None and self.scores.alternatives >= other.scores.alternatives

    @property
    def to_compute(self) -> int:
        """How many ids are not in the cache yet."""
        assert self.cache is not None
        return len(self.ids) - self.cache.length

    @property
    def decoding(self) -> bool:
        """Whether the prompt is done and the answer grows token by token."""
        return False

    def draft(self, context: int, company: Company) -> list[int]:
        """Ids that may come next, to be computed with the last one. company: whom the step is shared with."""
        return []

    def segment(self, ids: abc.Sequence[int], drafts: abc.Sequence[int]) -> Segment:
        """What a step is asked for when it computes these ids and drafts."""
        raise NotImplementedError

    def take_rows(self, rows: Floats) -> None:
        """Take what came out of the step for that segment."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Tell whoever waits that nothing will come any more."""
        raise NotImplementedError

    def close(self) -> None:
        """It is over, however it ended."""

    def _emit(self, listener: Callable[[T], None], event: T) -> None:
        """Hand an event out; a consumer whose event loop is closed is a consumer that left."""
        if not self.cancelled:
            try:
                listener(event)
            except RuntimeError:
                self.cancelled = True


class AnswerSequence(Sequence):
    """An answer that is being made. request: `fitted`. owner: whose earlier answers may foresee it (speculate/pool.py); None:
    nobody's."""

    def __init__(self, engine: Engine, request: Request, on_event: OnEvent, owner: str | None = None) -> None:
        super().__init__(request.prompt_ids, request.client, engine.mix(request.adapters))
        self.request = request
        self.axes = request.axes
        self.answer = Answer(
            engine.tokenizer, engine.model.config.vocab_size, request.prompt_ids, request.params,
            stop=request.stop, continues=request.continues, capacity=None if request.shift else engine.context,
            thinking=request.thinking,
        )  # fmt: skip
        self.stats = self.answer.stats
        self.stats.dropped_tokens = request.shift.dropped if request.shift else 0
        self._speculator = None
        if request.speculate:
            whose = None if owner is None else (owner, self.adapters)
            self._speculator = engine.speculation.begin(self.ids, self.answer.sampler, whose, lambda: self.cache)
        self._drafts: list[int] = []
        self._guessed = False  # whether they are guesses, which may be wrong
        self._on_event = on_event
        self._first_token_at = 0.0
        self._segment: Segment | None = None
        if request.prompt_logprobs is not None:
            self.scores = PromptScores(request.prompt_logprobs)

    @property
    def done(self) -> bool:  # type: ignore[override]
        """Whether the last piece is out."""
        return self.answer.finish_reason is not None

    @property
    def decoding(self) -> bool:
        return self.to_compute == 1 and self.stats.completion_tokens > 0

    def draft(self, context: int, company: Company) -> list[int]:
        if self.request.prompt_only:
            return []
        room = min(self.request.params.max_tokens - self.stats.completion_tokens, context - len(self.ids)) - 1
        if room < 1:
            return []
        self._guessed = False
        forced = list(self.answer.forced)
        if not forced and self.request.constraint is not None and not self.answer.before_form:
            forced = self.request.constraint.forced()
        if forced or self._speculator is None:
            return forced[: min(room, MAX_FORCED)]
        self._guessed = True
        return self._speculator.propose(self.ids, room, company)

    def segment(self, ids: abc.Sequence[int], drafts: abc.Sequence[int]) -> Segment:
        assert self.cache is not None
        self._drafts = list(drafts)
        whole = len(ids) == self.to_compute and not self.request.prompt_only
        need = None if self.request.constraint is not None else self.answer.need(drafts)
        self._segment = Segment(
            self.cache, [*ids, *drafts], 1 + len(drafts) if whole else 0, drafts=len(drafts), need=need
        )
        if self.scores is not None:
            begin, last = self.cache.length, len(self.request.prompt_ids) - 1
            rows = range(max(begin, len(self.scores.values) - 1), min(begin + len(ids), last))
            self._segment.scored = [(row - begin, self.ids[row + 1]) for row in rows]
            self._segment.alternatives = self.scores.alternatives
        return self._segment

    def take_rows(self, rows: Floats) -> None:
        """Go through the rows behind the last id and each draft, for as long as the drafts were right."""
        assert self.cache is not None
        if self.scores is not None and self._segment is not None:
            self.scores.values += self._segment.scores
        if self.request.prompt_only:
            if self.to_compute == 0:
                self.stats.ttft_s = time.perf_counter() - self.submitted
                self._send(self.answer.finish("length"))
            return
        drafts = self._drafts
        right = verify(rows, drafts, self._next_token)
        if drafts:
            self.stats.drafted += len(drafts)
            self.stats.accepted += right
            if self._speculator and self._guessed:
                self._speculator.learn(right)
        if len(rows):
            self.cache.truncate(min(self.cache.length, len(self.ids) - 1))
            if (shift := self.request.shift) is not None and len(self.ids) > shift.context and not self.done:
                self._drop_oldest(shift, self.cache)

    def _drop_oldest(self, shift: ContextShift, cache: KVCache) -> None:
        """Make room in a full context; what stays is computed anew, as the prompt was."""
        before, self.ids = self.ids, shift.fit(self.ids)
        self.stats.dropped_tokens = shift.dropped
        cache.truncate(common(before, self.ids[:-1]))
        if self._speculator:
            self._speculator = self._speculator.cut(before, self.ids)

    def fail(self, error: Exception) -> None:
        self._send(error)

    def close(self) -> None:
        """Its rows of pictures may go at once, whoever still keeps the handle; the speculator knows this object, which would live
        on until cycles are collected."""
        if self._speculator:
            self._speculator.close(self.ids)
        self._speculator = None
        self.request = replace(self.request, pictures=None)

    def _choose(self, logits: Logits) -> int:
        """The next token by the request's settings and constraint."""
        constraint = self.request.constraint
        if constraint is None or self.answer.before_form:
            return self.answer.choose(logits)
        allowed = logits.copy()
        constraint.apply(allowed)
        token = self.answer.choose(allowed)
        constraint.accept(token)
        return token

    def _next_token(self, logits: Logits) -> int | None:
        """One token: chosen, into the answer, and out what may go out; None when it was the last."""
        token = self._choose(logits)
        now, stats = time.perf_counter(), self.stats
        if stats.completion_tokens == 0:
            stats.ttft_s, self._first_token_at = now - self.submitted, now
        else:
            stats.decode_steps += 1
            stats.decode_s = now - self._first_token_at
        piece = self.answer.take(token, logits)
        self.ids.append(token)
        constraint = self.request.constraint
        if constraint is not None and constraint.finished and not self.done:
            if piece:
                self._send(piece)
            piece = self.answer.finish("stop")
        if piece:
            self._send(piece)
        return None if self.done else token

    def _send(self, event: Event) -> None:
        self._emit(self._on_event, event)


class EmbeddingSequence(Sequence):
    """The mean of the last hidden states of a text. Nothing of it is cached before: a cached position has no states."""

    skips_prefix_cache = True

    def __init__(
        self,
        ids: abc.Sequence[int],
        client: str,
        on_done: OnEmbedding,
        adapters: Mix | None = None,
        pictures: Hold | None = None,
    ) -> None:
        super().__init__(ids, client, adapters)
        self._pictures = pictures
        self._on_done = on_done
        self._sum: npt.NDArray[np.float64] | None = None

    def segment(self, ids: abc.Sequence[int], drafts: abc.Sequence[int]) -> Segment:
        assert self.cache is not None
        if self.cache.length == 0:  # also when it gave its pages back in the middle
            self._sum = None
        return Segment(self.cache, ids, hidden=True)

    def take_rows(self, rows: Floats) -> None:
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        if self.to_compute == 0:
            self.done = True
            self._emit(self._on_done, (self._sum / len(self.ids)).astype(np.float32))

    def fail(self, error: Exception) -> None:
        self._emit(self._on_done, error)


class Queue:
    """Waiting sequences: what had begun and gave way, then one line for each client, served in turns."""

    def __init__(self) -> None:
        self._begun: list[Sequence] = []
        self._lines: dict[str, deque[Sequence]] = {}

    def __len__(self) -> int:
        return len(self._begun) + sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._begun
        for line in self._lines.values():
            yield from line

    def put(self, sequence: Sequence) -> None:
        """To the end of its client's line."""
        self._lines.setdefault(sequence.client, deque()).append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """What was taken, before all others: it is its client's turn again. What had begun needs no turn."""
        if sequence.started_at:
            bisect.insort(self._begun, sequence, key=lambda j: j.started_at)
            return
        line = self._lines.pop(sequence.client, deque())
        line.appendleft(sequence)
        self._lines = {sequence.client: line, **self._lines}

    def take(self) -> Sequence | None:
        """What began first, else the first of the client whose turn it is, who then goes to the end of the round."""
        if self._begun:
            return self._begun.pop(0)
        for client in list(self._lines):
            line = self._lines.pop(client)
            if not line:
                continue
            sequence = line.popleft()
            if line:
                self._lines[client] = line
            return sequence
        return None

    def drop_cancelled(self) -> int:
        """Take out what nobody waits for any more, and say how many that were."""
        before = len(self)
        for sequence in self:
            if sequence.cancelled:
                sequence.close()
        self._begun = [sequence for sequence in self._begun if not sequence.cancelled]
        lines = {
            client: deque(sequence for sequence in line if not sequence.cancelled)
            for client, line in self._lines.items()
        }
        self._lines = {client: line for client, line in lines.items() if line}
        return before - len(self)

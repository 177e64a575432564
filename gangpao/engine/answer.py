"""From chosen tokens to text that may go out: characters, stop strings, log-probabilities, and when an answer is over.

Whoever computes the logits (one conversation in generate.py, many at once in scheduler.py), an answer grows in the same way:
take(token, logits) -> a Piece to hand out, or None while its text has to wait. No text that was handed out is ever taken
back: a piece never ends inside a character, and text that could still become a stop string waits.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gangpao.engine.sample import Logits, Need, Sampler, SamplingParams, TokenLogprob, logprobs_of
from gangpao.engine.thinking.rule import ThoughtRule
from gangpao.engine.thinking.tracker import ThoughtTracker
from gangpao.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some new text and the tokens behind it. finish_reason is set on the last piece only, whose text may be empty.

    logprobs has one entry an id when the request asked for them, else it is empty. offsets has the character of the answer
    at which each id's text begins. The end token is in none, nor is a token of text that a stop string cut off.
    """

    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    offsets: tuple[int, ...] = ()


@dataclass(slots=True)
class Stats:
    """Counts and seconds of one answer. Time the consumer spends between pieces is not counted.

    ttft_s goes from the request to the first token; the first queue_s of them it waited for its turn.
    reasoning_tokens are those of a thought and its marks, where an answer has a rule for that.
    drafted and accepted count the tokens that speculation proposed and those of them that were the answer. machine_s is set
    where answers share the machine: this one's part of it. dropped_tokens: of prompt and answer, that left a full context.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    decode_steps: int = 0
    decode_s: float = 0.0
    drafted: int = 0
    accepted: int = 0
    machine_s: float = 0.0
    dropped_tokens: int = 0

    @property
    def seconds(self) -> float:
        """Machine time of the answer: to the first token, then decoding."""
        return self.machine_s or self.ttft_s + self.decode_s

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens computed (those not in the cache yet) a second; 0 before the first token."""
        seconds = self.ttft_s - self.queue_s
        return (self.prompt_tokens - self.cached_tokens) / seconds if self.ttft_s and seconds > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens a second after the first one; 0 when there was no second token."""
        return self.decode_steps / self.decode_s if self.decode_s else 0.0


class Answer:
    """The text of one answer so far. capacity: the most positions that prompt and answer may fill together; None where the oldest
    leave a full context. thinking: how it may think; where a rule is given, stop strings count behind the thought only."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        stop: Sequence[str] = (),
        continues: bool = False,
        capacity: int | None,
        thinking: ThoughtRule | None = None,
    ) -> None:
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.stats = Stats(prompt_tokens=len(prompt_ids))
        self.sampler = Sampler(params, vocab_size, prompt_ids)
        self._params = params
        self._capacity = capacity
        self._ends = tokenizer.end_ids
        self._stop = StopFilter((*params.stop, *stop))
        self._stream = tokenizer.stream(start=not continues)
        self._pending = _Pending()
        room = params.max_tokens if capacity is None else min(params.max_tokens, capacity - len(prompt_ids) + 1)
        self._thought = None if thinking is None else ThoughtTracker(thinking, tokenizer, room)
        self._decoded = 0  # characters that all tokens so far made, those that are held back included

    @property
    def stopped_by(self) -> str:
        """The stop string that ended the answer; empty when none did."""
        return self._stop.stop

    @property
    def before_form(self) -> bool:
        """Whether the next token belongs to a thought, for which the answer's form does not hold."""
        return self._thought is not None and self._thought.before_form

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that come next whatever the model says; often none."""
        return () if self._thought is None else self._thought.forced

    def need(self, ahead: Sequence[int] = ()) -> Need | None:
        """What has to be known of the next logits, and of those behind the tokens `ahead`; None: all of them."""
        return None if self._params.logprobs is not None else self.sampler.need(ahead)

    def choose(self, logits: Logits) -> int:
        """The next token: one that closes a thought, or what the sampler draws."""
        if self._thought is None or self._thought.over:
            return self.sampler.sample(logits)
        return self._thought.choose(self.sampler, logits)

    def take(self, token: int, logits: Logits) -> Piece | None:
        """Turn one chosen token into text; None while its text has to wait for the next token."""
        piece = self._take(token, logits)
        if piece:
            self.text += piece.text
            self.finish_reason = piece.finish_reason
        return piece

    def _take(self, token: int, logits: Logits) -> Piece | None:
        stats = self.stats
        if token in self._ends:
            return self._last("stop")
        stats.completion_tokens += 1
        count = self._params.logprobs
        self._pending.add(token, self._decoded, None if count is None else logprobs_of(logits, token, count))
        decoded = self._stream.push(token)
        self._decoded += len(decoded)
        text = self._passed(decoded)
        if self._stop.found:
            return self._piece(text, "stop")
        # The last token's own position is not filled: nothing is computed after it.
        full = self._capacity is not None and stats.prompt_tokens + stats.completion_tokens > self._capacity
        if full or stats.completion_tokens >= self._params.max_tokens:
            return self._last("length", text)
        return self._piece(text) if text else None

    def _passed(self, decoded: str) -> str:
        """Of a token's text what may go out. A stop string in a thought ends nothing."""
        thought = self._thought
        if thought is None or thought.over:
            return self._stop.push(decoded)
        before = thought.inside
        answer = thought.accept(decoded, self._stream.whole)
        self.stats.reasoning_tokens = thought.tokens
        if not (before or thought.inside):
            return self._stop.push(decoded)
        cut = len(decoded) - len(answer)
        return self._stop.flush() + decoded[:cut] + self._stop.push(decoded[cut:])

    def _piece(self, text: str, reason: FinishReason | None = None) -> Piece:
        """The next piece, with the tokens whose text begins in it or before."""
        return self._pending.piece(text, len(self.text) + len(text), reason)

    def finish(self, reason: FinishReason) -> Piece:
        """End the answer here, with everything that was held back."""
        piece = self._last(reason)
        self.text += piece.text
        self.finish_reason = piece.finish_reason
        return piece

    def _last(self, reason: FinishReason, text: str = "") -> Piece:
        """The final piece, with everything that was held back."""
        text += self._stop.push(self._stream.flush())
        if self._stop.found:
            return self._piece(text, "stop")
        return self._pending.piece(text + self._stop.flush(), None, reason)


@dataclass(slots=True)
class _Pending:
    """Tokens whose text is not out yet, and where in the answer each begins."""

    ids: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, token: int, offset: int, logprob: TokenLogprob | None) -> None:
        """One more; all have log-probabilities, or none has."""
        self.ids.append(token)
        self.offsets.append(offset)
        if logprob is not None:
            self.logprobs.append(logprob)

    def piece(self, text: str, end: int | None, reason: FinishReason | None = None) -> Piece:
        """A piece that ends at that character of the answer, with the tokens that begin before it; with all if it is None."""
        n = len(self.ids) if end is None else bisect_left(self.offsets, end)
        out = Piece(text, tuple(self.ids[:n]), tuple(self.logprobs[:n]), reason, tuple(self.offsets[:n]))
        del self.ids[:n], self.offsets[:n], self.logprobs[:n]
        return out


class StopFilter:
    """Let text through up to the first stop string, holding back only an ending that could still begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self.stop = ""
        self._stops = tuple(sorted(stops))
        self._longest = max(map(len, self._stops), default=1)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that may go out now. Sets `found` and `stop` when a stop string has been met; nothing follows it."""
        if self.found:
            return ""
        held = self._held + text
        starts = [(at, s) for s in self._stops if (at := held.find(s)) >= 0]
        if starts:
            at, self.stop = min(starts)
            self.found, self._held = True, ""
            return held[:at]
        out = self._open(held)
        self._held = held[out:]
        return held[:out]

    def flush(self) -> str:
        """What is still held, when nothing more will come."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """Where the longest ending of text that is a beginning (not all) of a stop string starts; its length if none is."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            ending = text[at:]
            # In sorted order, what begins with the ending stands right behind it.
            place = bisect_left(self._stops, ending)
            if place < len(self._stops) and self._stops[place].startswith(ending):
                return at
        return len(text)

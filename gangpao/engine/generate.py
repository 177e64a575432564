"""The whole life of a token. Read this file first.

    Engine.load    path -> is there memory for it? -> weights, tokenizer, chat template
    Session        one KV cache and the token ids that are in it; the longest common prefix of the next prompt is kept
    Generation     prompt ids -> prefill -> [sample -> end? stop string? -> Piece of text -> forward one token] ...

A Generation is an iterator of Pieces that also carries the text so far, the seed and the Stats, so they can be read
after the last piece, after close(), and after Ctrl-C alike. Two promises hold at every exit: the session's ids are
exactly the tokens whose keys and values are in its cache, and no text that was handed out is ever taken back (a piece
never ends inside a character, and text that could still become a stop string waits).

What it gives up: one sequence at a time, one token a step.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gangpao import kernels, machine
from gangpao.engine import admission
from gangpao.engine.cache import KVCache, KVType
from gangpao.engine.config import ModelConfig
from gangpao.engine.gguf import GGUF
from gangpao.engine.sample import Logits, Sampler, SamplingParams, TokenLogprob, logprobs_of
from gangpao.engine.transformer import Transformer
from gangpao.text.chat import ChatTemplate
from gangpao.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some new text and the tokens behind it. finish_reason is set on the last piece only, whose text may be empty.

    logprobs has one entry an id when the request asked for them, else it is empty. The end token is in neither.
    """

    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Stats:
    """Counts and seconds of one answer. Time the consumer spends between pieces is not counted."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float = 0.0
    decode_steps: int = 0
    decode_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Machine time of the answer: to the first token, then decoding."""
        return self.ttft_s + self.decode_s

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens computed (those not in the cache yet) a second; 0 before the first token."""
        return (self.prompt_tokens - self.cached_tokens) / self.ttft_s if self.ttft_s else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens a second after the first one; 0 when there was no second token."""
        return self.decode_steps / self.decode_s if self.decode_s else 0.0


@dataclass(slots=True)
class Engine:
    """A loaded model with its tokenizer and chat template. context is the most tokens of prompt and answer together."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate
    context: int
    kv_dtype: KVType = "f16"
    load_s: float = 0.0

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        context: int | None = None,
        kv_dtype: KVType = "f16",
        num_threads: int | None = None,
        progress: Progress | None = None,
    ) -> "Engine":
        """Load a GGUF file. Without `context`, the widest of 8192, 4096, ... that the model and the memory allow.

        progress(done, total) is called in bytes. Raises ValueError when memory does not suffice, naming need, have and
        ways out, and ModelFileError (a ValueError) for a damaged or unsupported file.
        """
        start = time.perf_counter()
        gguf = GGUF.open(path)
        config = ModelConfig.from_gguf(gguf)
        context = admission.admit(gguf, config, context, kv_dtype)
        kernels.set_num_threads(num_threads or machine.physical_cores())
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        source = tokenizer.chat_template
        template = ChatTemplate.for_model(source, tokenizer=tokenizer, architecture=config.architecture)
        model = Transformer.load(gguf, progress=progress)
        name = os.path.basename(os.fspath(path)).removesuffix(".gguf")
        return cls(name, model, tokenizer, template, context, kv_dtype, time.perf_counter() - start)

    def session(self) -> "Session":
        """A new conversation with an empty cache."""
        return Session(self)

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        session: "Session | None" = None,
        stop: Sequence[str] = (),
        on_prefill: Progress | None = None,
        continues: bool = False,
    ) -> "Generation":
        """Start an answer to prompt_ids; nothing is computed before the first piece is asked for.

        `stop` adds strings (a chat template's turn marks) to params.stop. on_prefill(done, total) is called in tokens.
        continues: the text goes on from the prompt's, so a space at its beginning is part of it.
        Raises ValueError for an empty prompt, and for one that leaves no room in the context.
        """
        params = params or SamplingParams()
        return Generation(session or self.session(), prompt_ids, params, stop, on_prefill, continues)


class Session:
    """One KV cache and the ids in it. Made by Engine.session; runs one Generation at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache: KVCache = engine.model.new_cache(engine.context, engine.kv_dtype)
        self.ids: list[int] = []

    def reuse(self, prompt_ids: Sequence[int]) -> int:
        """Cut the cache back to what it shares with prompt_ids and return that length.

        At least one prompt token is left to compute, because its logits are what the first choice is made from.
        """
        shared = 0
        limit = min(len(self.ids), len(prompt_ids) - 1)
        while shared < limit and self.ids[shared] == prompt_ids[shared]:
            shared += 1
        self.cache.truncate(shared)
        del self.ids[shared:]
        return shared

    def feed(self, ids: Sequence[int], on_progress: Progress | None = None) -> Logits:
        """Run ids through the model; logits [V] after the last. An interrupt leaves ids equal to the cache."""
        try:
            self.ids.extend(ids)
            return self.engine.model.forward(ids, self.cache, on_progress=on_progress)
        finally:
            del self.ids[self.cache.length :]


class Generation:
    """One answer: an iterator of Pieces. See the module docstring for what holds after it ends, however it ends."""

    def __init__(
        self,
        session: Session,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        stop: Sequence[str],
        on_prefill: Progress | None,
        continues: bool,
    ) -> None:
        _check_prompt(prompt_ids, session.engine)
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.stats = Stats(prompt_tokens=len(prompt_ids))
        self._session = session
        self._prompt = list(prompt_ids)
        self._params = params
        self._sampler = Sampler(params, session.engine.model.config.vocab_size, prompt_ids)
        self._stop = StopFilter((*params.stop, *stop))
        self._stream = session.engine.tokenizer.stream(start=not continues)
        self._pending = _Pending()
        self._on_prefill = on_prefill
        self._pieces = self._run()

    @property
    def seed(self) -> int:
        """The seed in use, also when none was asked for."""
        return self._sampler.seed

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer early. Harmless when it has ended already."""
        self._pieces.close()

    def _run(self) -> Generator[Piece, None, None]:
        session, stats = self._session, self.stats
        start = time.perf_counter()
        stats.cached_tokens = session.reuse(self._prompt)
        logits = session.feed(self._prompt[stats.cached_tokens :], self._on_prefill)
        token = self._sampler.sample(logits)
        stats.ttft_s = time.perf_counter() - start
        while True:
            start = time.perf_counter()
            piece = self._take(token, logits)
            stats.decode_s += time.perf_counter() - start
            if piece:
                self.text += piece.text
                self.finish_reason = piece.finish_reason
                yield piece
            if self.finish_reason:
                return
            start = time.perf_counter()
            logits = session.feed([token])
            token = self._sampler.sample(logits)
            stats.decode_s += time.perf_counter() - start
            stats.decode_steps += 1

    def _take(self, token: int, logits: Logits) -> Piece | None:
        """Turn one chosen token into text; None while its text has to wait for the next token."""
        if token in self._session.engine.tokenizer.end_ids:
            return self._last("stop")
        self.stats.completion_tokens += 1
        self._pending.ids.append(token)
        if self._params.logprobs is not None:
            self._pending.logprobs.append(logprobs_of(logits, token, self._params.logprobs))
        text = self._stop.push(self._stream.push(token))
        if self._stop.found:
            return self._pending.piece(text, "stop")
        full = len(self._session.ids) >= self._session.cache.capacity
        if full or self.stats.completion_tokens >= self._params.max_tokens:
            return self._last("length", text)
        return self._pending.piece(text) if text else None

    def _last(self, reason: FinishReason, text: str = "") -> Piece:
        """The final piece, with everything that was held back."""
        text += self._stop.push(self._stream.flush())
        if self._stop.found:
            return self._pending.piece(text, "stop")
        return self._pending.piece(text + self._stop.flush(), reason)


@dataclass(slots=True)
class _Pending:
    """Tokens whose text is not out yet."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def piece(self, text: str, reason: FinishReason | None = None) -> Piece:
        out = Piece(text, tuple(self.ids), tuple(self.logprobs), reason)
        self.ids.clear()
        self.logprobs.clear()
        return out


class StopFilter:
    """Let text through up to the first stop string, holding back only an ending that could still begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that may go out now. Sets `found` when a stop string has been met; nothing follows it."""
        if self.found:
            return ""
        held = self._held + text
        starts = [at for at in (held.find(s) for s in self._stops) if at >= 0]
        if starts:
            self.found, self._held = True, ""
            return held[: min(starts)]
        keep = max((_overlap(held, s) for s in self._stops), default=0)
        out = len(held) - keep
        self._held = held[out:]
        return held[:out]

    def flush(self) -> str:
        """What is still held, when nothing more will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of text that is a beginning (not all) of stop."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def _check_prompt(prompt_ids: Sequence[int], engine: Engine) -> None:
    if not prompt_ids:
        raise ValueError("the prompt is empty: give at least one token")
    if len(prompt_ids) >= engine.context:
        limit = engine.model.config.max_position_embeddings
        more = f" or load the model with a wider context (up to {limit})" if limit > engine.context else ""
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds {engine.context}, answer included: "
            f"shorten the prompt{more}"
        )

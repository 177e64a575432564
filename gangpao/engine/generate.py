"""The whole life of a token. Read this file first.

    Engine.load    path -> is there memory for it? -> weights, tokenizer, chat template
    Session        one KV cache and the token ids that are in it; the longest common prefix of the next prompt is kept
    Generation     prompt ids -> prefill -> [sample -> Answer: end? stop string? -> Piece of text -> forward a token and drafts] ...

A Generation is an iterator of Pieces that also carries the text so far, the seed and the Stats, so they can be read
after the last piece, after close(), and after Ctrl-C alike. Two promises hold at every exit: the session's ids are
exactly the tokens whose keys and values are in its cache, and no text that was handed out is ever taken back
(answer.py).

What it gives up: one sequence at a time; scheduler.py runs many.
"""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gangpao import kernels, machine
from gangpao.engine import adapters as adapters_
from gangpao.engine import memory
from gangpao.engine.answer import Answer, FinishReason, Piece, Progress, Stats
from gangpao.engine.cache import KVCache, KVType, common
from gangpao.engine.config import Mix, ModelConfig
from gangpao.engine.sample import UNSAID, Logits, SamplingParams, recommended_in
from gangpao.engine.speculate import Drafter, verify
from gangpao.engine.transformer import Floats, Transformer
from gangpao.formats.adapters import Adapter
from gangpao.formats.gguf import GGUF
from gangpao.text.fill import FillMarks, fill_marks
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.thoughts import Splitter
from gangpao.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Engine:
    """A loaded model with its tokenizer, chat template and the sampling settings that it recommends.

    context is the most tokens of prompt and answer together. sampling: names of SamplingParams -> values, of the file and
    (whoever loads it by name) of the catalog. fill: its marks for a hole in a text, where it has any.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate
    context: int
    kv_dtype: KVType = "f16"
    load_s: float = 0.0
    sampling: Mapping[str, float] = field(default_factory=dict)
    fill: FillMarks | None = None

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | GGUF,
        *,
        context: int | None = None,
        kv_dtype: KVType = "f16",
        num_threads: int | None = None,
        progress: Progress | None = None,
        float32: bool = False,
        adapters: Mapping[str, Adapter | str | os.PathLike[str]] | None = None,
    ) -> "Engine":
        """Load a GGUF file, or one that is open already.

        Without `context`, the widest of 8192, 4096, ... that the model and the memory allow. float32: compute with weights and
        activations of that type, which takes more memory and time, to be compared with programs that do. adapters: by name, as
        they are or as PEFT folders and GGUF files; an answer uses those that it names, or else those of `use`.

        progress(done, total) is called in bytes. Raises ValueError when memory does not suffice, naming need, have and
        ways out, and ModelFileError (a ValueError) for a damaged or unsupported file.
        """
        start = time.perf_counter()
        gguf = path if isinstance(path, GGUF) else GGUF.open(path)
        config = ModelConfig.from_gguf(gguf)
        found = {
            name: one if isinstance(one, Adapter) else adapters_.read(one, gguf, config)
            for name, one in (adapters or {}).items()
        }
        beside = sum(adapters_.bytes_of(one, float32=float32) for one in found.values())
        context = memory.plan_memory(gguf, config, context, kv_dtype, float32=float32, adapters=beside)
        kernels.set_num_threads(num_threads or machine.physical_cores())
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        source = tokenizer.chat_template
        template = ChatTemplate.for_model(source, tokenizer=tokenizer, architecture=config.architecture)
        model = Transformer.load(gguf, progress=progress, float32=float32)
        for label, adapter in found.items():
            model.add_adapter(label, adapter)
        name = gguf.path.name.removesuffix(".gguf")
        sampling = recommended_in(gguf.metadata)
        fill = fill_marks(tokenizer, gguf.metadata)
        return cls(name, model, tokenizer, template, context, kv_dtype, time.perf_counter() - start, sampling, fill)

    def recommended(self, **given: Any) -> SamplingParams:
        """The settings for a talk: what is given (None is not), else what the model recommends, else UNSAID.

        Raises ValueError naming a value that is out of bounds.
        """
        chosen: dict[str, Any] = {**UNSAID, **self.sampling}
        return SamplingParams(**chosen | {name: value for name, value in given.items() if value is not None})

    def use(self, adapters: Mapping[str, float | None]) -> None:
        """What answers are computed with from now on that name no adapters: names -> scales, None for their own; none: the base.

        Conversations and schedulers that were made before go on as they are. Raises ValueError for an unknown name.
        """
        self.model.adapters.chosen = self.model.adapters.mix(adapters)

    def mix(self, adapters: Mapping[str, float | None] | None) -> Mix | None:
        """Adapters by name as caches have them; None stays: those of `use`. Raises ValueError for an unknown name."""
        return None if adapters is None else self.model.adapters.mix(adapters)

    def session(self, adapters: Mapping[str, float | None] | None = None) -> "Session":
        """A new conversation with an empty cache. adapters: names -> scales (None: their own); not given: those of `use`."""
        return Session(self, self.mix(adapters))

    def splitter(self, prompt_ids: Sequence[int]) -> Splitter:
        """What tells thought and answer apart in the text that follows this prompt, whose end may have opened a thought."""
        return self.template.splitter(self.tokenizer, prompt_ids)

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        session: "Session | None" = None,
        stop: Sequence[str] = (),
        on_prefill: Progress | None = None,
        continues: bool = False,
        speculate: bool = True,
    ) -> "Generation":
        """Start an answer to prompt_ids; nothing is computed before the first piece is asked for.

        Without params, those that the model recommends. `stop` adds strings (a chat template's turn marks) to params.stop.
        on_prefill(done, total) is called in tokens.
        continues: the text goes on from the prompt's, so a space at its beginning is part of it. speculate: drafts from the
        text so far may be tried (speculate.py); they never change the answer.
        Raises ValueError for an empty prompt, and for one that leaves no room in the context.
        """
        params, session = params or self.recommended(), session or self.session()
        return Generation(session, prompt_ids, params, stop, on_prefill, continues, speculate)


class Session:
    """One KV cache and the ids in it. Made by Engine.session; runs one Generation at a time."""

    def __init__(self, engine: Engine, adapters: Mix | None = None) -> None:
        self.engine = engine
        self.cache: KVCache = engine.model.new_cache(engine.context, engine.kv_dtype, adapters)
        self.ids: list[int] = []

    def reuse(self, prompt_ids: Sequence[int]) -> int:
        """Cut the cache back to what it shares with prompt_ids and return that length.

        At least one prompt token is left to compute, because its logits are what the first choice is made from.
        """
        shared = common(self.ids, prompt_ids[:-1])
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

    def try_out(self, ids: Sequence[int]) -> Floats:
        """Run ids through the model; logits [T, V] after each. `cut` takes back what was wrong."""
        try:
            self.ids.extend(ids)
            return self.engine.model.forward(ids, self.cache, all_logits=len(ids) > 1).reshape(len(ids), -1)
        finally:
            del self.ids[self.cache.length :]

    def cut(self, length: int) -> None:
        """Forget every position from `length` on."""
        if length < len(self.ids):
            self.cache.truncate(length)
            del self.ids[length:]


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
        speculate: bool,
    ) -> None:
        engine = session.engine
        check_prompt(prompt_ids, engine)
        self._session = session
        self._prompt = list(prompt_ids)
        self._params = params
        self._answer = Answer(
            engine.tokenizer, engine.model.config.vocab_size, prompt_ids, params,
            stop=stop, continues=continues, capacity=session.cache.capacity,
        )  # fmt: skip
        self._on_prefill = on_prefill
        self._continues = continues
        self._drafter = Drafter(prompt_ids) if speculate else None
        self._pieces = self._run()

    @property
    def seed(self) -> int:
        """The seed in use, also when none was asked for."""
        return self._answer.sampler.seed

    @property
    def text(self) -> str:
        """Everything handed out so far."""
        return self._answer.text

    def splitter(self) -> Splitter:
        """What tells thought and answer apart in this answer's text; a text that only goes on has no thought."""
        return (
            Splitter(None)
            if self._continues
            else self._session.engine.splitter(self._prompt[: self.stats.prompt_tokens])
        )

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before it has."""
        return self._answer.finish_reason

    @property
    def stats(self) -> Stats:
        """Counts and seconds so far."""
        return self._answer.stats

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer early. Harmless when it has ended already."""
        self._pieces.close()

    def _run(self) -> Generator[Piece, None, None]:
        session, answer, stats = self._session, self._answer, self._answer.stats
        begin = start = time.perf_counter()
        stats.cached_tokens = session.reuse(self._prompt)
        rows = session.feed(self._prompt[stats.cached_tokens :], self._on_prefill)[None]
        ids = self._prompt
        pieces: list[Piece | None] = []
        drafts: list[int] = []

        def say(logits: Logits) -> int | None:
            token = answer.sampler.sample(logits)
            if stats.ttft_s == 0:
                stats.ttft_s = time.perf_counter() - begin
            else:
                stats.decode_steps += 1
            ids.append(token)
            pieces.append(answer.take(token, logits))
            return None if answer.finish_reason else token

        while True:
            right = verify(rows, drafts, say)
            if drafts and self._drafter:
                self._drafter.learn(len(drafts), right)
                stats.drafted, stats.accepted = stats.drafted + len(drafts), stats.accepted + right
            session.cut(len(ids) - 1)
            stats.decode_s += time.perf_counter() - max(start, begin + stats.ttft_s)
            yield from filter(None, pieces)
            if answer.finish_reason:
                return
            start = time.perf_counter()
            pieces.clear()
            drafts = self._draft(ids)
            rows = session.try_out([ids[-1], *drafts])

    def _draft(self, ids: list[int]) -> list[int]:
        left = self._params.max_tokens - self.stats.completion_tokens
        room = min(left, self._session.cache.capacity - len(ids)) - 1
        return self._drafter.propose(ids, room, 1) if self._drafter and room > 0 else []


def check_prompt(prompt_ids: Sequence[int], engine: Engine) -> None:
    if not prompt_ids:
        raise ValueError("the prompt is empty: give at least one token")
    if len(prompt_ids) >= engine.context:
        limit = engine.model.config.max_position_embeddings
        more = f" or take a wider one (--context, up to {limit})" if limit > engine.context else ""
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds {engine.context}, answer included: "
            f"shorten the prompt{more}"
        )

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
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao import kernels, machine
from gangpao.engine import adapters as adapters_
from gangpao.engine import memory
from gangpao.engine.answer import Answer, FinishReason, Piece, Progress, Stats
from gangpao.engine.cache import KVCache, common
from gangpao.engine.config import Mix, ModelConfig
from gangpao.engine.layers.kept import KVChoice, KVType, chosen_kv
from gangpao.engine.packed.store import PackedStore
from gangpao.engine.pictures.prompts import arranged, mark_ids
from gangpao.engine.pictures.rows import Hold
from gangpao.engine.pictures.seeing import Check, Seeing, Sight
from gangpao.engine.sample import UNSAID, Logits, Need, SamplingParams, recommended_in
from gangpao.engine.sessions.identity import model_digest
from gangpao.engine.sessions.shift import ContextShift, Encode, turns_of
from gangpao.engine.speculate.loading import open_draft
from gangpao.engine.speculate.speculation import Speculation, verify
from gangpao.engine.thinking.rule import ThoughtRule
from gangpao.engine.transformer import Floats, Transformer
from gangpao.engine.vision.opened import open_sight
from gangpao.formats.adapters import Adapter
from gangpao.formats.gguf import GGUF
from gangpao.images.canvas import Positions
from gangpao.images.look import Picture
from gangpao.text.fill import FillMarks, fill_marks
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.templates.pictures import in_order
from gangpao.text.thoughts import Splitter
from gangpao.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Engine:
    """A loaded model with its tokenizer, chat template and the sampling settings that it recommends.

    context is the most tokens of prompt and answer together. sampling: names of SamplingParams -> values, of the file and
    (whoever loads it by name) of the catalog. fill: its marks for a hole in a text, where it has any. seeing: what it sees with;
    None where it reads text only. gguf: the open file that it came from. modes: where it recommends others when thinking is
    switched on (True) or off. speculation: what drafts for its answers.
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
    seeing: Seeing | None = None
    gguf: GGUF | None = None
    _model_id: str = ""
    modes: Mapping[bool, Mapping[str, float]] = field(default_factory=dict)
    speculation: Speculation = field(default_factory=Speculation)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | GGUF,
        *,
        context: int | None = None,
        kv_dtype: KVChoice = "f16",
        num_threads: int | None = None,
        progress: Progress | None = None,
        float32: bool = False,
        adapters: Mapping[str, Adapter | str | os.PathLike[str]] | None = None,
        sight: Sight | str | os.PathLike[str] | None = None,
        packed: int = 0,
        draft: str | os.PathLike[str] | GGUF | None = None,
        sparse: int = 0,
    ) -> "Engine":
        """Load a GGUF file, or one that is open already.

        Without `context`, the widest of 8192, 4096, ... that the model and the memory allow. float32: compute with weights and
        activations of that type, which takes more memory and time, to be compared with programs that do. adapters: by name, as
        they are or as PEFT folders and GGUF files; an answer uses those that it names, or else those of `use`. sight: what it sees
        with, or its mmproj file. packed: bytes of disk for packed weights, with which a model starts at once the next time.
        draft: a small model of the same vocabulary, or its draft head, which never change an answer. sparse: positions that a token
        looks at far into a context (layers/sparse.py); 0: all.

        progress(done, total) is called in bytes. Raises ValueError when memory does not suffice, naming need, have and
        ways out, and ModelFileError (a ValueError) for a damaged or unsupported file.
        """
        start = time.perf_counter()
        gguf = path if isinstance(path, GGUF) else GGUF.open(path)
        config = ModelConfig.from_gguf(gguf)
        kv = chosen_kv(config, kv_dtype, float32=float32)
        found = {
            name: one if isinstance(one, Adapter) else adapters_.read(one, gguf, config)
            for name, one in (adapters or {}).items()
        }
        beside = sum(adapters_.bytes_of(one, float32=float32) for one in found.values())
        eyes = None if sight is None else open_sight(sight, gguf, config)
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        drafts = None if draft is None else open_draft(draft, tokenizer, config)
        context = memory.plan_memory(
            gguf, config, context, kv, float32=float32, adapters=beside, sight=None if eyes is None else eyes.nbytes,
            draft=(drafts.gguf, drafts.config, drafts.work) if drafts else None, sparse=sparse,
        )  # fmt: skip
        kernels.set_num_threads(num_threads or machine.physical_cores())
        template = ChatTemplate.for_model(
            tokenizer.chat_template, tokenizer=tokenizer, architecture=config.architecture
        )
        store = PackedStore(packed) if packed else None
        model = Transformer.load(gguf, progress=progress, float32=float32, store=store)
        model.sparse = sparse
        for name, adapter in found.items():
            model.add_adapter(name, adapter)
        sampling, fill = recommended_in(gguf.metadata), fill_marks(tokenizer, gguf.metadata)
        seeing = None if eyes is None else Seeing(eyes, config.vocab_size, memory.row_bytes(config, context))
        model.rows = None if seeing is None else seeing.table
        speculation = Speculation(drafts.load(context, kv, model, gguf) if drafts else None)
        return cls(
            gguf.path.name.removesuffix(".gguf"), model, tokenizer, template, context, kv, time.perf_counter() - start,
            sampling, fill, seeing, gguf, speculation=speculation,
        )  # fmt: skip

    def recommended(self, *, thinking: bool | None = None, **given: Any) -> SamplingParams:
        """The settings for a talk: what is given (None is not), else what the model recommends, else UNSAID.

        Where a temperature of 0 is given, no penalty is recommended: it asks for the most likely token. thinking: whether it was
        switched on or off. Raises ValueError naming a value that is out of bounds.
        """
        mode = {} if thinking is None else self.modes.get(thinking, {})
        chosen: dict[str, Any] = {**UNSAID, **self.sampling, **mode}
        if given.get("temperature") == 0:
            chosen.pop("repetition_penalty", None)
        return SamplingParams(**chosen | {name: value for name, value in given.items() if value is not None})

    def see(self, pictures: Iterable[Picture], check: Check = lambda: None) -> Hold:
        """Have pictures encoded, once for each that is not remembered; their rows stay for as long as the Hold does.

        check: called between layers of the encoder; what it raises ends the work. Raises ValueError for a model that does not see
        and for a picture that cannot be used, and RowsFull where others use all memory for rows.
        """
        return self._sees().see(list(pictures), check)

    def prompt_with(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Mapping[str, Picture] | None = None,
        **options: Any,
    ) -> list[int]:
        """Prompt ids of messages in whose contents characters stand for pictures (`pictures.prompts.placed`); nothing is encoded.

        The rows of the pictures are ids behind the vocabulary; `see` has them made. options: those of ChatTemplate.encode.
        Raises ValueError as that and `see` do.
        """
        if not pictures:
            return self.template.encode(self.tokenizer, messages, **options)
        seeing = self._sees()
        messages, marks = arranged(messages, pictures, seeing.sight.vision.marks, self.template.writes_images)
        order = in_order(messages, pictures)
        looked = seeing.look_all(pictures[c] for c in order)
        layouts = {c: one.layout(marks, number) for number, (c, one) in enumerate(zip(order, looked, strict=True))}
        return self.template.encode(self.tokenizer, messages, pictures=layouts, **options)

    def axes(self, ids: Sequence[int], pictures: Iterable[Picture]) -> Positions | None:
        """Positions int64 [3, T] of a prompt with pictures, where the model has them on a canvas (MiniCPM-V 4.7); else None."""
        if self.seeing is None or not self.seeing.sight.vision.canvas:
            return None
        marks = mark_ids(self.tokenizer, self.seeing.sight.vision.marks, self.name)
        return self.seeing.axes(ids, list(pictures), marks)

    def without_rows(self, ids: Sequence[int]) -> list[int]:
        """Prompt ids as others may see them: for each row of a picture the token that the model's own prompts have there."""
        vocab = self.model.config.vocab_size
        filler = 0 if self.seeing is None else self.tokenizer.id_of(self.seeing.sight.vision.marks.filler) or 0
        return [i if i < vocab else filler for i in ids]

    def _sees(self) -> Seeing:
        if self.seeing is None:
            raise ValueError(f"{self.name} does not see: it reads text only")
        return self.seeing

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

    def model_id(self) -> str:
        """A name for the weights by what is in their file (sessions/identity.py). Raises ValueError where they came from none."""
        if self.gguf is None:
            raise ValueError(f"{self.name} was not loaded from a file: its caches cannot be kept")
        self._model_id = self._model_id or model_digest(self.gguf)
        return self._model_id

    def shift(
        self, head: Sequence[Mapping[str, Any]] | None = None, encode: Encode | None = None
    ) -> ContextShift | None:
        """What drops the oldest of a text when the context is full; None where what has to stay leaves no room for that.

        head: messages that stay, in front of the first turn; None for a text without turns. encode: messages -> ids of a prompt;
        `prompt_with` if not given.
        """
        made = ContextShift(self.context, self.model.config.vocab_size)
        with suppress(ValueError):  # a template that refuses small talks has no turns that we know
            if head is not None:
                made.keep, made.opening = turns_of(encode or self.prompt_with, head)
        return made if made.possible else None

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
        pool: bool = True,
        axes: npt.NDArray[np.int64] | None = None,
        pictures: Hold | None = None,
        shift: ContextShift | None = None,
        thinking: ThoughtRule | None = None,
    ) -> "Generation":
        """Start an answer to prompt_ids; nothing is computed before the first piece is asked for.

        Without params, those that the model recommends. `stop` adds strings (a chat template's turn marks) to params.stop.
        on_prefill(done, total) is called in tokens.
        continues: the text goes on from the prompt's, so a space at its beginning is part of it. speculate: drafts may be tried
        (speculate/), which never change the answer; pool: also from earlier answers of this engine. axes: positions of the prompt
        (KVCache.axes), where it has pictures and the model positions of three axes. pictures: what keeps the rows of pictures in
        prompt_ids. shift: drops the oldest of prompt and answer when the context is full (of a prompt without axes). thinking: how
        the answer may think (thinking/rule.py).
        Raises ValueError for an empty prompt, and for one that leaves no room in the context.
        """
        params, session = params or self.recommended(), session or self.session()
        session.cache.axes = axes
        shift = None if axes is not None else shift
        return Generation(
            session, prompt_ids, params, stop, on_prefill, continues, speculate, pool, pictures, shift, thinking
        )


class Session:
    """One KV cache and the ids in it. Made by Engine.session; runs one Generation at a time."""

    def __init__(self, engine: Engine, adapters: Mix | None = None) -> None:
        self.engine = engine
        self.cache: KVCache = engine.model.new_cache(engine.context, engine.kv_dtype, adapters)
        self.ids: list[int] = []

    def reuse(self, prompt_ids: Sequence[int]) -> int:
        """Cut the cache back to what it shares with prompt_ids (or a place before, of a recurrent state) and return that length.

        At least one prompt token is left to compute, because its logits are what the first choice is made from.
        """
        shared = self.cache.truncate(common(self.ids, prompt_ids[:-1]))
        del self.ids[shared:]
        return shared

    def feed(self, ids: Sequence[int], on_progress: Progress | None = None, need: Need | None = None) -> Logits:
        """Run ids through the model; logits [V] after the last, as far as needed. An interrupt leaves ids equal to the cache."""
        try:
            self.ids.extend(ids)
            return self.engine.model.forward(ids, self.cache, on_progress=on_progress, need=need)
        finally:
            del self.ids[self.cache.length :]

    def try_out(self, ids: Sequence[int], need: Need | None = None) -> Floats:
        """Run ids through the model; logits [T, V] after each, as far as needed. `cut` takes back what was wrong, not the first."""
        try:
            self.ids.extend(ids)
            drafts = len(ids) - 1
            logits = self.engine.model.forward(ids, self.cache, all_logits=drafts > 0, drafts=drafts, need=need)
            return logits.reshape(len(ids), -1)
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
        pool: bool,
        pictures: Hold | None = None,
        shift: ContextShift | None = None,
        thinking: ThoughtRule | None = None,
    ) -> None:
        engine = session.engine
        prompt_ids = prompt_ids if shift is None else shift.fit(prompt_ids, room=1)
        check_prompt(prompt_ids, engine)
        self._session = session
        self._prompt = list(prompt_ids)
        self._params = params
        self._answer = Answer(
            engine.tokenizer, engine.model.config.vocab_size, prompt_ids, params,
            stop=stop, continues=continues,
            capacity=session.cache.capacity if shift is None else None, thinking=thinking,
        )  # fmt: skip
        self._on_prefill = on_prefill
        self._pictures = pictures
        self._shift = shift
        self._answer.stats.dropped_tokens = shift.dropped if shift else 0
        self._continues = continues
        self._ids = list(prompt_ids)  # prompt and answer, without what left a full context
        self._speculator = None
        if speculate:
            owner = session.cache.adapters if pool else None
            self._speculator = engine.speculation.begin(prompt_ids, self._answer.sampler, owner, lambda: session.cache)
        self._guessed = False  # whether drafts are guesses, which may be wrong
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
        try:
            yield from self._steps()
        finally:
            if self._speculator:
                self._speculator.close(self._ids)

    def _steps(self) -> Generator[Piece, None, None]:
        session, answer, stats = self._session, self._answer, self._answer.stats
        begin = start = time.perf_counter()
        stats.cached_tokens = session.reuse(self._prompt)
        rows = session.feed(self._prompt[stats.cached_tokens :], self._on_prefill, answer.need())[None]
        ids = self._ids
        pieces: list[Piece | None] = []
        drafts: list[int] = []

        def say(logits: Logits) -> int | None:
            token = answer.choose(logits)
            if stats.ttft_s == 0:
                stats.ttft_s = time.perf_counter() - begin
            else:
                stats.decode_steps += 1
            ids.append(token)
            pieces.append(answer.take(token, logits))
            return None if answer.finish_reason else token

        while True:
            right = verify(rows, drafts, say)
            if drafts:
                if self._speculator and self._guessed:
                    self._speculator.learn(right)
                stats.drafted, stats.accepted = stats.drafted + len(drafts), stats.accepted + right
            session.cut(len(ids) - 1)
            stats.decode_s += time.perf_counter() - max(start, begin + stats.ttft_s)
            yield from filter(None, pieces)
            if answer.finish_reason:
                return
            start = time.perf_counter()
            pieces.clear()
            if self._shift is not None and len(ids) > session.cache.capacity:
                drafts, rows = [], self._drop_oldest(self._shift, ids)
                continue
            drafts = self._draft(ids)
            asked = time.perf_counter()
            rows = session.try_out([ids[-1], *drafts], answer.need(drafts))
            session.engine.speculation.costs.take(1 + len(drafts), time.perf_counter() - asked)

    def _drop_oldest(self, shift: ContextShift, ids: list[int]) -> Floats:
        """Make room in a full context, and compute what stays anew; logits [1, V] behind the last id."""
        before, ids[:] = list(ids), shift.fit(ids)
        self._answer.stats.dropped_tokens = shift.dropped
        if self._speculator:
            self._speculator = self._speculator.cut(before, ids)
        return self._session.feed(ids[self._session.reuse(ids) :], self._on_prefill)[None]

    def _draft(self, ids: list[int]) -> list[int]:
        left = self._params.max_tokens - self.stats.completion_tokens
        room = min(left, self._session.cache.capacity - len(ids)) - 1
        forced = list(self._answer.forced)[: max(0, room)]
        self._guessed = not forced
        if forced:
            return forced
        return self._speculator.propose(ids, room) if self._speculator and room > 0 else []


def check_prompt(prompt_ids: Sequence[int], engine: Engine) -> None:
    if not prompt_ids:
        raise ValueError("the prompt is empty: give at least one token")
    if max(prompt_ids) >= engine.model.config.vocab_size:
        engine.model.check_ids(np.asarray(prompt_ids, np.int64))
    if len(prompt_ids) >= engine.context:
        limit = engine.model.config.max_position_embeddings
        more = f" or take a wider one (--context, up to {limit})" if limit > engine.context else ""
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds {engine.context}, answer included: "
            f"shorten the prompt{more}"
        )

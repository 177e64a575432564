"""Guesses by a small model of the same vocabulary, and how sure it is of each.

    DraftModel      the small model with one text in its cache; what stands there of the last answer is kept for the next
    ModelDrafter    its guesses for one answer

It reads what was said since, guesses a token, reads its own guess, and so on; what was wrong is cut off its cache again. Where the
answer is drawn at random, the guess is drawn with the very numbers that the answer is going to be drawn with: two models that agree
about how likely tokens are then mostly draw the same one, more often than the likelier one's most likely token is drawn.

The small model reads a long text from near its end only, a part in each step, so that nobody waits for it: what it guesses need
not be right. One answer at a time has it. What it gives up: models with recurrent layers, whose state cannot be cut.
"""

import statistics
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import numpy as np

from gangpao.engine.cache import KVCache, common
from gangpao.engine.config import ModelConfig
from gangpao.engine.layers.kept import KVType
from gangpao.engine.sample import Logits, Need, Sampler
from gangpao.engine.speculate.drafters import CANDIDATES, Guess, Price, choose, graded
from gangpao.engine.transformer import Transformer
from gangpao.text.tokenizer import Tokenizer

WINDOW = 512  # tokens of a text that is new to it that it reads at most
READ = 64  # tokens that it reads in a step
NEW = 8  # tokens that it reads with its first guess; more are a text to catch up with
IDLE = 32  # times that others asked, after which one that has stopped guessing loses it
READ_SHARE = 0.3  # of a step, for a token of many: a first belief


def check_vocabulary(ours: Tokenizer, theirs: Tokenizer, name: str) -> None:
    """Raises ValueError naming the first difference where a token of a draft model is not the same token here."""
    mine, draft = ours.vocabulary, theirs.vocabulary
    for i, (a, b) in enumerate(zip(mine.pieces, draft.pieces, strict=False)):
        if a != b or mine.kinds[i] != draft.kinds[i]:
            what = f"{b!r:.40} there and {a!r:.40} here" if a != b else f"{a!r:.40}, of another kind there"
            raise ValueError(
                f"{name} cannot draft for this model: token {i} is {what}. A draft model needs the same vocabulary, token by token"
            )
    sizes = len(mine.pieces), len(draft.pieces)
    longer = mine if sizes[0] > sizes[1] else draft
    rest = [longer.pieces[i] for i in range(min(sizes), max(sizes)) if not _pads(longer.pieces[i])]
    if rest:
        raise ValueError(
            f"{name} cannot draft for this model: it has {sizes[1]:,} tokens and this model {sizes[0]:,}; one of those that only "
            f"one of them has is {rest[0]!r:.40}. A draft model needs the same vocabulary, token by token"
        )


def _pads(piece: str) -> bool:
    """Whether a piece only fills a table up to a round size."""
    return piece.upper().startswith(("[PAD", "<PAD", "<|PAD", "[UNUSED", "<UNUSED", "<|UNUSED", "<|DUMMY"))


def check_config(config: ModelConfig, name: str) -> None:
    """Raises ValueError for a model that cannot draft here."""
    if config.recurrent_layers:
        raise ValueError(
            f"{name} cannot draft: it has recurrent layers, whose state cannot be taken back token by token; take a draft model of "
            "attention layers only"
        )


class DraftModel:
    """A small model with one text in its cache. context: positions of it; share: of the large model's step that one of its own is
    likely to take, until it was measured."""

    def __init__(self, name: str, model: Transformer, context: int, kv_dtype: KVType, share: float) -> None:
        self.name = name
        self.model = model
        self._cache = model.new_cache(min(context, model.config.max_position_embeddings), kv_dtype)
        self._ids: list[int] = []  # in the cache
        self._begin = 0  # of them in the text
        self._share = share
        self._step_s: deque[float] = deque(maxlen=15)
        self._read_s: deque[float] = deque(maxlen=9)  # a token of many
        self._lock = threading.Lock()
        self._holder: weakref.ref[ModelDrafter] | None = None
        self._idle = 0
        self.guesses_made = 0  # ever

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights in memory."""
        return self.model.nbytes

    def take(self, drafter: "ModelDrafter") -> bool:
        """Whether that drafter has it now: it had it, nobody has, or whoever has it does not guess any more. put() gives it back
        for the moment."""
        if not self._lock.acquire(blocking=False):
            return False
        holder = self._holder and self._holder()
        self._idle = 0 if holder is drafter else self._idle + 1
        if holder not in (None, drafter) and self._idle <= IDLE:
            self._lock.release()
            return False
        if holder is not drafter:
            self._holder, self._idle = weakref.ref(drafter), 0
        return True

    def put(self) -> None:
        """Others may take it, in company with whom its holder still comes first."""
        self._lock.release()

    def leave(self, drafter: "ModelDrafter") -> None:
        """That drafter's answer is over."""
        if self._holder is not None and self._holder() is drafter:
            self._holder = None

    def drafter(self, sampler: Sampler, cache: Callable[[], KVCache | None]) -> "ModelDrafter":
        """What guesses for an answer; it has a cache of its own."""
        return ModelDrafter(self, sampler)

    def seconds(self, ids: Sequence[int], plain_s: float) -> Price:
        """plain_s: of a step of the large model."""
        step = statistics.median(self._step_s) if self._step_s else self._share * plain_s
        read = statistics.median(self._read_s) if self._read_s else READ_SHARE * step
        begin, known = self._place(ids) if ids else (0, 0)
        missing = len(ids) - begin - known
        return Price(missing * read if missing > NEW else 0.0, step, step)

    def read(self, ids: Sequence[int], need: Need | None = None) -> Logits | None:
        """Logits behind a text, as far as needed; None while more of it is to be read, or where it does not fit any more."""
        begin, known = self._place(ids)
        if known < len(self._ids):
            known = self._cache.truncate(known)
            del self._ids[known:]
        self._begin = begin
        missing = ids[begin + known :]
        if not missing or known + len(missing) + 1 > self._cache.capacity:
            return None
        logits = self._feed(missing[:READ], need)
        return logits if len(missing) <= READ else None

    def feed(self, token: int, need: Need | None = None) -> Logits | None:
        """Logits behind one more token; None where there is no room."""
        return self._feed([token], need) if self._cache.length + 1 < self._cache.capacity else None

    def _place(self, ids: Sequence[int]) -> tuple[int, int]:
        """Where in the text its cache begins, or is to begin, and how many tokens from there on are in it."""
        known = common(self._ids, ids[self._begin : -1]) if self._begin < len(ids) else 0
        behind = ids[self._begin + known :]
        strange = max((i for i, token in enumerate(behind) if token >= self.model.config.vocab_size), default=-1)
        if known and len(behind) <= WINDOW and strange < 0:
            return self._begin, known
        begin = 0 if len(ids) <= WINDOW else len(ids) - WINDOW // 2
        last = max((i for i in range(begin, len(ids)) if ids[i] >= self.model.config.vocab_size), default=-1)
        begin = max(begin, last + 1)  # behind the last picture
        return begin, common(self._ids, ids[begin:-1]) if begin == self._begin else 0

    def _feed(self, ids: Sequence[int], need: Need | None) -> Logits:
        start = time.perf_counter()
        try:
            self._ids.extend(ids)
            logits = self.model.forward(ids, self._cache, need=need)
        finally:
            del self._ids[self._cache.length :]
        seconds = time.perf_counter() - start
        if len(ids) == 1:
            self._step_s.append(seconds)
        elif len(ids) > NEW:
            self._read_s.append(seconds / len(ids))
        return logits


class ModelDrafter:
    """Guesses of a draft model for one answer. sampler: what the answer's tokens are chosen by. plain_s: StepCosts' own."""

    name = "model"
    most = 1_000  # whoever asks has a bound of its own

    def __init__(self, model: DraftModel, sampler: Sampler) -> None:
        self._model = model
        self._sampler = sampler
        self._vocab_size = sampler.vocab_size
        self.plain_s = 0.0  # whoever asks keeps it up to date

    def seconds(self, ids: Sequence[int]) -> Price:
        return self._model.seconds(ids, self.plain_s)

    def guesses(self, ids: Sequence[int]) -> Generator[Guess, None, None]:
        if not self._model.take(self):
            return
        try:
            ahead = self._sampler.copy()
            logits = self._model.read(ids, self._need(ahead))
            while logits is not None:
                token, sure = choose(ahead, self._fitted(logits), f"the draft model {self._model.name}")
                self._model.guesses_made += 1
                yield Guess(token, f"{self.name} {graded(sure)}")
                known = token < self._model.model.config.vocab_size
                logits = self._model.feed(token, self._need(ahead)) if known else None
        finally:
            self._model.put()

    def close(self, ids: Sequence[int]) -> None:
        self._model.leave(self)

    def _need(self, ahead: Sampler) -> Need | None:
        """What the choice has to know: of a model with other tokens everything, because some are left out."""
        need = ahead.need() if self._model.model.config.vocab_size == self._vocab_size else None
        return need and replace(need, count=max(need.count, CANDIDATES))

    def _fitted(self, logits: Logits) -> Logits:
        """As many logits as the large model has tokens."""
        if len(logits) >= self._vocab_size:
            return logits[: self._vocab_size]
        out = np.full(self._vocab_size, -np.inf, np.float32)
        out[: len(logits)] = logits
        return out

"""A transformer, tokenizer and template small enough to reason about, with the interfaces of the real ones.

The logits depend on every id in the cache, so a wrong prefix shows up as different text.
"""

import codecs
import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from gangpao.engine.generate import Engine
from gangpao.engine.sample import Need, largest
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.thoughts import Marks

BOS, END, USER, AI = 256, 257, 258, 259
VOCAB = 260


class FakeCache:
    adapters = ()

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return self.capacity

    def truncate(self, n: int) -> int:
        assert 0 <= n <= len(self.ids)
        del self.ids[n:]
        return n


class FakeTransformer:
    """next_id(ids so far) -> the id with the highest logit; without it, logits are noise seeded by all ids so far.

    `computed` counts tokens run; interrupt_at = n raises KeyboardInterrupt when that many have been run.
    """

    chunk = 8

    def __init__(self, next_id: Callable[[list[int]], int] | None = None, context: int = 512) -> None:
        self.config = SimpleNamespace(
            vocab_size=VOCAB, max_position_embeddings=context, num_hidden_layers=2, num_key_value_heads=1, head_dim=8,
            hidden_size=16, num_attention_heads=2, architecture="llama",
        )  # fmt: skip
        self.next_id = next_id
        self.computed = 0
        self.interrupt_at: int | None = None
        self.nbytes = 1000
        self.bytes_per_token = 1000

    def new_cache(self, capacity: int, dtype: str, adapters: object = None) -> FakeCache:
        assert dtype in ("f16", "int8")
        return FakeCache(capacity)

    def forward(
        self, ids: Sequence[int], cache: FakeCache, *, all_logits=False, drafts=0, on_progress=None, need=None
    ) -> np.ndarray:
        if all_logits:
            return np.stack([self.forward([i], cache, need=need) for i in ids])
        assert cache.length + len(ids) <= cache.capacity
        for done in range(0, len(ids), self.chunk):
            piece = list(ids[done : done + self.chunk])
            if self.interrupt_at is not None and self.computed >= self.interrupt_at:
                raise KeyboardInterrupt
            cache.ids.extend(piece)
            self.computed += len(piece)
            if on_progress:
                on_progress(done + len(piece), len(ids))
        seed = zlib.crc32(np.array(cache.ids, np.int32).tobytes())
        logits = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
        if self.next_id:
            logits[self.next_id(cache.ids)] = 50.0
        return logits if need is None else self.needed(logits, need)

    @staticmethod
    def needed(logits: np.ndarray, need: Need) -> np.ndarray:
        """As few logits as may come: none that is not needed."""
        others = logits.copy()
        others[need.known] = -np.inf
        kept = np.concatenate([need.known, largest(others, need.count)])
        out = np.full_like(logits, -np.inf)
        out[kept] = logits[kept]
        return out


class FakeTokenizer:
    """One token a byte, so that every Chinese character spans three tokens."""

    bos_id = BOS
    adds_bos = False
    end_ids = frozenset({END})
    chat_template = None

    def encode(self, text: str, *, add_bos: bool = False, parse_special: bool = False, start: bool = True) -> list[int]:
        return ([BOS] if add_bos else []) + list(text.encode())

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def stream(self, *, start: bool = True) -> "FakeStream":
        return FakeStream()


class FakeStream:
    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self.decoder.decode(bytes([token]) if token < 256 else b"")

    @property
    def whole(self) -> bool:
        return not self.decoder.getstate()[0]

    def flush(self) -> str:
        return self.decoder.decode(b"", final=True)


class FakeTemplate:
    stop: tuple[str, ...] = ()
    source: str | None = None
    special: tuple[tuple[str, str], ...] = ()
    thoughts: Marks | None = None
    closing = ChatTemplate.closing

    def encode(
        self, tokenizer: FakeTokenizer, messages, add_generation_prompt: bool = True, variables=None
    ) -> list[int]:
        ids = [BOS]
        for message in messages:
            ids += [{"user": USER, "assistant": AI}.get(message["role"], BOS), *message["content"].encode(), END]
        return [*ids, AI] if add_generation_prompt else ids

    splitter = ChatTemplate.splitter


def says(*replies: str, end: bool = True) -> Callable[[list[int]], int]:
    """Continue the n-th AI turn with the n-th reply, then the end token (or the last byte for ever)."""

    def next_id(ids: list[int]) -> int:
        if AI not in ids:
            return replies[0].encode()[0]
        turn = ids.count(AI) - 1
        start = len(ids) - ids[::-1].index(AI)
        reply = replies[turn % len(replies)].encode()
        said = len(ids) - start
        if said < len(reply):
            return reply[said]
        return END if end else reply[-1]

    return next_id


def fake_engine(*replies: str, context: int = 512, end: bool = True) -> Engine:
    model = FakeTransformer(says(*replies, end=end) if replies else None, context)
    return Engine("fake", model, FakeTokenizer(), FakeTemplate(), context)

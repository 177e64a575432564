"""The forward pass, top to bottom: nine kernel calls a layer.

Tokens go in, logits come out, and the cache grows. The work buffers belong to the model and the kernels' threads to the
process, so one step runs at a time; all that a sequence is lives in its `KVCache`. A step may hold tokens of many sequences;
long prompts go through in chunks. A position's result does not depend on how the prompt was cut, on what was cached before,
on the sequences beside it, or on the number of threads: every path gives the same bits.

The same model exists in torch for training; a parity test keeps the two equal.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine import exact
from gangpao.engine.adapters import Adapters, LayerTables
from gangpao.engine.cache import KVCache, KVPool, KVType
from gangpao.engine.config import Mix, ModelConfig
from gangpao.engine.rope import Angles, inverse_frequencies
from gangpao.engine.sample import TokenLogprob, logprobs_of
from gangpao.engine.weights import Embedding, Layer, Weights, load_weights, weights_by_layer
from gangpao.formats.adapters import Adapter
from gangpao.formats.gguf import GGUF

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
Embed = Callable[[npt.NDArray[np.int64]], Floats]  # ids [T] to their vectors [T, D]

CHUNK = 256  # tokens of prefill at once: enough to use a weight often, few enough for the activations to stay in L2
_ONE_AT_A_TIME = threading.Lock()  # the kernels' threads are one set a process
LOGIT_ROWS = 16  # rows of logits at once when all are asked for: 100,000 floats each


@dataclass(slots=True)
class Segment:
    """Ids to append to a cache in a step, and after how many of the last of them logits are wanted; or hidden states of all.

    scored: places in ids, and the token behind each whose log-probability is wanted; the step puts one entry for each, with so
    many alternatives, into scores.
    """

    cache: KVCache
    ids: Sequence[int] | npt.NDArray[np.int64]
    logits: int = 0
    hidden: bool = False
    scored: Sequence[tuple[int, int]] = ()
    alternatives: int = 0
    scores: list[TokenLogprob] = field(default_factory=list)


class _Buffers:
    """Work space for one chunk. Pages are touched only as far as tokens need them. floats: kept of all inputs, for adapters."""

    def __init__(self, c: ModelConfig, w: Weights, *, floats: bool = False) -> None:
        q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim

        self.hidden = kernels.Array(CHUNK, c.hidden_size)
        self.qkv = kernels.Array(CHUNK, q_rows + 2 * kv_rows)
        self.gate_up = kernels.Array(CHUNK, 2 * c.intermediate_size)
        self.attended = kernels.Array(CHUNK, q_rows)
        self.cos = kernels.Array(CHUNK, max(1, c.rope_dim // 2))
        self.sin = kernels.Array(CHUNK, max(1, c.rope_dim // 2))
        self.normed = kernels.Activation(
            CHUNK, c.hidden_size, [x for y in w.layers for x in (y.qkv, y.gate_up)], floats
        )
        self.heads = kernels.Activation(CHUNK, q_rows, [y.o for y in w.layers], floats)
        self.gated = kernels.Activation(CHUNK, c.intermediate_size, [y.down for y in w.layers], floats)
        self.final = kernels.Array(LOGIT_ROWS, c.hidden_size)
        self.final_normed = kernels.Activation(LOGIT_ROWS, c.hidden_size, [w.head], floats)
        self.logits = kernels.Array(LOGIT_ROWS, c.vocab_size)
        self.hidden_view, self.final_view, self.logits_view = (
            x.numpy() for x in (self.hidden, self.final, self.logits)
        )
        self.rows = kernels.Rows()
        self.runs, self.head_runs = kernels.AdapterRuns(), kernels.AdapterRuns()
        self.mixes: list[Mix] = []  # of every row
        self.cos_view, self.sin_view = self.cos.numpy(), self.sin.numpy()


class Transformer:
    """A model ready to run. `bytes_per_token` is what one decode step reads of the weights.

    adapters: those that are loaded beside it (`add_adapter`), A and B in float32 if asked for, else in int8.
    """

    def __init__(self, config: ModelConfig, weights: Weights, embed: Embed, *, float32: bool = False) -> None:
        self.config = config
        self.weights = weights
        self.embed = embed
        self.adapters = Adapters(config, weights, float32=float32)
        self._buffers = _Buffers(config, weights)

    @classmethod
    def load(cls, gguf: GGUF, *, progress: Progress | None = None, float32: bool = False) -> Transformer:
        """Packs the weights of an open file, which must stay open: embeddings are read from it.

        progress(done_bytes, total_bytes). float32: see load_weights. Raises ModelFileError for what we cannot run.
        """
        config = ModelConfig.from_gguf(gguf)
        return cls(
            config, load_weights(gguf, config, progress, float32=float32), Embedding(gguf, config), float32=float32
        )

    def add_adapter(self, name: str, adapter: Adapter, scale: float = 1.0) -> None:
        """Load an adapter beside the model. Raises ValueError for one of another base, and for what is not computed here."""
        with _ONE_AT_A_TIME:
            self.adapters.add(name, adapter, scale)
            if len(self.adapters) == 1:
                self._buffers = _Buffers(self.config, self.weights, floats=True)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights in memory."""
        return self.weights.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decode step reads, those of the adapters in use among them."""
        return self.weights.nbytes + self.adapters.bytes_of_mix(self.adapters.chosen)

    def new_pool(self, context: int, dtype: KVType = "f16", tokens: int = 0) -> KVPool:
        """Memory for sequences of at most `context` positions, `tokens` positions (at least one context) in all."""
        inverse, factor = inverse_frequencies(self.config, context=context, factors=self.weights.rope_factors)
        return KVPool(self.config, context, dtype, tokens, Angles(inverse, factor), self.adapters.chosen)

    def new_cache(self, capacity: int, dtype: KVType = "f16", adapters: Mix | None = None) -> KVCache:
        """An empty sequence in a pool of its own, for `capacity` positions. adapters: None is `adapters.chosen`."""
        return self.new_pool(capacity, dtype).new(adapters)

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        all_logits: bool = False,
        on_progress: Progress | None = None,
    ) -> Floats:
        """Appends `ids` to the cache. Returns logits after the last id [V], or after every id [T, V].

        on_progress(done_tokens, total_tokens) runs between chunks; an exception from it leaves the cache consistent: it
        holds exactly the chunks that were done. Raises ValueError for ids outside the vocabulary or a full cache.
        """
        tokens = self._checked(ids, cache)
        collected: list[Floats] = []
        for begin in range(0, len(tokens), CHUNK):
            chunk = tokens[begin : begin + CHUNK]
            last = begin + len(chunk) == len(tokens)
            collected += self.step([Segment(cache, chunk, len(chunk) if all_logits else int(last))])
            if on_progress:
                on_progress(begin + len(chunk), len(tokens))
        return np.concatenate(collected) if all_logits else collected[-1][0]

    def step(self, segments: Sequence[Segment]) -> list[Floats]:
        """One pass over the weights for sequences of one pool, at most CHUNK ids in all; every cache grows by its ids.

        Returns for each segment the logits [logits, V] after its last ids, or with `hidden` their last hidden states
        (normalised) [T, D]. A segment's result has the same bits whatever runs beside it. The caller has reserved room.
        """
        # Rows with the same adapters are computed together; sequences with the same beginning next to one another share what
        # attention loads of it.
        order = sorted(range(len(segments)), key=lambda i: (segments[i].cache.adapters, segments[i].cache.pages))
        out: list[Floats] = [np.empty((0, self.config.vocab_size), np.float32)] * len(segments)
        with _ONE_AT_A_TIME:
            self._run_layers([segments[i] for i in order])
            end, wanted, scored = 0, [], []
            for i in order:
                segment, begin = segments[i], end
                end += len(segment.ids)
                if segment.hidden:
                    out[i] = self._final_states(begin, end)
                wanted += [(i, row) for row in range(end - segment.logits, end)]
                scored += [(segment, begin + place, token) for place, token in segment.scored]
                segment.cache.length += len(segment.ids)
            self._score(scored)
            rows = self._logits([row for _, row in wanted])
        for i, group in itertools.groupby(range(len(wanted)), key=lambda at: wanted[at][0]):
            found = list(group)
            out[i] = rows[found[0] : found[-1] + 1]
        return out

    def _checked(self, ids: Sequence[int], cache: KVCache) -> npt.NDArray[np.int64]:
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError("forward needs at least one token id")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"token id {low if low < 0 else high} is outside the vocabulary of {self.config.vocab_size}"
            )
        if not cache.reserve(len(tokens)):
            raise ValueError(
                f"{cache.length} cached and {len(tokens)} new tokens do not fit into a context of {cache.capacity}; "
                "shorten the prompt, or load the model with a larger one (--context)"
            )
        return tokens

    def _run_layers(self, segments: Sequence[Segment]) -> None:
        b, pool = self._buffers, segments[0].cache.pool
        ids = np.concatenate([np.asarray(s.ids, np.int64) for s in segments])
        n = len(ids)
        assert 0 < n <= CHUNK, n
        assert all(s.cache.pool is pool for s in segments)
        b.rows.clear()
        for s in segments:
            b.rows.add(s.cache.pages, s.cache.length, len(s.ids))
        b.mixes = [s.cache.adapters for s in segments for _ in s.ids]
        _put_runs(b.runs, b.mixes)
        positions = np.concatenate([np.arange(s.cache.length, s.cache.length + len(s.ids)) for s in segments])
        b.hidden_view[:n] = self.embed(ids)
        pool.angles.take(positions, b.cos_view[:n], b.sin_view[:n])
        for i, (layer, more) in enumerate(zip(self.weights.layers, self.adapters.layers, strict=True)):
            self._layer(layer, more, i, n, pool.native)

    def _layer(self, layer: Layer, more: LayerTables, i: int, n: int, cache: kernels.Cache) -> None:
        """hidden += attention(norm(hidden)); hidden += ffn(norm(hidden)); both times residual_scale. more: of the adapters."""
        b, eps, scale = self._buffers, self.config.rms_norm_eps, self.config.residual_scale
        kernels.rmsnorm(b.hidden, n, layer.attn_norm, eps, b.normed)
        kernels.linear(layer.qkv, b.normed, b.qkv, False, 1.0, more.qkv, b.runs)
        kernels.rope_append(b.qkv, b.rows, layer.attention, b.cos, b.sin, cache, i)
        kernels.attend(b.qkv, b.rows, layer.attention, cache, i, b.attended, b.heads)
        kernels.linear(layer.o, b.heads, b.hidden, True, scale, more.o, b.runs)
        kernels.rmsnorm(b.hidden, n, layer.ffn_norm, eps, b.normed)
        kernels.linear(layer.gate_up, b.normed, b.gate_up, False, 1.0, more.gate_up, b.runs)
        kernels.swiglu(b.gate_up, n, b.gated)
        kernels.linear(layer.down, b.gated, b.hidden, True, scale, more.down, b.runs)

    def _logits(self, rows: Sequence[int]) -> Floats:
        """Logits [len(rows), V] of these rows of the hidden states in the buffer."""
        out = np.empty((len(rows), self.config.vocab_size), np.float32)
        for begin in range(0, len(rows), LOGIT_ROWS):
            part = rows[begin : begin + LOGIT_ROWS]
            out[begin : begin + len(part)] = self._head(part)
        return out

    def _head(self, rows: Sequence[int]) -> Floats:
        """The same for at most LOGIT_ROWS, in the buffer."""
        b = self._buffers
        b.final_view[: len(rows)] = b.hidden_view[rows]
        kernels.rmsnorm(b.final, len(rows), self.weights.final_norm, self.config.rms_norm_eps, b.final_normed)
        _put_runs(b.head_runs, [b.mixes[row] for row in rows] if self.adapters.on_head else ())
        kernels.linear(self.weights.head, b.final_normed, b.logits, False, 1.0, self.adapters.head, b.head_runs)
        return b.logits_view[: len(rows)]

    def _score(self, wanted: Sequence[tuple[Segment, int, int]]) -> None:
        """Log-probabilities of tokens after rows of the buffer, to their segments; logits of LOGIT_ROWS are in memory at once."""
        by_row = [(row, list(group)) for row, group in itertools.groupby(wanted, key=lambda at: at[1])]
        for begin in range(0, len(by_row), LOGIT_ROWS):
            part = by_row[begin : begin + LOGIT_ROWS]
            rows = self._head([row for row, _ in part])
            norms = exact.log_sum_exps(self._buffers.logits, len(part))
            for (_, group), logits, norm in zip(part, rows, norms, strict=True):
                for segment, _, token in group:
                    segment.scores.append(logprobs_of(logits, token, segment.alternatives, norm))

    def _final_states(self, begin: int, end: int) -> Floats:
        """Hidden states [end - begin, D] after the last norm, of rows of the buffer."""
        states = self._buffers.hidden_view[begin:end]
        scale = np.sqrt(np.mean(np.square(states), axis=1, keepdims=True) + self.config.rms_norm_eps)
        out: Floats = states / scale * self.weights.final_norm.numpy()
        return out


def forward_by_layer(gguf: GGUF, ids: Sequence[int]) -> Generator[Floats, Floats | None, None]:
    """The forward pass of a whole model in the memory of one layer: hidden states [T, D] behind each, then logits [T, V].

    At most CHUNK ids; the same bits as `forward`. States that are sent go on in place of its own. For checking a file: every
    layer is packed for this one pass, on one thread, so that nobody waits for a core that works for the other side.
    """
    config = ModelConfig.from_gguf(gguf)
    inputs = np.asarray(ids, np.int64)
    hidden = Embedding(gguf, config)(inputs)
    threads = kernels.num_threads()
    kernels.set_num_threads(1)
    try:
        for weights in weights_by_layer(gguf, config):
            model = Transformer(replace(config, num_hidden_layers=1), weights, partial(_given, hidden))
            cache = model.new_cache(len(inputs))
            assert cache.reserve(len(inputs))
            model.step([Segment(cache, inputs)])
            hidden = model._buffers.hidden_view[: len(inputs)].copy()
            if (sent := (yield hidden)) is not None:
                model._buffers.hidden_view[: len(inputs)] = hidden = sent
        yield model._logits(range(len(inputs)))
    finally:
        kernels.set_num_threads(threads)


def _put_runs(runs: kernels.AdapterRuns, mixes: Sequence[Mix]) -> None:
    """Which rows use which adapters, by the mix of each row."""
    runs.clear()
    end = 0
    for mix, rows in itertools.groupby(mixes):
        begin, end = end, end + sum(1 for _ in rows)
        for number, scale in mix:
            runs.add(number, begin, end, scale)


def _given(states: Floats, _: npt.NDArray[np.int64]) -> Floats:
    """An embedding for ids whose states are there already."""
    return states


def greedy(model: Transformer, ids: Sequence[int], steps: int, cache: KVCache | None = None) -> list[int]:
    """The `steps` most likely ids one after the other; what benchmarks and tests need of generation."""
    cache = cache or model.new_cache(len(ids) + steps)
    logits = model.forward(ids, cache)
    out: list[int] = []
    for _ in itertools.repeat(None, steps):
        out.append(int(np.argmax(logits)))
        logits = model.forward(out[-1:], cache)
    return out

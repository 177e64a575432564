"""The forward pass, top to bottom: nine kernel calls a layer (eight with Gated DeltaNet), four for each expert of a step.

Tokens go in, logits come out, and the cache grows. The work buffers belong to the model and the kernels' threads to the
process, so one step runs at a time; all that a sequence is lives in its `KVCache`. A step may hold tokens of many sequences;
long prompts go through in chunks. A position's result does not depend on how the prompt was cut, on what was cached before,
on the sequences beside it, or on the number of threads: every path gives the same bits.

The same model exists in torch for training; a parity test keeps the two equal.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine import exact
from gangpao.engine.adapters import Adapters, LayerTables
from gangpao.engine.cache import KVCache, KVPool
from gangpao.engine.config import Mix, ModelConfig
from gangpao.engine.head.output import LOGIT_ROWS, Output, put_runs
from gangpao.engine.layers.attention import Attention, LatentAttention, LatentBuffers
from gangpao.engine.layers.beside import StateReader
from gangpao.engine.layers.gated_delta import DeltaBuffers, GatedDelta
from gangpao.engine.layers.kept import KVType
from gangpao.engine.packed.store import PackedStore
from gangpao.engine.pictures.rows import RowTable
from gangpao.engine.rope import Angles, inverse_frequencies, plain_frequencies
from gangpao.engine.sample import GREEDY, Need, TokenLogprob, logprobs_of
from gangpao.engine.weights import Embedding, Layer, Weights, load_weights, weights_by_layer
from gangpao.formats.adapters import Adapter
from gangpao.formats.gguf import GGUF

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
Embed = Callable[[npt.NDArray[np.int64]], Floats]  # ids [T] to their vectors [T, D]

CHUNK = 256  # tokens of prefill at once: enough to use a weight often, few enough for the activations to stay in L2
ONE_AT_A_TIME = threading.Lock()  # the kernels' threads are one set a process


@dataclass(slots=True)
class Segment:
    """Ids to append to a cache in a step, and after how many of the last of them logits are wanted; or hidden states of all.

    drafts: how many of the last ids may be taken back, which recurrent layers have to know before they read them.
    need: what has to be known of the logits, None: everything.
    scored: places in ids, and the token behind each whose log-probability is wanted; the step puts one entry for each, with so
    many alternatives, into scores, None for the row of a picture.
    """

    cache: KVCache
    ids: Sequence[int] | npt.NDArray[np.int64]
    logits: int = 0
    hidden: bool = False
    scored: Sequence[tuple[int, int]] = ()
    alternatives: int = 0
    drafts: int = 0
    need: Need | None = None
    scores: list[TokenLogprob | None] = field(default_factory=list)


class _Buffers:
    """Work space for one chunk. Pages are touched only as far as tokens need them. floats: kept of all inputs, for adapters."""

    def __init__(self, c: ModelConfig, w: Weights, *, floats: bool = False) -> None:
        q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim

        attention = [y.mixer for y in w.layers if isinstance(y.mixer, Attention)]
        recurrent = [y.mixer for y in w.layers if isinstance(y.mixer, GatedDelta)]
        self.hidden = kernels.Array(CHUNK, c.hidden_size)
        self.qkv = kernels.Array(CHUNK, q_rows * (1 + c.row.parts.attention_gate) + 2 * kv_rows)
        self.gate_up = kernels.Array(CHUNK, 2 * c.intermediate_size)
        self.attended = kernels.Array(CHUNK, q_rows)
        self.cos = kernels.Array(CHUNK, max(1, c.rope_dim // 2))
        self.sin = kernels.Array(CHUNK, max(1, c.rope_dim // 2))
        self.normed = kernels.Activation(CHUNK, c.hidden_size, [x for y in w.layers for x in _inputs(y)], floats)
        self.heads = kernels.Activation(CHUNK, q_rows, [y.o for y in attention], floats)
        latent = [y.mixer for y in w.layers if isinstance(y.mixer, LatentAttention)]
        head = c.num_attention_heads, c.head_dim, c.rope_dim
        self.latent = LatentBuffers(CHUNK, head, c.latent, latent, floats=floats) if c.latent else None
        self.delta = DeltaBuffers(CHUNK, c.delta, recurrent, floats=floats) if c.delta else None
        self.gated = kernels.Activation(
            CHUNK, c.intermediate_size, [mlp.down for y in w.layers for mlp in y.mlps], floats
        )
        self.experts = _ExpertBuffers(c, w, floats=floats) if c.num_experts else None
        self.hidden_view = self.hidden.numpy()
        self.branch = kernels.Array(CHUNK, c.hidden_size) if c.row.parts.post_norms else None
        self.local_cos, self.local_sin = kernels.Array(CHUNK, self.cos.cols), kernels.Array(CHUNK, self.cos.cols)
        self.local_views = self.local_cos.numpy(), self.local_sin.numpy()
        self.rows, self.states = kernels.Rows(), kernels.StateRows()
        self.segments: Sequence[Segment] = ()
        self.runs = kernels.AdapterRuns()
        self.mixes: list[Mix] = []  # of every row
        self.cos_view, self.sin_view = self.cos.numpy(), self.sin.numpy()


class _ExpertBuffers:
    """Work space for the tokens of one expert, and for what the experts of all tokens come to."""

    def __init__(self, c: ModelConfig, w: Weights, *, floats: bool = False) -> None:
        self.routed = kernels.Array(CHUNK, c.num_experts)
        self.hidden, self.out = kernels.Array(CHUNK, c.hidden_size), kernels.Array(CHUNK, c.hidden_size)
        readers = [mlp.gate_up for y in w.layers for mlp in y.mlps]
        self.normed = kernels.Activation(CHUNK, c.hidden_size, readers, floats)
        self.total = np.empty((CHUNK, c.hidden_size), np.float32)
        self.routed_view, self.hidden_view, self.out_view = (x.numpy() for x in (self.routed, self.hidden, self.out))


def _by_expert(
    chosen: npt.NDArray[np.int64], weights: Floats
) -> Iterator[tuple[int, npt.NDArray[np.int64] | slice, Floats]]:
    """Each expert that is chosen, in rising order, its tokens, and its weights for them [count, 1]. chosen, weights: [N, k]."""
    if len(chosen) == 1:  # the same, without the searching
        for rank in np.argsort(chosen[0]):
            yield int(chosen[0, rank]), slice(0, 1), weights[:, rank : rank + 1]
        return
    for number in np.unique(chosen).tolist():
        tokens, ranks = np.nonzero(chosen == number)
        yield number, tokens, weights[tokens, ranks, None]


def _inputs(layer: Layer) -> list[kernels.Linear]:
    """All that reads the normed hidden states of a layer."""
    m = layer.mixer
    first = m.qkv if isinstance(m, Attention) else m.down if isinstance(m, LatentAttention) else m.into
    return [first, *(mlp.gate_up for mlp in layer.mlps)] + ([layer.router] if layer.router else [])


class Transformer:
    """A model ready to run. `bytes_per_token` is what one decode step reads of the weights.

    adapters: those that are loaded beside it (`add_adapter`), A and B in float32 if asked for, else in int8. rows: those of
    pictures, whose ids stand behind the vocabulary; None where the model does not see. reader: what reads its hidden states (a
    draft head), in pools that are made from then on. sparse: positions that a token of a pool
    made from now on looks at in long contexts (layers/sparse.py); 0: all.
    """

    def __init__(self, config: ModelConfig, weights: Weights, embed: Embed, *, float32: bool = False) -> None:
        self.config = config
        self.weights = weights
        self.embed = embed
        self.rows: RowTable | None = None
        self.reader: StateReader | None = None
        self.sparse = 0
        self.adapters = Adapters(config, weights, float32=float32)
        self._gate = kernels.geglu if config.row.parts.gelu else kernels.swiglu
        self._buffers = _Buffers(config, weights)
        self._output = Output(config, weights)

    @classmethod
    def load(
        cls, gguf: GGUF, *, progress: Progress | None = None, float32: bool = False, store: PackedStore | None = None
    ) -> Transformer:
        """Packs the weights of an open file, which must stay open: embeddings are read from it.

        progress(done_bytes, total_bytes). float32, store: see load_weights. Raises ModelFileError for what we cannot run.
        """
        config = ModelConfig.from_gguf(gguf)
        weights = load_weights(gguf, config, progress, float32=float32, store=store)
        return cls(config, weights, Embedding(gguf, config), float32=float32)

    def add_adapter(self, name: str, adapter: Adapter, scale: float = 1.0) -> None:
        """Load an adapter beside the model. Raises ValueError for one of another base, and for what is not computed here."""
        with ONE_AT_A_TIME:
            self.adapters.add(name, adapter, scale)
            if len(self.adapters) == 1:
                self._buffers = _Buffers(self.config, self.weights, floats=True)
                self._output = Output(self.config, self.weights, floats=True)
            self._output.table = self.adapters.head

    def replace_adapter(self, name: str, adapter: Adapter) -> None:
        """Put another version of a loaded adapter in its place; make new pools for what comes. Raises ValueError as add_adapter."""
        with ONE_AT_A_TIME:
            self.adapters.replace(name, adapter)
            self._output.table = self.adapters.head

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights in memory."""
        return self.weights.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that a decode step of one sequence reads: of experts the chosen ones, the adapters in use, and of a head
        that is searched what the last steps took of it."""
        used = self.weights.nbytes - self.weights.idle_nbytes - self._output.spared
        return used + self.adapters.bytes_of_mix(self.adapters.chosen)

    def new_pool(self, context: int, dtype: KVType = "f16", tokens: int = 0) -> KVPool:
        """Memory for sequences of at most `context` positions, `tokens` positions (at least one context) in all."""
        inverse, factor = inverse_frequencies(self.config, context=context, factors=self.weights.rope_factors)
        angles = Angles(inverse, factor, self.config.rope_sections)
        pool = KVPool(self.config, context, dtype, tokens, angles, self.adapters.chosen, self.sparse)
        if self.config.window:
            pool.local_angles = Angles(plain_frequencies(self.config.local_theta, self.config.rope_dim // 2), 1.0)
        if self.reader is not None:
            pool.beside = self.reader.new_beside(pool.pages, context, dtype)
        return pool

    def new_cache(self, capacity: int, dtype: KVType = "f16", adapters: Mix | None = None) -> KVCache:
        """An empty sequence in a pool of its own, for `capacity` positions. adapters: None is `adapters.chosen`."""
        return self.new_pool(capacity, dtype).new(adapters)

    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        all_logits: bool = False,
        drafts: int = 0,
        on_progress: Progress | None = None,
        need: Need | None = None,
    ) -> Floats:
        """Appends `ids` to the cache. Returns logits after the last id [V], or after every id [T, V].

        drafts: how many of the last ids may be taken back, at most CHUNK - 1. need: see Segment.
        on_progress(done_tokens, total_tokens) runs between chunks; an exception from it leaves the cache consistent: it
        holds exactly the chunks that were done. Raises ValueError for ids outside the vocabulary or a full cache.
        """
        tokens = self._checked(ids, cache)
        collected: list[Floats] = []
        for begin in range(0, len(tokens), CHUNK):
            chunk = tokens[begin : begin + CHUNK]
            last = begin + len(chunk) == len(tokens)
            wanted = len(chunk) if all_logits else int(last)
            collected += self.step([Segment(cache, chunk, wanted, drafts=drafts if last else 0, need=need)])
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
        with ONE_AT_A_TIME:
            self._run_layers([segments[i] for i in order])
            end, wanted, scored = 0, [], []
            for i in order:
                segment, begin = segments[i], end
                end += len(segment.ids)
                if segment.hidden:
                    out[i] = self._final_states(begin, end)
                wanted += [(i, row) for row in range(end - segment.logits, end)]
                segment.scores += [None] * len(segment.scored)
                scored += [(segment, at, begin + place, token) for at, (place, token) in enumerate(segment.scored)]
                segment.cache.advance(len(segment.ids), segment.drafts)
            self._score(scored)
            needs = [segments[i].need for i, _ in wanted]
            rows = self._output.logits(
                self._buffers.hidden_view, [row for _, row in wanted], needs, self._buffers.mixes
            )
        for i, group in itertools.groupby(range(len(wanted)), key=lambda at: wanted[at][0]):
            found = list(group)
            out[i] = rows[found[0] : found[-1] + 1]
        return out

    def _checked(self, ids: Sequence[int], cache: KVCache) -> npt.NDArray[np.int64]:
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError("forward needs at least one token id")
        self.check_ids(tokens)
        if not cache.reserve(len(tokens)):
            raise ValueError(
                f"{cache.length} cached and {len(tokens)} new tokens do not fit into a context of {cache.capacity}; "
                "shorten the prompt, or load the model with a larger one (--context)"
            )
        return tokens

    def check_ids(self, ids: npt.NDArray[np.int64]) -> None:
        """Raises ValueError for an id that is no token and no row of a picture that is there."""
        low, high = int(ids.min()), int(ids.max())
        wrong = low if low < 0 else None
        if wrong is None and high >= self.config.vocab_size:
            behind = ids[ids >= self.config.vocab_size]
            wrong = high if self.rows is None else self.rows.missing(behind)
        if wrong is not None:
            raise ValueError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}")

    def _embedded(self, ids: npt.NDArray[np.int64]) -> Floats:
        """What the first layer gets [T, D]: embeddings of tokens, and rows of pictures as they are."""
        if self.rows is None or not (behind := ids >= self.config.vocab_size).any():
            return self.embed(ids)
        out = np.empty((len(ids), self.config.hidden_size), np.float32)
        if not behind.all():
            out[~behind] = self.embed(ids[~behind])
        out[behind] = self.rows.take(ids[behind])
        return out

    def _run_layers(self, segments: Sequence[Segment]) -> None:
        b, pool = self._buffers, segments[0].cache.pool
        ids = np.concatenate([np.asarray(s.ids, np.int64) for s in segments])
        n = len(ids)
        assert 0 < n <= CHUNK, n
        assert all(s.cache.pool is pool for s in segments)
        b.rows.clear()
        b.states.clear()
        b.segments, begin = segments, 0
        for s in segments:
            b.rows.add(s.cache.pages, s.cache.length, len(s.ids))
            if s.cache.state is not None:
                s.cache.state.plan(b.states, begin, len(s.ids), s.drafts)
            begin += len(s.ids)
        b.mixes = [s.cache.adapters for s in segments for _ in s.ids]
        put_runs(b.runs, b.mixes)
        b.hidden_view[:n] = self._embedded(ids)
        positions = _positions(segments)
        pool.angles.take(positions, b.cos_view[:n], b.sin_view[:n])
        if pool.local_angles is not None:
            pool.local_angles.take(positions, *(view[:n] for view in b.local_views))
        beside = pool.beside
        for i, (layer, more) in enumerate(zip(self.weights.layers, self.adapters.layers, strict=True)):
            if beside is not None:
                beside.reader.see(i, b.hidden_view[:n])
            self._layer(layer, more, i, n, pool)
        if beside is not None:
            beside.reader.see(len(self.weights.layers), b.hidden_view[:n])
            beside.reader.keep(b.rows, positions, beside)

    def _layer(self, layer: Layer, more: LayerTables, i: int, n: int, pool: KVPool) -> None:
        """hidden += mixer(norm(hidden)); hidden += ffn(norm(hidden)); both times residual_scale. more: of the adapters."""
        b, eps = self._buffers, self.config.rms_norm_eps
        kernels.rmsnorm(b.hidden, n, layer.attn_norm, eps, b.normed)
        if isinstance(layer.mixer, Attention):
            self._attention(layer, layer.mixer, more, pool.place_of_layer[i], n, pool)
        elif isinstance(layer.mixer, LatentAttention):
            self._latent_attention(layer.mixer, pool.place_of_layer[i], n, pool)
        else:
            self._gated_delta(layer.mixer, pool.place_of_layer[i], pool)
        kernels.rmsnorm(b.hidden, n, layer.ffn_norm, eps, b.normed)
        if layer.router is None:
            (mlp,) = layer.mlps
            kernels.linear(mlp.gate_up, b.normed, b.gate_up, False, 1.0, more.gate_up, b.runs)
            self._gate(b.gate_up, n, b.gated)
            self._add_branch(mlp.down, b.gated, n, layer.post_norms and layer.post_norms[1], more.down)
        else:
            assert b.experts is not None
            kernels.linear(layer.router, b.normed, b.experts.routed)
            self._experts(layer, b.experts, n)

    def _add_branch(
        self, w: kernels.Linear, x: kernels.Activation, n: int, norm: kernels.Array | None, table: kernels.LowRankTable
    ) -> None:
        """hidden += residual_scale * W x; with a norm behind the branch hidden += norm(W x)."""
        b = self._buffers
        if norm is None:
            kernels.linear(w, x, b.hidden, True, self.config.residual_scale, table, b.runs)
            return
        assert b.branch is not None
        kernels.linear(w, x, b.branch, False, 1.0, table, b.runs)
        kernels.add_normed(b.branch, n, norm, self.config.rms_norm_eps, b.hidden)

    def _attention(self, layer: Layer, m: Attention, more: LayerTables, place: int, n: int, pool: KVPool) -> None:
        """hidden += residual_scale * attention(normed). place: of the layer among those that attend."""
        b = self._buffers
        kernels.linear(m.qkv, b.normed, b.qkv, False, 1.0, more.qkv, b.runs)
        cos, sin = (b.local_cos, b.local_sin) if m.local else (b.cos, b.sin)
        kernels.rope_append(b.qkv, b.rows, m.spec, cos, sin, pool.native, place)
        pool.attend(b.qkv, b.rows, m.spec, place, b.attended, b.heads)
        if m.gate:
            kernels.sigmoid_gate(b.attended, b.qkv, m.gate, n, b.heads)
        self._add_branch(m.o, b.heads, n, layer.post_norms and layer.post_norms[0], more.o)

    def _latent_attention(self, m: LatentAttention, place: int, n: int, pool: KVPool) -> None:
        """The same with queries, keys and values from latents."""
        b, low = self._buffers, self._buffers.latent
        assert low is not None
        low.queries_keys_values(m, b.normed, n, self.config.rms_norm_eps, b.qkv)
        kernels.rope_append(b.qkv, b.rows, m.spec, b.cos, b.sin, pool.native, place)
        pool.attend(b.qkv, b.rows, m.spec, place, b.attended, low.unread)
        kernels.linear(m.o, low.narrowed(b.attended, n), b.hidden, True, self.config.residual_scale)

    def _gated_delta(self, m: GatedDelta, place: int, pool: KVPool) -> None:
        """hidden += residual_scale * what the states give for normed, and the states take it in. place: among such layers."""
        b, d = self._buffers, self._buffers.delta
        assert d is not None
        assert pool.states is not None
        kernels.linear(m.into, b.normed, d.x)
        kernels.delta_net(d.x, b.states, m.spec, pool.states.native, place, d.values, d.heads)
        end = 0
        for s in b.segments:
            end += len(s.ids)
            if s.cache.state is not None:
                s.cache.state.log(place, d.x, end, s.drafts)
        kernels.linear(m.out, d.heads, b.hidden, True, self.config.residual_scale)

    def _experts(self, layer: Layer, e: _ExpertBuffers, n: int) -> None:
        """hidden += residual_scale * (sum of the chosen experts' results, each times its weight).

        An expert is computed for all its tokens at once, and only if it has some; the results of a token are added in the
        order of the experts, so it does not matter which tokens are beside it.
        """
        b, eps = self._buffers, self.config.rms_norm_eps
        chosen, weights = exact.top_softmax(e.routed_view[:n], self.config.num_experts_per_tok)
        e.total[:n] = 0
        for number, tokens, weight in _by_expert(chosen, weights):
            count, normed = len(weight), b.normed
            if count < n:
                e.hidden_view[:count] = b.hidden_view[tokens]
                kernels.rmsnorm(e.hidden, count, layer.ffn_norm, eps, e.normed)
                normed = e.normed
            self._expert(layer, number, normed, count)
            e.total[tokens] += e.out_view[:count] * weight
        b.hidden_view[:n] += e.total[:n] * np.float32(self.config.residual_scale)

    def _expert(self, layer: Layer, number: int, normed: kernels.Activation, count: int) -> None:
        """experts.out = the result of one expert for so many tokens."""
        b, mlp = self._buffers, layer.mlps[number]
        assert b.experts is not None
        kernels.linear(mlp.gate_up, normed, b.gate_up)
        kernels.swiglu(b.gate_up, count, b.gated)
        kernels.linear(mlp.down, b.gated, b.experts.out)

    def _score(self, wanted: Sequence[tuple[Segment, int, int, int]]) -> None:
        """Log-probabilities of tokens after rows of the buffer, to places in the scores of their segments; logits of LOGIT_ROWS
        are in memory at once. What is no token has none."""
        b = self._buffers
        tokens = (one for one in wanted if one[3] < self.config.vocab_size)
        by_row = [(row, list(group)) for row, group in itertools.groupby(tokens, key=lambda one: one[2])]
        for begin in range(0, len(by_row), LOGIT_ROWS):
            part = by_row[begin : begin + LOGIT_ROWS]
            rows = self._output.at_once(b.hidden_view, [row for row, _ in part], [None] * len(part), b.mixes)
            norms = exact.log_sum_exps(self._output.array, len(part))
            for (_, group), logits, norm in zip(part, rows, norms, strict=True):
                for segment, at, _, token in group:
                    segment.scores[at] = logprobs_of(logits, token, segment.alternatives, norm)

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
        for i, weights in enumerate(weights_by_layer(gguf, config)):
            one = replace(config, num_hidden_layers=1, layer_types=config.layer_types[i : i + 1])
            model = Transformer(one, weights, partial(_given, hidden))
            cache = model.new_cache(len(inputs))
            assert cache.reserve(len(inputs))
            model.step([Segment(cache, inputs)])
            hidden = model._buffers.hidden_view[: len(inputs)].copy()
            if (sent := (yield hidden)) is not None:
                model._buffers.hidden_view[: len(inputs)] = hidden = sent
        n = len(inputs)
        yield model._output.logits(model._buffers.hidden_view, range(n), [None] * n, model._buffers.mixes)
    finally:
        kernels.set_num_threads(threads)


def _positions(segments: Sequence[Segment]) -> npt.NDArray[np.int64]:
    """Of all ids: [N], or [3, N] where any of the sequences has axes."""
    found = [s.cache.positions(len(s.ids)) for s in segments]
    if any(one.ndim == 2 for one in found):
        found = [np.broadcast_to(one, (3, one.shape[-1])) for one in found]
    return np.concatenate(found, axis=-1)


def _given(states: Floats, _: npt.NDArray[np.int64]) -> Floats:
    """An embedding for ids whose states are there already."""
    return states


def greedy(model: Transformer, ids: Sequence[int], steps: int, cache: KVCache | None = None) -> list[int]:
    """The `steps` most likely ids one after the other; what benchmarks and tests need of generation."""
    cache = cache or model.new_cache(len(ids) + steps)
    logits = model.forward(ids, cache, need=GREEDY)
    out: list[int] = []
    for _ in itertools.repeat(None, steps):
        out.append(int(np.argmax(logits)))
        logits = model.forward(out[-1:], cache, need=GREEDY)
    return out

"""The forward pass, top to bottom: nine kernel calls a layer.

Tokens go in, logits come out, and the cache grows. The work buffers belong to the model, so one forward runs at a time;
all that a sequence is lives in its `KVCache`. Long prompts go through in chunks. A position's result does not depend on
how the prompt was cut, on what was cached before, or on the number of threads: every path gives the same bits.

The same model exists in torch for training; a parity test keeps the two equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.cache import KVCache, KVType
from gangpao.engine.config import ModelConfig
from gangpao.engine.gguf import GGUF
from gangpao.engine.rope import fill_angles, inverse_frequencies
from gangpao.engine.weights import Embedding, Layer, Weights, load_weights

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

CHUNK = 256  # tokens of prefill at once: enough to use a weight often, few enough for the activations to stay in L2
LOGIT_ROWS = 16  # rows of logits at once when all are asked for: 100,000 floats each


@dataclass(slots=True)
class Segment:
    """Ids to append to a cache in a step, and after how many of the last of them logits are wanted."""

    cache: KVCache
    ids: Sequence[int]
    logits: int = 0


class _Buffers:
    """Work space for one chunk. Pages are touched only as far as tokens need them."""

    def __init__(self, c: ModelConfig, w: Weights) -> None:
        q_rows, kv_rows = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim

        self.hidden = kernels.Array(CHUNK, c.hidden_size)
        self.qkv = kernels.Array(CHUNK, q_rows + 2 * kv_rows)
        self.gate_up = kernels.Array(CHUNK, 2 * c.intermediate_size)
        self.attended = kernels.Array(CHUNK, q_rows)
        self.cos = kernels.Array(CHUNK, max(1, c.rope_dim // 2))
        self.sin = kernels.Array(CHUNK, max(1, c.rope_dim // 2))
        self.normed = kernels.Activation(CHUNK, c.hidden_size, [x for y in w.layers for x in (y.qkv, y.gate_up)])
        self.heads = kernels.Activation(CHUNK, q_rows, [y.o for y in w.layers])
        self.gated = kernels.Activation(CHUNK, c.intermediate_size, [y.down for y in w.layers])
        self.final = kernels.Array(LOGIT_ROWS, c.hidden_size)
        self.final_normed = kernels.Activation(LOGIT_ROWS, c.hidden_size, [w.head])
        self.logits = kernels.Array(LOGIT_ROWS, c.vocab_size)
        self.hidden_view, self.final_view, self.logits_view = (
            x.numpy() for x in (self.hidden, self.final, self.logits)
        )
        self.cos_view, self.sin_view = self.cos.numpy(), self.sin.numpy()


class Transformer:
    """A model ready to run. `bytes_per_token` is what one decode step reads of the weights."""

    def __init__(self, config: ModelConfig, weights: Weights, embed: Embedding) -> None:
        self.config = config
        self.weights = weights
        self.embed = embed
        self._buffers = _Buffers(config, weights)

    @classmethod
    def load(cls, gguf: GGUF, *, progress: Progress | None = None) -> Transformer:
        """Packs the weights of an open file, which must stay open: embeddings are read from it.

        progress(done_bytes, total_bytes). Raises ModelFileError for what we cannot run.
        """
        config = ModelConfig.from_gguf(gguf)
        return cls(config, load_weights(gguf, config, progress), Embedding(gguf, config))

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights in memory."""
        return self.weights.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self.weights.nbytes

    def new_cache(self, capacity: int, dtype: KVType = "f16") -> KVCache:
        """An empty cache for `capacity` positions."""
        inverse, factor = inverse_frequencies(self.config, context=capacity, factors=self.weights.rope_factors)
        return KVCache(self.config, capacity, dtype, inverse, factor)

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
            self._run_layers(chunk, cache)
            if all_logits:
                collected.extend(
                    self._logits(i, min(i + LOGIT_ROWS, len(chunk))) for i in range(0, len(chunk), LOGIT_ROWS)
                )
            cache.length += len(chunk)
            if on_progress:
                on_progress(begin + len(chunk), len(tokens))
        if all_logits:
            return np.concatenate(collected)
        last = (len(tokens) - 1) % CHUNK
        out: Floats = self._logits(last, last + 1)[0]
        return out

    def step(self, segments: Sequence[Segment]) -> list[Floats]:
        """placeholder: one after the other"""
        out = []
        for s in segments:
            all_logits = self.forward(s.ids, s.cache, all_logits=True)
            out.append(all_logits[len(s.ids) - s.logits :] if s.logits else np.empty((0, self.config.vocab_size), np.float32))
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
        if cache.length + len(tokens) > cache.capacity:
            raise ValueError(
                f"{cache.length} cached and {len(tokens)} new tokens do not fit into a context of {cache.capacity}; "
                "shorten the prompt or load the model with a larger context"
            )
        return tokens

    def _run_layers(self, chunk: npt.NDArray[np.int64], cache: KVCache) -> None:
        b, n, start = self._buffers, len(chunk), cache.length
        b.hidden_view[:n] = self.embed(chunk)
        fill_angles(cache.inverse, cache.angle_factor, start, b.cos_view[:n], b.sin_view[:n])
        for i, layer in enumerate(self.weights.layers):
            self._layer(layer, i, n, start, cache)

    def _layer(self, layer: Layer, i: int, n: int, start: int, cache: KVCache) -> None:
        """hidden += attention(norm(hidden)); hidden += ffn(norm(hidden)); both times residual_scale."""
        b, eps, scale = self._buffers, self.config.rms_norm_eps, self.config.residual_scale
        kernels.rmsnorm(b.hidden, n, layer.attn_norm, eps, b.normed)
        kernels.linear(layer.qkv, b.normed, b.qkv)
        kernels.rope_append(b.qkv, n, layer.attention, b.cos, b.sin, cache.native, i, start)
        kernels.attend(b.qkv, n, layer.attention, cache.native, i, start, b.attended, b.heads)
        kernels.linear(layer.o, b.heads, b.hidden, True, scale)
        kernels.rmsnorm(b.hidden, n, layer.ffn_norm, eps, b.normed)
        kernels.linear(layer.gate_up, b.normed, b.gate_up)
        kernels.swiglu(b.gate_up, n, b.gated)
        kernels.linear(layer.down, b.gated, b.hidden, True, scale)

    def _logits(self, begin: int, end: int) -> Floats:
        """Logits of rows begin .. end of the hidden states in the buffer."""
        b, n = self._buffers, end - begin
        b.final_view[:n] = b.hidden_view[begin:end]
        kernels.rmsnorm(b.final, n, self.weights.final_norm, self.config.rms_norm_eps, b.final_normed)
        kernels.linear(self.weights.head, b.final_normed, b.logits)
        return b.logits_view[:n].copy()


def greedy(model: Transformer, ids: Sequence[int], steps: int, cache: KVCache | None = None) -> list[int]:
    """The `steps` most likely ids one after the other; what benchmarks and tests need of generation."""
    cache = cache or model.new_cache(len(ids) + steps)
    logits = model.forward(ids, cache)
    out: list[int] = []
    for _ in itertools.repeat(None, steps):
        out.append(int(np.argmax(logits)))
        logits = model.forward(out[-1:], cache)
    return out

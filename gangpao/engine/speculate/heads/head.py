"""A draft head beside its large model: keys and values of what the model computes, and guesses of a block of tokens.

With every step of the model the head reads what goes into some of its layers, fuses that into one state a position, and keeps keys
and values of its own layers of it, in pages beside the model's (layers/beside.py): a projection of each row, no forward pass. A
position whose token was a wrong guess is cut with the model's own and written over when the next token is computed.

A block is the last token of the text and mask tokens behind it. Its tokens go through the head's layers together, see all positions
before them and one another, and each says a guess. With a Markov head (DSpark) a guess also depends on the one before it, so
they are read one by one, and one that is not asked for costs nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.cache import PAGE, KVCache
from gangpao.engine.layers.beside import Beside
from gangpao.engine.layers.kept import KVType, kv_bits
from gangpao.engine.rope import Angles, inverse_frequencies
from gangpao.engine.sample import Logits, Sampler
from gangpao.engine.speculate.drafters import Price
from gangpao.engine.speculate.heads.config import HeadConfig
from gangpao.engine.speculate.heads.drafter import HeadDrafter
from gangpao.engine.speculate.heads.weights import HeadLayer, HeadWeights, Markov
from gangpao.engine.transformer import CHUNK, ONE_AT_A_TIME

Floats = npt.NDArray[np.float32]
CONTEXT_LEFT = 1  # positions that a head has to know before it guesses
ROW_SHARE = 0.1  # of a block, for a guess of a Markov head: a first belief


class _Reading:
    """Work space for the states of a step."""

    def __init__(self, c: HeadConfig, w: HeadWeights) -> None:
        m = c.model
        q_rows, kv_rows = m.num_attention_heads * m.head_dim, m.num_key_value_heads * m.head_dim
        self.states = kernels.Array(CHUNK, len(c.reads) * m.hidden_size)
        self.wide = kernels.Activation(CHUNK, self.states.cols, [w.fuse])
        self.fused = kernels.Array(CHUNK, m.hidden_size)
        self.normed = kernels.Activation(CHUNK, m.hidden_size, [layer.kv for layer in w.layers])
        self.qkv = kernels.Array(CHUNK, q_rows + 2 * kv_rows)  # q is not used
        self.kv = self.qkv.part(0, CHUNK, q_rows, 2 * kv_rows)
        self.cos, self.sin = (kernels.Array(CHUNK, m.rope_dim // 2) for _ in range(2))
        self.view = self.states.numpy()
        self.angles = self.cos.numpy(), self.sin.numpy()


class _Block:
    """Work space for the tokens of a block, and for one guess."""

    def __init__(self, c: HeadConfig, w: HeadWeights) -> None:
        m, n = c.model, c.block
        q_rows, kv_rows = m.num_attention_heads * m.head_dim, m.num_key_value_heads * m.head_dim
        self.hidden = kernels.Array(n, m.hidden_size)
        self.normed = kernels.Activation(n, m.hidden_size, [one for y in w.layers for one in (y.qkv, y.mlp.gate_up)])
        self.qkv, self.attended = kernels.Array(n, q_rows + 2 * kv_rows), kernels.Array(n, q_rows)
        self.heads = kernels.Activation(n, q_rows, [y.o for y in w.layers])
        self.gate_up = kernels.Array(n, 2 * m.intermediate_size)
        self.gated = kernels.Activation(n, m.intermediate_size, [y.mlp.down for y in w.layers])
        self.final = kernels.Activation(n, m.hidden_size, [w.output], w.markov is not None)
        self.logits = kernels.Array(n, m.vocab_size)
        self.cos, self.sin = (kernels.Array(n, m.rope_dim // 2) for _ in range(2))
        self.rows, self.seen, self.one = (kernels.Rows() for _ in range(3))
        self.unread = kernels.Activation(1, q_rows, [])
        self.before = kernels.Array(1, max(1, c.markov))
        second = [w.markov.second] if w.markov else []
        self.before_read = kernels.Activation(1, self.before.cols, second)
        self.bias = kernels.Array(1, m.vocab_size)


class DraftHead:
    """A head of one model. share: of the model's step that a block is likely to take, until it was measured."""

    def __init__(self, config: HeadConfig, weights: HeadWeights, share: float) -> None:
        self.name = config.name
        self.config = config
        self.weights = weights
        self.guesses_made = 0  # blocks ever
        self._reading = _Reading(config, weights)
        self._block = _Block(config, weights)
        self._places: dict[int, list[slice]] = {}  # of a layer's input among the states
        for i, layer in enumerate(config.reads):
            begin = i * config.model.hidden_size
            self._places.setdefault(layer, []).append(slice(begin, begin + config.model.hidden_size))
        self._share = share
        self._block_s: deque[float] = deque(maxlen=15)
        self._row_s: deque[float] = deque(maxlen=15)
        self._number = 0  # of the block that the work space holds

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights in memory, without what the large model has anyway."""
        return self.weights.nbytes

    @property
    def rows(self) -> range:
        """Of a block, those that say guesses."""
        return range(self.config.block - self.config.guesses, self.config.block)

    def drafter(self, sampler: Sampler, cache: Callable[[], KVCache | None]) -> HeadDrafter:
        """What guesses for an answer. cache: where its text is now, if it is anywhere."""
        return HeadDrafter(self, sampler, cache)

    def seconds(self, ids: Sequence[int], plain_s: float) -> Price:
        """plain_s: of a step of the large model."""
        block = statistics.median(self._block_s) if self._block_s else self._share * plain_s
        markov = self.weights.markov is not None
        row = statistics.median(self._row_s) if self._row_s else ROW_SHARE * block if markov else 0.0
        return Price(0.0, block + row, row)

    # --- with every step of the large model

    def new_beside(self, pages: int, context: int, dtype: KVType) -> Beside:
        """Its part of a pool of so many pages, for sequences of at most `context` positions."""
        m = self.config.model
        native = kernels.Cache(m.num_hidden_layers, m.num_key_value_heads, m.head_dim, pages, *kv_bits(m, dtype))
        return Beside(self, native, Angles(*inverse_frequencies(m, context=context, factors=self.weights.rope_factors)))

    def see(self, layer: int, hidden: Floats) -> None:
        """What goes into a layer of the large model [N, D]: straight to where the head's first product reads it."""
        for place in self._places.get(layer, ()):
            self._reading.view[: len(hidden), place] = hidden

    def keep(self, rows: kernels.Rows, positions: npt.NDArray[np.int64], beside: Beside) -> None:
        """Keys and values of the rows of a step whose states were seen."""
        b, w, n = self._reading, self.weights, len(rows)
        kernels.quantize(b.states, n, b.wide)
        kernels.linear(w.fuse, b.wide, b.fused)
        kernels.rmsnorm(b.fused, n, w.fuse_norm, self.config.model.rms_norm_eps, b.normed)
        beside.angles.take(_times(positions), *(view[:n] for view in b.angles))
        for i, layer in enumerate(w.layers):
            kernels.linear(layer.kv, b.normed, b.kv)
            kernels.rope_append(b.qkv, rows, layer.spec, b.cos, b.sin, beside.native, i)

    # --- guesses

    def run(self, cache: KVCache, last: int) -> int | None:
        """Compute the block behind what is in the cache, of which `last` is the first token. Returns its number; None where there
        is no room for it, or where the head has not seen enough."""
        if cache.pool.beside is None or not self._has_room(cache):
            return None
        with ONE_AT_A_TIME:
            start = time.perf_counter()
            n, whole = cache.length, cache.pool.beside.first_seen(cache.pages[: cache.length // PAGE + 1]) * PAGE
            if n - whole < CONTEXT_LEFT:
                return None
            self._number += 1
            self.guesses_made += 1
            self._forward(
                cache.pool.beside, cache.pages[whole // PAGE :], n - whole, cache.positions(self.config.block), last
            )
            self._block_s.append(time.perf_counter() - start)
            return self._number

    def guess(self, number: int, row: int, before: int) -> tuple[Logits, float | None] | None:
        """Logits [V] of a row of the block of that number, behind the token `before`, and how sure the head is that a guess is
        right, if it says so; None where another block was computed since."""
        with ONE_AT_A_TIME:
            if number != self._number:
                return None
            logits, markov = self._block.logits.numpy()[row], self.weights.markov
            if markov is None:
                return logits.copy(), None
            start = time.perf_counter()
            found = self._behind(markov, logits, row, before)
            self._row_s.append(time.perf_counter() - start)
            return found

    def _has_room(self, cache: KVCache) -> bool:
        """Pages for the block, which the step of the model takes over."""
        c, end = self.config, cache.length + self.config.block
        return end <= min(cache.capacity, c.model.max_position_embeddings) and cache.pool.extend(cache, end)

    def _forward(
        self, beside: Beside, pages: Sequence[int], start: int, positions: npt.NDArray[np.int64], last: int
    ) -> None:
        """Logits of the rows of a block whose tokens are at `start` and behind it in these pages."""
        b, w, c, n = self._block, self.weights, self.config, self.config.block
        b.rows.clear()
        b.rows.add(pages, start, n)
        b.seen.clear()
        for i in range(n):
            b.seen.add(pages, start + (i if c.causal else n - 1), 1)
        beside.angles.take(_times(positions), b.cos.numpy(), b.sin.numpy())
        b.hidden.numpy()[:] = w.embed(np.array([last] + [c.mask] * (n - 1)))
        for i, layer in enumerate(w.layers):
            self._layer(layer, i, beside, (pages, start))
        kernels.rmsnorm(b.hidden, n, w.final_norm, c.model.rms_norm_eps, b.final)
        kernels.linear(w.output, b.final, b.logits)

    def _layer(self, y: HeadLayer, i: int, beside: Beside, place: tuple[Sequence[int], int]) -> None:
        """Attention and MLP of the tokens of a block. place: pages, and where in them the first token is."""
        b, n, eps = self._block, self.config.block, self.config.model.rms_norm_eps
        kernels.rmsnorm(b.hidden, n, y.attn_norm, eps, b.normed)
        kernels.linear(y.qkv, b.normed, b.qkv)
        kernels.rope_append(b.qkv, b.rows, y.spec, b.cos, b.sin, beside.native, i)
        if y.by_row and place[1] + n > y.window:
            self._attend_by_row(y, i, beside, place)
        else:
            kernels.attend(b.qkv, b.seen, y.spec, beside.native, i, b.attended, b.heads)
        kernels.linear(y.o, b.heads, b.hidden, True)
        kernels.rmsnorm(b.hidden, n, y.ffn_norm, eps, b.normed)
        kernels.linear(y.mlp.gate_up, b.normed, b.gate_up)
        kernels.swiglu(b.gate_up, n, b.gated)
        kernels.linear(y.mlp.down, b.gated, b.hidden, True)

    def _attend_by_row(self, y: HeadLayer, i: int, beside: Beside, place: tuple[Sequence[int], int]) -> None:
        """The same where each row sees another beginning, and all the end of the block."""
        b, (pages, start), n = self._block, place, self.config.block
        b.one.clear()
        b.one.add(pages, start + n - 1, 1)
        for row, spec in enumerate(y.by_row):
            qkv, attended = (x.part(row, 1, 0, x.cols) for x in (b.qkv, b.attended))
            kernels.attend(qkv, b.one, spec, beside.native, i, attended, b.unread)
        kernels.quantize(b.attended, n, b.heads)

    def _behind(self, m: Markov, logits: Logits, row: int, before: int) -> tuple[Logits, float | None]:
        b, first = self._block, m.row(before)
        b.before.numpy()[0] = first
        kernels.quantize(b.before, 1, b.before_read)
        kernels.linear(m.second, b.before_read, b.bias)
        sure = None
        if m.sure is not None:
            told = np.concatenate([b.final.floats()[row], first])
            sure = 1 / (1 + math.exp(-max(-60.0, float(np.dot(m.sure, told)) + m.bias)))
        return logits + b.bias.numpy()[0], sure


def _times(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of positions with several axes the first."""
    return positions if positions.ndim == 1 else positions[0]

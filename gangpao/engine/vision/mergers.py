"""From hidden states of patches to rows of the language model: a resampler, rounds of merging 2 x 2, or an MLP on every patch.

Each is loaded by `load` and called as a generator that yields where others may have the kernels' threads (encoder.py).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.vision import encoder
from gangpao.engine.vision.positions import stretched
from gangpao.engine.vision.weights import Mlp, Norm, Tensors
from gangpao.formats.gguf import ModelFileError
from gangpao.formats.vision import Activation, VisionModel
from gangpao.formats.vision.positions import sines_2d

Floats = npt.NDArray[np.float32]
Grid = tuple[int, int]
Made = Generator[None, None, kernels.Array]


class Merger(Protocol):
    """States [patches, hidden] of a grid -> rows [tokens, text_size]."""

    @property
    def text_size(self) -> int: ...

    def tokens(self, grid: Grid) -> int:
        """Rows of a grid of patches that come out of the encoder."""

    def __call__(self, states: kernels.Array, grid: Grid) -> Made: ...


def load(t: Tensors, vision: VisionModel) -> Merger:
    """The merger that the row says. Raises ModelFileError for what is missing or has another shape."""
    if vision.merger.kind == "resampler":
        return _resampler(t, vision)
    return _two_by_two(t, vision) if vision.merger.kind == "merge" else _mlp(t, vision)


@dataclass(frozen=True, slots=True)
class Resampler:
    """One cross attention of learned queries over all patches; positions are added to keys, not to values.

    queries: [count, width], with their norm and positions, projected: they are the same for every picture. table: the stored
    positions of keys [count, width], None where they are computed.
    """

    queries: kernels.Array
    heads: int
    kv: kernels.Linear
    kv_norm: Norm
    keys: kernels.Linear
    values: kernels.Linear
    out: kernels.Linear
    post_norm: Norm
    projection: kernels.Linear
    table: Floats | None

    @property
    def text_size(self) -> int:
        return self.projection.rows

    def tokens(self, grid: Grid) -> int:
        return self.queries.rows

    def __call__(self, states: kernels.Array, grid: Grid) -> Made:
        n, width = states.rows, self.keys.cols
        values, keys, projected = (kernels.Array(n, width) for _ in range(3))
        yield from encoder.linear(states, self.kv, projected)
        yield from encoder.normed(projected, self.kv_norm, projected.numpy())
        yield from encoder.linear(projected, self.values, values)
        projected.numpy()[:] += self._positions(grid, width)
        yield from encoder.linear(projected, self.keys, keys)
        attended, rows = (kernels.Array(self.queries.rows, width) for _ in range(2))
        head = width // self.heads
        kernels.attend_all(self.queries, keys, values, self.heads, head**-0.5, 0, attended)
        yield
        yield from encoder.linear(attended, self.out, rows)
        result = kernels.Array(rows.rows, self.text_size)
        yield from encoder.linear(rows, self.projection, result, self.post_norm)
        return result

    def _positions(self, grid: Grid, width: int) -> Floats:
        if self.table is None:
            return sines_2d(width, *grid)
        side = round(len(self.table) ** 0.5)
        return stretched(self.table, (side, side), grid, "bicubic")


def _resampler(t: Tensors, vision: VisionModel) -> Resampler:
    m, hidden = vision.merger, vision.encoder.hidden_size
    query_shape = t.shape("resampler.query")
    width = query_shape[-1]
    if width % m.head_dim or width % 4:
        raise ModelFileError(f"{t.gguf.path}: resampler.query has rows of {width}, not whole heads of {m.head_dim}")
    query = t.floats("resampler.query", m.queries, width)
    stored = t.floats("resampler.pos_embed", m.queries, width) if t.has("resampler.pos_embed") else None
    if m.key_table == "stored" and stored is None:
        raise ModelFileError(
            f"{t.gguf.path}: tensor resampler.pos_embed is missing; the file is incomplete, convert it again"
        )
    t.left.discard("resampler.pos_embed_k")  # llama.cpp wants it in the file, and computes it as we do
    query_norm = t.norm("resampler.ln_q", width, m.eps)
    first = t.linear("resampler.attn.q", width, width)
    return Resampler(
        queries=_projected(query, query_norm, stored, first),
        heads=width // m.head_dim,
        kv=t.linear("resampler.kv", width, hidden),
        kv_norm=t.norm("resampler.ln_kv", width, m.eps),
        keys=t.linear("resampler.attn.k", width, width),
        values=t.linear("resampler.attn.v", width, width),
        out=t.linear("resampler.attn.out", width, width),
        post_norm=t.norm("resampler.ln_post", width, m.eps),
        projection=t.linear("resampler.proj", t.shape("resampler.proj.weight")[0], width),
        table=stored if m.key_table == "stored" else None,
    )


def _projected(query: Floats, norm: Norm, positions: Floats | None, w: kernels.Linear) -> kernels.Array:
    """W (norm(query) + positions), once at load."""
    x, out = kernels.Array(*query.shape), kernels.Array(len(query), w.rows)
    x.numpy()[:] = query
    for _ in encoder.normed(x, norm, x.numpy()):
        pass
    if positions is not None:
        x.numpy()[:] += positions
    for _ in encoder.linear(x, w, out):
        pass
    return out


@dataclass(frozen=True, slots=True)
class TwoByTwo:
    """Rounds of joining 2 x 2: norm, linear, activation, linear on four states side by side."""

    rounds: tuple[Mlp, ...]
    activation: Activation

    @property
    def text_size(self) -> int:
        return self.rounds[-1].down.rows

    def tokens(self, grid: Grid) -> int:
        return (grid[0] >> len(self.rounds)) * (grid[1] >> len(self.rounds))

    def __call__(self, states: kernels.Array, grid: Grid) -> Made:
        for m in self.rounds:
            four = encoder.gathered(states, grid)
            states = kernels.Array(four.rows, m.down.rows)
            yield from encoder.mlp(four, m, self.activation, states)
            grid = grid[0] // 2, grid[1] // 2
        return states


def _two_by_two(t: Tensors, vision: VisionModel) -> TwoByTwo:
    m, rounds = vision.merger, []
    width = vision.encoder.hidden_size
    for i in range(m.times):
        prefix = "mm." if i == m.times - 1 else f"mm.{i}."
        inner, out = t.shape(f"{prefix}up.weight")[0], t.shape(f"{prefix}down.weight")[0]
        norm = t.norm(f"{prefix}input_norm", 4 * width, m.eps)
        rounds.append(Mlp(norm, t.linear(f"{prefix}up", inner, 4 * width), t.linear(f"{prefix}down", out, inner)))
        width = out
    return TwoByTwo(tuple(rounds), m.activation)


@dataclass(frozen=True, slots=True)
class EveryPatch:
    """Linear, activation, linear on every patch; or one linear alone."""

    mlp: Mlp | None
    single: kernels.Linear | None
    activation: Activation

    @property
    def text_size(self) -> int:
        last = self.mlp.down if self.mlp else self.single
        assert last is not None
        return last.rows

    def tokens(self, grid: Grid) -> int:
        return grid[0] * grid[1]

    def __call__(self, states: kernels.Array, grid: Grid) -> Made:
        out = kernels.Array(states.rows, self.text_size)
        if self.mlp:
            yield from encoder.mlp(states, self.mlp, self.activation, out)
        elif self.single:
            yield from encoder.linear(states, self.single, out)
        return out


def _mlp(t: Tensors, vision: VisionModel) -> EveryPatch:
    hidden, activation = vision.encoder.hidden_size, vision.merger.activation
    inner = t.shape("mm.0.weight")[0]
    first = t.linear("mm.0", inner, hidden)
    t.left.discard("v.image_newline")  # for pictures cut as LLaVA 1.6 does, which is not done here
    if not t.has("mm.2.weight"):
        return EveryPatch(None, first, activation)
    second = t.linear("mm.2", t.shape("mm.2.weight")[0], inner)
    return EveryPatch(Mlp(None, first, second), None, activation)

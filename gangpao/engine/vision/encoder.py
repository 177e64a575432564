"""The forward pass of an encoder of pictures: patches -> hidden states, on the kernels of the language model.

The convolution over patches is a product of Piece.values. A layer is norm, q, k and v side by side, attention of all patches over
all, projection, norm, MLP. What a row of formats/vision.py says otherwise (norms behind the branches, a window merger between two
layers, tokens in front) is a branch here.

Everything is a generator that yields where others may have the kernels' threads: after CHUNK rows of a linear layer and after
attention. A patch's states do not depend on where that is. Work space grows with the patches of a piece and is given back with it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.vision.positions import stretched
from gangpao.engine.vision.weights import Attention, Layer, Mlp, Norm, Tensors
from gangpao.formats.vision import Activation, Encoder, Stretch
from gangpao.formats.vision.positions import windows

Floats = npt.NDArray[np.float32]
Grid = tuple[int, int]
Steps = Generator[None, None, None]

CHUNK = 256  # rows at once: enough to use weights often, few enough for them to stay in the L2 cache


class Patches(Protocol):
    """What is encoded: a piece of a picture (images/slices.py)."""

    @property
    def values(self) -> Floats:
        """[rows * columns, 3 * patch * patch], normalised."""

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches."""


@dataclass(frozen=True, slots=True)
class WindowMerger:
    """Attention inside windows of 2 x 2 patches, then an MLP that makes each window one; beside it goes their mean."""

    attention: Attention
    mlp: Mlp


@dataclass(frozen=True, slots=True)
class Weights:
    """Everything an encoder reads. prefix: states of the tokens in front, with their positions, [prefix_tokens, hidden]."""

    patch: kernels.Linear
    table: Floats
    prefix: Floats
    pre_norm: Norm | None
    layers: tuple[Layer, ...]
    merger: WindowMerger | None
    final_norm: Norm | None


def load(t: Tensors, e: Encoder) -> Weights:
    """The encoder's tensors. Raises ModelFileError for what is missing or has another shape."""
    size, side = e.hidden_size, e.patch_size
    patch = t.matrix("v.patch_embd", size, 3 * side * side, shape=(size, 3, side, side))
    rows = e.prefix_tokens + e.table[0] * e.table[1]
    table = t.floats("v.position_embd.weight", *_trimmed(t.shape("v.position_embd.weight"), rows, size)).reshape(
        rows, size
    )
    prefix = table[: e.prefix_tokens]
    if e.prefix_tokens:
        prefix = prefix + t.floats("v.class_embd", *t.shape("v.class_embd")).reshape(-1)[:size]
    merger = None
    if e.merge_after is not None:
        merger = WindowMerger(
            t.attention("v.vit_merger", t.norm("v.vit_merger.ln1", size, e.eps), size),
            Mlp(
                t.norm("v.vit_merger.ds_ln", 4 * size, e.eps),
                t.linear("v.vit_merger.ds_ffn_up", t.shape("v.vit_merger.ds_ffn_up.weight")[0], 4 * size),
                t.linear("v.vit_merger.ds_ffn_down", size, t.shape("v.vit_merger.ds_ffn_up.weight")[0]),
            ),
        )
    return Weights(
        kernels.Linear([patch]),
        table[e.prefix_tokens :],
        prefix,
        t.norm("v.pre_ln", size, e.eps) if t.has("v.pre_ln.weight") else None,
        tuple(_layer(t, e, f"v.blk.{i}") for i in range(e.layers)),
        merger,
        t.norm("v.post_ln", size, e.eps) if e.final_norm else None,
    )


def _trimmed(shape: tuple[int, ...], rows: int, size: int) -> tuple[int, ...]:
    """The shape that a table of positions must have: some converters leave a 1 in front."""
    return (1, rows, size) if len(shape) == 3 else (rows, size)


def _layer(t: Tensors, e: Encoder, name: str) -> Layer:
    size, inner = e.hidden_size, e.intermediate_size
    up, down = f"{name}.ffn_up", f"{name}.ffn_down"
    # Converters of 2023 called the first matrix ffn_down; llama.cpp tells by its columns, and so do we.
    if t.shape(f"{down}.weight")[-1] == size:
        up, down = down, up
    more = t.missing(down, inner)
    return Layer(
        t.attention(name, t.norm(f"{name}.ln1", size, e.eps), size),
        Mlp(
            t.norm(f"{name}.ln2", size, e.eps),
            t.linear(up, inner, size, (more, 0)),
            t.linear(down, size, inner, (0, more)),
        ),
    )


class _Buffers:
    """Work space for n rows. What a chunk needs is there once, what attention reads for all rows."""

    def __init__(self, w: Weights, e: Encoder, n: int) -> None:
        size, chunk = e.hidden_size, min(CHUNK, n)
        attentions = [y.attention for y in w.layers]
        mlps = [y.mlp for y in w.layers]
        self.qkv = kernels.Array(n, 3 * size)
        self.attended = kernels.Array(n, size)
        inner = mlps[0].up.rows
        self.inner = kernels.Array(chunk, inner)
        self.normed = kernels.Activation(chunk, size, [y.qkv for y in attentions] + [y.up for y in mlps], e.post_norm)
        self.heads = kernels.Activation(chunk, size, [y.out for y in attentions])
        self.gated = kernels.Activation(chunk, inner, [y.down for y in mlps])
        self.branch = kernels.Array(chunk, size) if e.post_norm else None


def encode(w: Weights, e: Encoder, piece: Patches) -> Generator[None, None, tuple[kernels.Array, Grid]]:
    """Hidden states behind the last norm, [patches, hidden], and their grid; prefix tokens are not among them.

    Raises ValueError for values of another shape.
    """
    patches, grid = piece.grid[0] * piece.grid[1], piece.grid
    if piece.values.shape != (patches, 3 * e.patch_size**2) or patches == 0:
        raise ValueError(
            f"a piece of {grid[0]} x {grid[1]} patches has values {list(piece.values.shape)}, expected "
            f"[{patches}, {3 * e.patch_size**2}]"
        )
    first = e.prefix_tokens
    hidden = kernels.Array(first + patches, e.hidden_size)
    yield from _embed(w, e.stretch, e.table, piece, hidden, first)
    if w.pre_norm is not None:
        yield from normed(hidden, w.pre_norm, hidden.numpy())
    b = _Buffers(w, e, hidden.rows)
    for i, layer in enumerate(w.layers):
        if w.merger is not None and i == e.merge_after:
            hidden, grid = yield from _merge_windows(w.merger, e, hidden, grid)
        yield from _layer_steps(layer, e, hidden, b)
    if w.merger is not None and e.merge_after == len(w.layers):
        hidden, grid = yield from _merge_windows(w.merger, e, hidden, grid)
    if first:
        hidden = hidden.part(first, hidden.rows - first, 0, hidden.cols)
    if w.final_norm is not None:
        yield from normed(hidden, w.final_norm, hidden.numpy())
    return hidden, grid


def _embed(w: Weights, how: Stretch, size: Grid, piece: Patches, hidden: kernels.Array, first: int) -> Steps:
    """hidden[first:] = values W + b + positions, behind the prefix."""
    values, view = piece.values, hidden.numpy()
    view[:first] = w.prefix
    raw = kernels.Array(min(CHUNK, len(values)), values.shape[1])
    inputs = kernels.Activation(raw.rows, raw.cols, [w.patch])
    for begin in range(0, len(values), CHUNK):
        n = min(CHUNK, len(values) - begin)
        raw.numpy()[:n] = values[begin : begin + n]
        kernels.quantize(raw, n, inputs)
        kernels.linear(w.patch, inputs, hidden.part(first + begin, n, 0, hidden.cols))
        yield
    view[first:] += stretched(w.table, size, piece.grid, how)


def _layer_steps(layer: Layer, e: Encoder, hidden: kernels.Array, b: _Buffers) -> Steps:
    """hidden += attention(norm(hidden)); hidden += mlp(norm(hidden)); or with the norms behind the branches."""
    n, size = hidden.rows, hidden.cols
    a, m = layer.attention, layer.mlp
    assert m.norm is not None
    for begin, rows in _chunks(n):
        x = hidden.part(begin, rows, 0, size)
        _into(x, rows, None if e.post_norm else a.norm, b.normed)
        kernels.linear(a.qkv, b.normed, b.qkv.part(begin, rows, 0, 3 * size))
        yield
    _attend(b.qkv.part(0, n, 0, 3 * size), e, b.attended.part(0, n, 0, size))
    yield
    for begin, rows in _chunks(n):
        x = hidden.part(begin, rows, 0, size)
        kernels.quantize(b.attended.part(begin, rows, 0, size), rows, b.heads)
        _add(a.out, b.heads, x, a.norm if e.post_norm else None, b)
        _into(x, rows, None if e.post_norm else m.norm, b.normed)
        kernels.linear(m.up, b.normed, b.inner)
        kernels.gelu(b.inner, rows, e.activation, b.gated)
        _add(m.down, b.gated, x, m.norm if e.post_norm else None, b)
        yield


def _chunks(n: int) -> list[tuple[int, int]]:
    """(first row, rows) of each chunk."""
    return [(begin, min(CHUNK, n - begin)) for begin in range(0, n, CHUNK)]


def _into(x: kernels.Array, n: int, norm: Norm | None, out: kernels.Activation) -> None:
    """Rows as the input of linear layers, normalised if there is a norm."""
    if norm is None:
        kernels.quantize(x, n, out)
    else:
        kernels.layernorm(x, n, norm.weight, norm.bias, norm.eps, out)


def _add(w: kernels.Linear, x: kernels.Activation, to: kernels.Array, norm: Norm | None, b: _Buffers) -> None:
    """to += W x, or with a norm behind it."""
    if norm is None:
        kernels.linear(w, x, to, True)
        return
    assert b.branch is not None
    kernels.linear(w, x, b.branch)
    kernels.layernorm(b.branch, to.rows, norm.weight, norm.bias, norm.eps, b.normed)
    to.numpy()[:] += b.normed.floats()


def _attend(qkv: kernels.Array, e: Encoder, out: kernels.Array, window: int = 0) -> None:
    q, k, v = (qkv.part(0, qkv.rows, i * e.hidden_size, e.hidden_size) for i in range(3))
    kernels.attend_all(q, k, v, e.heads, (e.hidden_size // e.heads) ** -0.5, window, out)


def normed(x: kernels.Array, norm: Norm, out: Floats) -> Steps:
    """out = norm(x), which may be the same rows."""
    y = kernels.Activation(min(CHUNK, x.rows), x.cols, [], True)
    for begin, rows in _chunks(x.rows):
        kernels.layernorm(x.part(begin, rows, 0, x.cols), rows, norm.weight, norm.bias, norm.eps, y)
        out[begin : begin + rows] = y.floats()
        yield


def linear(
    x: kernels.Array, w: kernels.Linear, out: kernels.Array, norm: Norm | None = None, add: bool = False
) -> Steps:
    """out = W norm(x), or out += that."""
    inputs = kernels.Activation(min(CHUNK, x.rows), x.cols, [w])
    for begin, rows in _chunks(x.rows):
        _into(x.part(begin, rows, 0, x.cols), rows, norm, inputs)
        kernels.linear(w, inputs, out.part(begin, rows, 0, out.cols), add)
        yield


def mlp(x: kernels.Array, m: Mlp, activation: Activation, out: kernels.Array, add: bool = False) -> Steps:
    """out = down(activation(up(norm(x)))), or out += that."""
    chunk = min(CHUNK, x.rows)
    inputs, inner = kernels.Activation(chunk, x.cols, [m.up]), kernels.Array(chunk, m.up.rows)
    gated = kernels.Activation(chunk, m.up.rows, [m.down])
    for begin, rows in _chunks(x.rows):
        _into(x.part(begin, rows, 0, x.cols), rows, m.norm, inputs)
        kernels.linear(m.up, inputs, inner)
        kernels.gelu(inner, rows, activation, gated)
        kernels.linear(m.down, gated, out.part(begin, rows, 0, out.cols), add)
        yield


def gathered(x: kernels.Array, grid: Grid) -> kernels.Array:
    """Four patches of a window side by side, [patches / 4, 4 * width]."""
    rows = x.numpy()[windows(*grid)]
    out = kernels.Array(len(rows) // 4, 4 * x.cols)
    out.numpy()[:] = rows.reshape(len(rows) // 4, 4 * x.cols)
    return out


def _merge_windows(
    w: WindowMerger, e: Encoder, hidden: kernels.Array, grid: Grid
) -> Generator[None, None, tuple[kernels.Array, Grid]]:
    """One state for each window of 2 x 2, and the grid of windows."""
    n, size = hidden.rows, hidden.cols
    x = kernels.Array(n, size)
    x.numpy()[:] = hidden.numpy()[windows(*grid)]
    qkv, attended = kernels.Array(n, 3 * size), kernels.Array(n, size)
    yield from linear(x, w.attention.qkv, qkv, w.attention.norm)
    _attend(qkv, e, attended, 4)
    yield
    yield from linear(attended, w.attention.out, x, add=True)
    four = kernels.Array(n // 4, 4 * size)
    four.numpy()[:] = x.numpy().reshape(n // 4, 4 * size)
    parts = x.numpy().reshape(n // 4, 4, size)
    out = kernels.Array(n // 4, size)
    out.numpy()[:] = (parts[:, 0] + parts[:, 1] + parts[:, 2] + parts[:, 3]) * np.float32(0.25)
    yield from mlp(four, w.mlp, "gelu_tanh", out, add=True)
    return out, (grid[0] // 2, grid[1] // 2)

"""The numpy definition of every kernel and of the packed weight format.

Slow and plain on purpose: this is what the C++ of `src/` is tested against. Integer parts must be equal, float parts agree
to rounding (numpy has no fused multiply-add; `_fma` goes through float64). Shapes: T tokens, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.kernels import _native

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

PANEL_ROWS = 16
BLOCK = 32
SUPER = 8
EXACT = 512  # columns that share a scale where int16 meets int8


@dataclass(frozen=True, slots=True)
class Format:
    """How a GGUF type is packed: what its stored bits are (Values of src/panel.h), the style of the header, and the zero point that
    is taken off the value."""

    values: str
    style: str
    zero: int = 0


# From the extension, which packs in them; that they are right shows where panels are taken apart and compared with what the
# bytes of the file mean (tests/kernels).
FORMATS = {
    name: Format(values, style, zero) for name, _, _, values, style, zero in _native.weight_types() if style != "FLOAT"
}
# The table of IQ4_NL and IQ4_XS, with its zero point in it.
CODES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]) + 128


@dataclass(frozen=True, slots=True)
class Panels:
    """A packed matrix taken apart: w = d * scale * value - dmin * minimum.

    `values` [R, C] with the zero point already off; integer `scale` and `minimum` of every half block of 16 columns [R, C / 16];
    floats `d` and `dmin` of every group of columns whose activations share a scale: superblock or block [R, groups].
    The F16 styles have their scales in `d`, with 1 as the integer.
    """

    values: Ints
    scale: Ints
    minimum: Ints
    d: Floats
    dmin: Floats

    def weights(self) -> Floats:
        """The matrix as float32 [R, C]."""
        cols = self.values.shape[1]
        d, dmin = (np.repeat(x, cols // x.shape[1], axis=1) for x in (self.d, self.dmin))
        scale, minimum = (np.repeat(x, 16, axis=1) for x in (self.scale, self.minimum))
        out: Floats = d * (scale * self.values).astype(np.float32) - dmin * minimum.astype(np.float32)
        return out


def header_bytes(style: str, blocks: int) -> int:
    """Bytes of a superblock header, padded to whole vectors of 64 bytes."""
    sizes = {"F16": 32, "F16_MIN": 64, "K": 24, "K16": 32, "K16_MIN": 32, "K32": 16, "K256": 0}
    size = sizes[style] * blocks + 64 * (style in ("K", "K16_MIN"))
    return (size + 63) // 64 * 64


def panel_head_bytes(style: str, blocks: int) -> int:
    """Bytes at the beginning of a panel: d of all superblocks, of styles that have no dmin beside it."""
    return (blocks // SUPER * 32 + 63) // 64 * 64 if style in ("K16", "K32", "K256") else 0


def unpack_panels(packed: bytes, kind: str, rows: int, cols: int) -> Panels:
    """Reads the bytes that `kernels.pack` writes for a matrix [rows, cols] of GGUF type `kind` (src/panel.h)."""
    f = FORMATS[kind]
    panels = (rows + PANEL_ROWS - 1) // PANEL_ROWS
    data = np.frombuffer(packed, dtype=np.uint8).reshape(panels, -1)
    values = np.zeros((panels, PANEL_ROWS, cols), dtype=np.int64)
    headers = []
    blocks = cols // BLOCK
    at = head = panel_head_bytes(f.style, blocks)
    for first in range(0, blocks, SUPER):
        n = min(SUPER, blocks - first)
        size = header_bytes(f.style, n)
        header = data[:, at : at + size]
        if head:  # as if d stood before it, as it does in the other K styles
            header = np.concatenate([data[:, first // SUPER * 32 :][:, :64], header], axis=1)
        headers.append(_header(header, f.style, n))
        at += size
        for b in range(first, first + n):
            size = 64 * (4 if f.values == "IQ4" else int(f.values[1:]))
            values[:, :, b * BLOCK : (b + 1) * BLOCK] = _values(data[:, at : at + size], f.values) - f.zero
            at += size
    if at != data.shape[1]:
        raise ValueError(f"{kind} [{rows}, {cols}]: {data.shape[1]} bytes a panel, the format says {at}")
    parts = [values, *(np.concatenate(x, axis=-1) for x in zip(*headers, strict=True))]
    return Panels(*(x.reshape(panels * PANEL_ROWS, -1)[:rows] for x in parts))


def _header(h: Bytes, style: str, blocks: int) -> tuple[Ints, Ints, Floats, Floats]:
    """`scale`, `minimum`, `d` and `dmin` of Panels for one superblock, each [panels, 16 rows, ...]."""

    def f16(*offsets: int) -> Floats:
        columns = [np.ascontiguousarray(h[:, i : i + 32]).view(np.float16).astype(np.float32) for i in offsets]
        return np.stack(columns, axis=-1)

    def pairs(offsets: range, repeat: int) -> Ints:
        columns = [h[:, i : i + 32].reshape(-1, PANEL_ROWS, 2).astype(np.int64) for i in offsets]
        return np.repeat(np.concatenate(columns, axis=-1), repeat, axis=-1)

    if style in ("F16", "F16_MIN"):
        step = 32 if style == "F16" else 64
        d = f16(*(step * b for b in range(blocks)))
        dmin = -f16(*(step * b + 32 for b in range(blocks))) if style == "F16_MIN" else np.zeros_like(d)
        ones = np.ones((len(h), PANEL_ROWS, 2 * blocks), dtype=np.int64)
        return ones, ones, d, dmin
    d, none = f16(0), np.zeros((len(h), PANEL_ROWS, 2 * blocks), dtype=np.int64)
    if style == "K":
        both, upper = pairs(range(64, 192, 32), 1), pairs(range(192, 256, 32), 1)
        nibbles = [upper[..., i : i + 2] >> 4 * half & 15 for i in (0, 2) for half in (0, 1)]
        minimum = both >> 6 | np.concatenate(nibbles, axis=-1) << 2
        return np.repeat(both & 63, 2, axis=-1), np.repeat(minimum, 2, axis=-1), d, f16(32)
    if style == "K256":
        return none + 1, none, d, np.zeros_like(d)
    if style == "K16_MIN":
        both = pairs(range(64, 320, 32), 1)
        return both & 15, both >> 4, d, f16(32)
    scale = pairs(range(64, 192, 32), 2) if style == "K32" else pairs(range(64, 320, 32), 1)
    return scale.astype(np.uint8).view(np.int8).astype(np.int64), none, d, np.zeros_like(d)


# Where the 2-bit number of a group lies in its byte.
_TWO_BITS = (0, 0, 4, 4, 2, 2, 6, 6)


def _values(q: Bytes, kind: str) -> Ints:
    """Values of one block with their zero points, [panels, 16 rows, 32 columns]; S8 is signed, the others are not."""
    vectors = q.reshape(len(q), -1, PANEL_ROWS, 4).astype(np.int64)
    if kind == "U3":
        fourth = vectors[:, 0] >> 6 | vectors[:, 1] >> 6 << 2 | vectors[:, 2] >> 6 << 4
        vectors = np.concatenate([vectors, fourth[:, None]], axis=1)
    groups = []
    for g in range(8):
        if kind == "S8":
            value = vectors[:, g].astype(np.uint8).view(np.int8).astype(np.int64)
        elif kind == "U2":
            value = vectors[:, g & 1] >> _TWO_BITS[g] & 3
        elif kind == "U3":
            value = vectors[:, g & 3] >> 3 * (g >> 2) & 7
        else:
            value = vectors[:, g & 3] >> 4 * (g >> 2) & 15
            if kind == "IQ4":
                value = CODES[value]
            if kind == "U5":
                value = value | (vectors[:, 4] >> g & 1) << 4
            if kind == "U6":
                value = value | (vectors[:, 4 + (g & 1)] >> _TWO_BITS[g] & 3) << 4
        groups.append(value)
    return np.concatenate(groups, axis=-1)


def _inverse(top: Floats, most: int) -> Floats:
    """What brings `top` to `most`; 0 where that is beyond float."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Floats = np.float32(most) / top
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def quantize(x: Floats, group: int = BLOCK) -> tuple[Ints, Floats]:
    """Activations [T, C] to int8 values [T, C] and one scale for `group` columns [T, C / group]."""
    parts = x.reshape(len(x), -1, group)
    top = np.abs(parts).max(axis=-1)
    inverse = _inverse(top, 127)
    q = np.rint(parts * inverse[..., None]).astype(np.int64)
    return q.reshape(x.shape), (top / np.float32(127)).astype(np.float32)


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    out: Floats = (a.astype(np.float64) * b.astype(np.float64) + c).astype(np.float32)
    return out


def group_of(style: str) -> int:
    """Columns that share a scale of activations."""
    return BLOCK * SUPER if style.startswith("K") else BLOCK


def linear(w: Panels, style: str, q: Ints, scale: Floats) -> Floats:
    """Quantized activations times packed weights, [T, R]: group after group, integers first, then one float step.

    Minima meet the sum of the activations of their block or half block. K styles have integer scales and minima, times
    two floats of the superblock; everything but these is summed in integers.
    """
    out = np.zeros((len(q), len(w.values)), dtype=np.float32)
    step, minima = group_of(style), style in ("F16_MIN", "K", "K16_MIN")
    for g, c in enumerate(range(0, q.shape[1], step)):
        x, weights, halves = q[:, c : c + step], w.values[:, c : c + step], slice(c // 16, (c + step) // 16)
        total = (x @ (weights * np.repeat(w.scale[:, halves], 16, axis=1)).T).astype(np.float32)
        out = _fma(total, w.d[:, g] * scale[:, g, None], out)
        if minima:
            below = (x.reshape(len(x), -1, 16).sum(axis=-1) @ w.minimum[:, halves].T).astype(np.float32)
            out = _fma(-below, w.dmin[:, g] * scale[:, g, None], out)
    return out


def _narrow(x: Floats) -> Iterator[tuple[int, tuple[Ints, Floats]]]:
    """EXACT columns after the other: where they begin, their values in int16 and the scale of each row [T, 1]."""
    for begin in range(0, x.shape[1], EXACT):
        part = x[:, begin : begin + EXACT]
        top = np.abs(part).max(axis=1, keepdims=True)
        yield begin, (np.rint(part * _inverse(top, 32767)).astype(np.int64), top / np.float32(32767))


def _exact_lanes(x: Floats, a: npt.NDArray[np.floating | np.integer]) -> Floats:
    """[T, rank, 16]: of every 32 columns two to a lane."""
    lanes = np.zeros((len(x), len(a), 16), np.float32)
    for begin, (values, scales) in _narrow(x):
        weights = a[:, begin : begin + EXACT].astype(np.int64)
        products = np.pad(values[:, None] * weights, ((0, 0), (0, 0), (0, -values.shape[1] % 32)))
        sums = products.reshape(len(x), len(a), -1, 16, 2).sum(axis=(2, 4))
        lanes = _fma(sums.astype(np.float32), scales[..., None], lanes)
    return lanes


def _float_lanes(x: Floats, a: Floats) -> Floats:
    """[T, rank, 16]: every 16th column to a lane."""
    columns, weights = (np.pad(m, ((0, 0), (0, -x.shape[1] % 16))).reshape(len(m), -1, 16) for m in (x, a))
    lanes = np.zeros((len(x), len(a), 16), np.float32)
    for c in range(columns.shape[1]):
        lanes = _fma(weights[None, :, c], columns[:, None, c], lanes)
    return lanes


def low_rank(
    x: Floats,
    a: npt.NDArray[np.floating | np.integer],
    b: npt.NDArray[np.floating | np.integer],
    rank_factor: Floats,
    panel_factor: Floats,
    scale: float,
) -> Floats:
    """What an adapter adds to a linear layer, [T, R], in the order of C++: panel_factor (B (rank_factor * scale * A x)).

    A [rank, C], B [R, rank], a factor for each rank and for each 16 outputs. F32: 16 lanes sum every 16th column each, then halves
    onto halves; an output sums rank after rank from zero. Int8: x and A x in int16, EXACT values to a scale, whose products are
    summed exactly. Only the fused multiply-adds are rounded twice here.
    """
    exact = a.dtype == np.int8
    lanes = _exact_lanes(x, a) if exact else _float_lanes(x, a.astype(np.float32))
    while lanes.shape[-1] > 1:
        lanes = lanes[..., : lanes.shape[-1] // 2] + lanes[..., lanes.shape[-1] // 2 :]
    h = lanes[..., 0] * np.float32(scale) * rank_factor
    out = np.zeros((len(x), len(b)), np.float32)
    if exact:
        for begin, (values, scales) in _narrow(h):
            out += (values @ b[:, begin : begin + EXACT].T.astype(np.int64)).astype(np.float32) * scales
    else:
        for r in range(len(a)):
            out = _fma(b[None, :, r].astype(np.float32), h[:, r, None], out)
    return out * np.repeat(panel_factor, 16)[: len(b)]


def rmsnorm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    out: Floats = (x / np.sqrt(mean + eps) * weight).astype(np.float32)
    return out


def layernorm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis."""
    wide = x.astype(np.float64)
    centered = wide - wide.mean(axis=-1, keepdims=True)
    out: Floats = (centered / np.sqrt(np.mean(centered**2, axis=-1, keepdims=True) + eps) * weight + bias).astype(
        np.float32
    )
    return out


def gelu(x: Floats, kind: str) -> Floats:
    """x times the share of a normal distribution below it: by erf, by its tanh form, or x sigmoid(1.702 x)."""
    wide = x.astype(np.float64)
    if kind == "quick_gelu":
        out = wide / (1 + np.exp(np.minimum(-1.702 * wide, 700)))
    elif kind == "gelu_tanh":
        out = wide / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    else:
        out = wide / 2 * np.vectorize(lambda z: math.erfc(-z / math.sqrt(2)))(wide)
    narrow: Floats = out.astype(np.float32)
    return narrow


def attend_all(q: Floats, k: Floats, v: Floats, scale: float, window: int = 0) -> Floats:
    """q [T, N, H] over all k and v [S, N, H], or in groups of `window` rows over those of the same group. Returns [T, N, H]."""
    scores = np.einsum("tnh,snh->nts", q.astype(np.float64), k.astype(np.float64)) * scale
    if window:
        others = np.arange(len(q))[:, None] // window != np.arange(len(k))[None] // window
        scores = np.where(others[None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out: Floats = np.einsum("nts,snh->tnh", weights, v.astype(np.float64)).astype(np.float32)
    return out


def swiglu(gate_up: Floats) -> Floats:
    """[T, 2F] to [T, F]: silu(gate) * up."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    out: Floats = (gate / (1 + np.exp(-gate)) * up).astype(np.float32)
    return out


def swiglu_back(gate: Floats, up: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Gradients of gate and up, where d is that of silu(gate) * up."""
    g, u, dy = (x.astype(np.float64) for x in (gate, up, d))
    s = 1 / (1 + np.exp(-g))
    return (dy * u * s * (1 + g * (1 - s))).astype(np.float32), (dy * g * s).astype(np.float32)


def rmsnorm_back(x: Floats, weight: Floats, eps: float, d: Floats) -> tuple[Floats, Floats]:
    """Gradients of rows x [T, D] and of the weight, where d is that of rmsnorm."""
    wide, dy = x.astype(np.float64), d.astype(np.float64)
    r = 1 / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps)
    along = np.mean(dy * weight * wide, axis=-1, keepdims=True)
    dx = r * (dy * weight - wide * r**2 * along)
    return dx.astype(np.float32), (dy * wide * r).sum(0).astype(np.float32)


def rope(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotates pairs (i, i + half) of heads [T, N, H] by angles [T, half]; values past 2 * half stay."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


def attend(q: Floats, k: Floats, v: Floats, start: int, scale: float, window: int = 0) -> Floats:
    """Causal attention: q [T, N, H] at positions start ..., k and v [S, K, H] from position 0. Returns [T, N, H].

    window: positions that each sees, itself among them; 0: all.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("tnh,snh->nts", q.astype(np.float64), keys) * scale
    far = start + np.arange(q.shape[0])[:, None] - np.arange(k.shape[0])[None, :]
    hidden = (far < 0) | (far >= (window or len(k)))
    scores = np.where(hidden[None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out: Floats = np.einsum("nts,snh->tnh", weights, values).astype(np.float32)
    return out


def gated_delta(
    x: Floats, heads: tuple[int, int, int, int], filters: Floats, a: Floats, dt: Floats, norm: Floats, eps: float
) -> Floats:
    """Gated DeltaNet of one text from its beginning: rows [T, q | k | v | z | beta | alpha] to [T, V * H].

    heads: of keys K and values V, and their widths. filters [taps, channels], a and dt [V] (a below 0), norm [H]. Value head h
    looks at key head h % K. S = decay * S; S += k (beta (v - k S)); the output is q S, normed, times silu(z).
    """
    keys, values, k_dim, v_dim = heads
    channels, taps = 2 * keys * k_dim + values * v_dim, len(filters)
    rows = x.astype(np.float64)
    inputs = np.concatenate([np.zeros((taps - 1, channels)), rows[:, :channels]])
    mixed = sum(inputs[j : j + len(x)] * filters[j] for j in range(taps))
    mixed = mixed / (1 + np.exp(-mixed))
    q, k, v = np.split(mixed, [keys * k_dim, 2 * keys * k_dim], axis=1)
    q, k = (y.reshape(len(x), keys, k_dim) for y in (q, k))
    q, k = (y / np.sqrt(np.square(y).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
    z, b, alpha = np.split(rows[:, channels:], [values * v_dim, values * v_dim + values], axis=1)
    decay, beta = np.exp(a * np.log1p(np.exp(alpha + dt))), 1 / (1 + np.exp(-b))
    state, out = np.zeros((values, k_dim, v_dim)), np.empty((len(x), values, v_dim))
    of = np.arange(values) % keys
    for t in range(len(x)):
        state *= decay[t, :, None, None]
        wrong = v[t].reshape(values, v_dim) - np.einsum("vk,vkh->vh", k[t, of], state)
        state += np.einsum("vk,vh->vkh", k[t, of], wrong * beta[t, :, None])
        out[t] = np.einsum("vk,vkh->vh", q[t, of] / np.sqrt(k_dim), state)
    out = out / np.sqrt(np.square(out).mean(-1, keepdims=True) + eps) * norm
    gate = z.reshape(out.shape)
    result: Floats = (out * gate / (1 + np.exp(-gate))).reshape(len(x), -1).astype(np.float32)
    return result


def geglu(gate_up: Floats) -> Floats:
    """[T, 2F] to [T, F]: gelu(gate) * up, by the tangent."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    out: Floats = (0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up).astype(np.float32)
    return out


def sigmoid_gate(x: Floats, gate: Floats) -> Floats:
    """x * sigmoid(gate)."""
    out: Floats = (x / (1 + np.exp(-gate.astype(np.float64)))).astype(np.float32)
    return out


def through_int8(x: Floats) -> Floats:
    """What the int8 cache keeps of [..., H]: 16 values share an f16 scale."""
    parts = x.reshape(*x.shape[:-1], -1, 16)
    scale = (np.abs(parts).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    out: Floats = (np.clip(np.rint(parts * inverse), -127, 127) * scale).reshape(x.shape)
    return out


def spread(x: Floats) -> Floats:
    """The Hadamard transform of [..., H], unscaled, in blocks of the largest power of two that divides H."""
    block = x.shape[-1] & -x.shape[-1]
    out = x.reshape(-1, block).astype(np.float32)
    half = 1
    while half < block:
        pairs = out.reshape(len(out), -1, 2, half)
        out = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(out.shape)
        half *= 2
    return out.reshape(x.shape)


def through_int4(x: Floats) -> Floats:
    """What the 4-bit cache keeps of [..., H]: 32 values share an f16 scale, of which the furthest from 0 is -8."""
    parts = x.reshape(*x.shape[:-1], -1, 32)
    most, least = parts.max(axis=-1, keepdims=True), parts.min(axis=-1, keepdims=True)
    furthest = np.where(-least > most, least, most)
    scale = (furthest / np.float32(-8)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    out: Floats = (np.clip(np.rint(parts * inverse), -8, 7) * scale).reshape(x.shape)
    return out

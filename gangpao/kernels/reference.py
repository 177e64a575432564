"""The numpy definition of every kernel and of the packed weight format.

Slow and plain on purpose: this is what the C++ of `src/` is tested against. Integer parts must be equal, float parts agree
to rounding (numpy has no fused multiply-add; `_fma` goes through float64). Shapes: T tokens, R rows, C columns.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Format:
    """How a GGUF type is packed: bits of a stored value, style of the header, and the zero point taken off the value."""

    bits: int
    style: str
    zero: int = 0


# From the extension, which packs in them; that they are right shows where panels are taken apart and compared with what the
# bytes of the file mean (tests/kernels).
FORMATS = {
    name: Format(bits, style, zero) for name, _, _, bits, style, zero in _native.weight_types() if style != "FLOAT"
}


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
    size = {"F16": 32 * blocks, "F16_MIN": 64 * blocks}.get(style, 64 + 32 * blocks)
    return (size + 63) // 64 * 64


def unpack_panels(packed: bytes, kind: str, rows: int, cols: int) -> Panels:
    """Reads the bytes that `kernels.pack` writes for a matrix [rows, cols] of GGUF type `kind` (src/panel.h)."""
    f = FORMATS[kind]
    panels = (rows + PANEL_ROWS - 1) // PANEL_ROWS
    data = np.frombuffer(packed, dtype=np.uint8).reshape(panels, -1)
    values = np.zeros((panels, PANEL_ROWS, cols), dtype=np.int64)
    headers = []
    at, blocks = 0, cols // BLOCK
    for first in range(0, blocks, SUPER):
        n = min(SUPER, blocks - first)
        size = header_bytes(f.style, n)
        headers.append(_header(data[:, at : at + size], f.style, n))
        at += size
        for b in range(first, first + n):
            values[:, :, b * BLOCK : (b + 1) * BLOCK] = _values(data[:, at : at + 64 * f.bits], f.bits) - f.zero
            at += 64 * f.bits
    if at != data.shape[1]:
        raise ValueError(f"{kind} [{rows}, {cols}]: {data.shape[1]} bytes a panel, the format says {at}")
    parts = [values, *(np.concatenate(x, axis=-1) for x in zip(*headers, strict=True))]
    return Panels(*(x.reshape(panels * PANEL_ROWS, -1)[:rows] for x in parts))


def _header(h: Bytes, style: str, blocks: int) -> tuple[Ints, Ints, Floats, Floats]:
    """`scale`, `minimum`, `d` and `dmin` of Panels for one superblock, each [panels, 16 rows, ...]."""

    def f16(*offsets: int) -> Floats:
        columns = [np.ascontiguousarray(h[:, i : i + 32]).view(np.float16).astype(np.float32) for i in offsets]
        return np.stack(columns, axis=-1)

    def integers(offsets: range, repeat: int) -> Ints:
        columns = [h[:, i : i + 16].astype(np.int64) for i in offsets]
        return np.repeat(np.stack(columns, axis=-1), repeat, axis=-1)

    if style in ("F16", "F16_MIN"):
        step = 32 if style == "F16" else 64
        d = f16(*(step * b for b in range(blocks)))
        dmin = -f16(*(step * b + 32 for b in range(blocks))) if style == "F16_MIN" else np.zeros_like(d)
        ones = np.ones((len(h), PANEL_ROWS, 2 * blocks), dtype=np.int64)
        return ones, ones, d, dmin
    if style == "K":
        end = 64 + 32 * blocks
        return integers(range(64, end, 32), 2), integers(range(80, end, 32), 2), f16(0), f16(32)
    scale = integers(range(64, 64 + 32 * blocks, 16), 1)
    if style == "K16":
        signed = scale.astype(np.uint8).view(np.int8).astype(np.int64)
        return signed, np.zeros_like(scale), f16(0), np.zeros_like(f16(0))
    return scale & 15, scale >> 4, f16(0), f16(32)


def _values(q: Bytes, bits: int) -> Ints:
    """Stored values of one block, [panels, 16 rows, 32 columns]; 8 bits are signed, the others unsigned."""
    vectors = q.reshape(len(q), -1, PANEL_ROWS, 4).astype(np.int64)
    groups = []
    for g in range(8):
        if bits == 8:
            value = vectors[:, g].astype(np.uint8).view(np.int8).astype(np.int64)
        elif bits in (2, 3):
            value = vectors[:, g & 1] >> 2 * (g >> 1) & 3
            if bits == 3:
                value = value | (vectors[:, 2] >> g & 1) << 2
        else:
            value = vectors[:, g & 3] >> 4 * (g >> 2) & 15
            if bits == 5:
                value = value | (vectors[:, 4] >> g & 1) << 4
            if bits == 6:
                value = value | (vectors[:, 4 + (g & 1)] >> 2 * (g >> 1) & 3) << 4
        groups.append(value)
    return np.concatenate(groups, axis=-1)


def quantize(x: Floats, group: int = BLOCK) -> tuple[Ints, Floats]:
    """Activations [T, C] to int8 values [T, C] and one scale for `group` columns [T, C / group]."""
    parts = x.reshape(len(x), -1, group)
    top = np.abs(parts).max(axis=-1)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
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


def low_rank(
    x: Floats,
    a: npt.NDArray[np.floating | np.integer],
    b: npt.NDArray[np.floating | np.integer],
    rank_factor: Floats,
    panel_factor: Floats,
    scale: float,
) -> Floats:
    """What an adapter adds to a linear layer, [T, R], in the order of C++: panel_factor (B (rank_factor * scale * A x)).

    A [rank, C], B [R, rank], a factor for each rank and for each 16 outputs. 16 lanes sum every 16th column each, then halves onto
    halves; an output sums rank after rank from zero. Only the fused multiply-adds are rounded twice here.
    """
    pad = -x.shape[1] % 16
    columns, weights = (np.pad(m.astype(np.float32), ((0, 0), (0, pad))).reshape(len(m), -1, 16) for m in (x, a))
    lanes = np.zeros((len(x), len(a), 16), np.float32)
    for c in range(columns.shape[1]):
        lanes = _fma(weights[None, :, c], columns[:, None, c], lanes)
    while lanes.shape[-1] > 1:
        lanes = lanes[..., : lanes.shape[-1] // 2] + lanes[..., lanes.shape[-1] // 2 :]
    h = lanes[..., 0] * np.float32(scale) * rank_factor
    out = np.zeros((len(x), len(b)), np.float32)
    for r in range(len(a)):
        out = _fma(b[None, :, r].astype(np.float32), h[:, r, None], out)
    return out * np.repeat(panel_factor, 16)[: len(b)]


def rmsnorm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    out: Floats = (x / np.sqrt(mean + eps) * weight).astype(np.float32)
    return out


def swiglu(gate_up: Floats) -> Floats:
    """[T, 2F] to [T, F]: silu(gate) * up."""
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    out: Floats = (gate / (1 + np.exp(-gate)) * up).astype(np.float32)
    return out


def rope(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotates pairs (i, i + half) of heads [T, N, H] by angles [T, half]; values past 2 * half stay."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


def attend(q: Floats, k: Floats, v: Floats, start: int, scale: float) -> Floats:
    """Causal attention: q [T, N, H] at positions start ..., k and v [S, K, H] from position 0. Returns [T, N, H]."""
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("tnh,snh->nts", q.astype(np.float64), keys) * scale
    hidden = np.arange(k.shape[0])[None, :] > start + np.arange(q.shape[0])[:, None]
    scores = np.where(hidden[None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out: Floats = np.einsum("nts,snh->tnh", weights, values).astype(np.float32)
    return out


def through_int8(x: Floats) -> Floats:
    """What the int8 cache keeps of [..., H]: 16 values share an f16 scale."""
    parts = x.reshape(*x.shape[:-1], -1, 16)
    scale = (np.abs(parts).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    out: Floats = (np.clip(np.rint(parts * inverse), -127, 127) * scale).reshape(x.shape)
    return out

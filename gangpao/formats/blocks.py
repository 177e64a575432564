"""The weight blocks of GGUF files: their sizes, and what the bytes mean, in numpy.

A tensor row is a run of blocks; a block holds 32 or 256 weights as small integers with shared scales. Each function
below takes uint8 blocks [n, bytes] and gives float32 weights [n, weights], in the same float steps as ggml, so results equal
the `gguf` package bit for bit (tested). Layouts: ggml-common.h of ggml. Types with codebooks (IQ*) are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockType:
    """One GGUF weight type: name, ggml id, weights in a block and bytes of a block."""

    name: str
    id: int
    block_size: int
    type_size: int

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row; `cols` must be whole blocks."""
        return cols // self.block_size * self.type_size


_TYPES = (
    BlockType("F32", 0, 1, 4),
    BlockType("F16", 1, 1, 2),
    BlockType("Q4_0", 2, 32, 18),
    BlockType("Q4_1", 3, 32, 20),
    BlockType("Q5_0", 6, 32, 22),
    BlockType("Q5_1", 7, 32, 24),
    BlockType("Q8_0", 8, 32, 34),
    BlockType("Q2_K", 10, 256, 84),
    BlockType("Q3_K", 11, 256, 110),
    BlockType("Q4_K", 12, 256, 144),
    BlockType("Q5_K", 13, 256, 176),
    BlockType("Q6_K", 14, 256, 210),
    BlockType("BF16", 30, 1, 2),
    BlockType("TQ1_0", 34, 256, 54),
    BlockType("TQ2_0", 35, 256, 66),
)
BY_ID = {t.id: t for t in _TYPES}
BY_NAME = {t.name: t for t in _TYPES}

# Known to ggml, unknown to us: named so that a refusal can say what the file holds.
UNSUPPORTED = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


def _f16(b: Bytes) -> Floats:
    return np.ascontiguousarray(b).view(np.float16).astype(np.float32)


def _nibbles(q: Bytes) -> Bytes:
    """[n, k] bytes to [n, 2k]: all low nibbles, then all high ones."""
    return np.concatenate([q & 15, q >> 4], axis=-1)


def _fifth_bits(b: Bytes) -> Bytes:
    """Four bytes [n, 4] as 32 bits [n, 32], each worth 16."""
    return np.unpackbits(b, axis=-1, bitorder="little") * np.uint8(16)


def _q4_0(b: Bytes) -> Floats:
    return _f16(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def _q4_1(b: Bytes) -> Floats:
    return _f16(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _f16(b[:, 2:4])


def _q5_0(b: Bytes) -> Floats:
    q = (_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).astype(np.int8) - np.int8(16)
    return _f16(b[:, :2]) * q.astype(np.float32)


def _q5_1(b: Bytes) -> Floats:
    q = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _f16(b[:, :2]) * q.astype(np.float32) + _f16(b[:, 2:4])


def _q8_0(b: Bytes) -> Floats:
    return _f16(b[:, :2]) * b[:, 2:].view(np.int8).astype(np.float32)


def _six_bit_pairs(s: Bytes) -> tuple[Floats, Floats]:
    """Twelve bytes [n, 12] as eight scales and eight minima [n, 8, 1] of 6 bits."""
    a, b, c = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=-1)
    minimum = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=-1)
    return scale.astype(np.float32)[..., None], minimum.astype(np.float32)[..., None]


def _pairs_of_32(q: Bytes) -> Bytes:
    """[n, 128] bytes to [n, 8, 32]: 32 low nibbles, then the high ones of the same bytes, four times."""
    q = q.reshape(-1, 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(b: Bytes) -> Floats:
    scale, minimum = _six_bit_pairs(b[:, 4:16])
    d, low = _f16(b[:, :2])[..., None] * scale, _f16(b[:, 2:4])[..., None] * minimum
    return (d * _pairs_of_32(b[:, 16:]).astype(np.float32) - low).reshape(len(b), 256)


def _q5_k(b: Bytes) -> Floats:
    scale, minimum = _six_bit_pairs(b[:, 4:16])
    d, low = _f16(b[:, :2])[..., None] * scale, _f16(b[:, 2:4])[..., None] * minimum
    bits = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = _pairs_of_32(b[:, 48:]) | bits << 4
    return (d * q.astype(np.float32) - low).reshape(len(b), 256)


def _q6_k(b: Bytes) -> Floats:
    low = b[:, :128].reshape(-1, 2, 1, 64)
    high = b[:, 128:192].reshape(-1, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    bits = high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    q = (nibbles | bits << 4).astype(np.int8) - np.int8(32)
    d = _f16(b[:, 208:210]) * b[:, 192:208].view(np.int8).astype(np.float32)
    out: Floats = (d[..., None] * q.reshape(-1, 16, 16).astype(np.float32)).reshape(len(b), 256)
    return out


def _two_bits(q: Bytes) -> Bytes:
    """[n, 64] bytes to [n, 256]: of each 32 bytes first all lowest pairs of bits, then the next."""
    out: Bytes = (q.reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & np.uint8(3)).reshape(-1, 256)
    return out


def _q2_k(b: Bytes) -> Floats:
    scale, minimum = (b[:, :16] & 15).astype(np.float32), (b[:, :16] >> 4).astype(np.float32)
    d, low = _f16(b[:, 80:82]) * scale, _f16(b[:, 82:84]) * minimum
    q = _two_bits(b[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return (d[..., None] * q - low[..., None]).reshape(len(b), 256)


def _q3_k(b: Bytes) -> Floats:
    bits = b[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = (_two_bits(b[:, 32:96]) | bits.reshape(-1, 256) << 2).astype(np.int8) - np.int8(4)
    s, top = b[:, 96:104], b[:, 104:108]
    low = np.concatenate([s & 15, s >> 4], axis=-1)
    high = (top[:, None, :] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3).reshape(-1, 16)
    scale = (low | high << 4).astype(np.int8) - np.int8(32)
    d = _f16(b[:, 108:110]) * scale.astype(np.float32)
    out: Floats = (d[..., None] * q.reshape(-1, 16, 16).astype(np.float32)).reshape(len(b), 256)
    return out


def _trits(q: Bytes, powers: int) -> Bytes:
    """[n, k] bytes to [n, powers * k] base-3 digits: digit i is the top of (byte * 3^i mod 256) * 3 / 256."""
    scaled = q[:, None, :] * np.array([1, 3, 9, 27, 81][:powers], dtype=np.uint8)[:, None]
    return (scaled.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(q), -1)


def _tq1_0(b: Bytes) -> Floats:
    q = np.concatenate([_trits(b[:, :32], 5), _trits(b[:, 32:48], 5), _trits(b[:, 48:52], 4)], axis=-1)
    return _f16(b[:, 52:54]) * (q.astype(np.int8) - np.int8(1)).astype(np.float32)


def _tq2_0(b: Bytes) -> Floats:
    return _f16(b[:, 64:66]) * (_two_bits(b[:, :64]).astype(np.int8) - np.int8(1)).astype(np.float32)


_READERS: dict[str, Callable[[Bytes], Floats]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0,
}  # fmt: skip


def dequantize(raw: Bytes, kind: str) -> Floats:
    """GGUF rows, uint8 [rows, row_bytes], as float32 [rows, cols].

    Raises ValueError for an unknown type or rows that are not whole blocks.
    """
    block = BY_NAME.get(kind)
    if block is None:
        raise ValueError(f"weights of type {kind} are not supported; known are {', '.join(BY_NAME)}")
    if raw.ndim != 2 or raw.dtype != np.uint8 or raw.shape[1] % block.type_size:
        raise ValueError(f"{kind} rows must be uint8 [rows, n * {block.type_size}], got {raw.dtype} {raw.shape}")
    raw = np.ascontiguousarray(raw)
    if kind == "F32":
        return raw.view(np.float32).copy()
    if kind == "F16":
        return raw.view(np.float16).astype(np.float32)
    if kind == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # damaged scales: infinities are for the caller to judge
        return _READERS[kind](raw.reshape(-1, block.type_size)).reshape(len(raw), -1)

"""The weight types of GGUF files, one row each: number, size of a block, and what its bytes mean, in numpy.

A tensor row is a run of blocks; a block holds 32 or 256 weights as small integers with shared scales. Readers take uint8 blocks
[n, bytes] and give float32 weights [n, weights], in the same float steps as ggml; writers are the inverse, with ggml's reference
rounding. So weights and bytes equal those of the `gguf` package bit for bit (tested). Layouts: ggml-common.h of ggml.

What is written are the types that need no search; K-quants and importance matrices belong to compress/. Types with codebooks
(IQ*) are refused by name. A type that the engine is to run needs a row here and one in kernels/src/pack.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Written:
    """How a type is written. file_type: its number in general.file_type. write: rows [R, C] to blocks or numbers. step: how far a
    value may move on its way, as a share of the largest one in its block of 32 (rounding of the scale included)."""

    file_type: int
    write: Callable[[Floats], npt.NDArray[np.generic]]
    step: float


@dataclass(frozen=True, slots=True)
class BlockType:
    """One GGUF weight type: name, ggml id, weights in a block, bytes of a block, and how it is read and (if it is) written."""

    name: str
    id: int
    block_size: int
    type_size: int
    read: Callable[[Bytes], Floats]
    written: Written | None = None

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row; `cols` must be whole blocks."""
        return cols // self.block_size * self.type_size


class Unwritable(ValueError):
    """A value that has no place in a type: in which row of what was given, and what about it."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f"row {row}: {what}")
        self.row, self.what = row, what


# --- reading


def _read_f32(b: Bytes) -> Floats:
    return b.view(np.float32).copy()


def _read_bf16(b: Bytes) -> Floats:
    return (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _f16(b: Bytes) -> Floats:
    return np.ascontiguousarray(b).view(np.float16).astype(np.float32)


def _split_nibbles(q: Bytes) -> Bytes:
    """[n, k] bytes to [n, 2k]: all low nibbles, then all high ones."""
    return np.concatenate([q & 15, q >> 4], axis=-1)


def _fifth_bits(b: Bytes) -> Bytes:
    """Four bytes [n, 4] as 32 bits [n, 32], each worth 16."""
    return np.unpackbits(b, axis=-1, bitorder="little") * np.uint8(16)


def _read_q4_0(b: Bytes) -> Floats:
    return _f16(b[:, :2]) * (_split_nibbles(b[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def _read_q4_1(b: Bytes) -> Floats:
    return _f16(b[:, :2]) * _split_nibbles(b[:, 4:]).astype(np.float32) + _f16(b[:, 2:4])


def _read_q5_0(b: Bytes) -> Floats:
    q = (_split_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).astype(np.int8) - np.int8(16)
    return _f16(b[:, :2]) * q.astype(np.float32)


def _read_q5_1(b: Bytes) -> Floats:
    q = _split_nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _f16(b[:, :2]) * q.astype(np.float32) + _f16(b[:, 2:4])


def _read_q8_0(b: Bytes) -> Floats:
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


def _read_q4_k(b: Bytes) -> Floats:
    scale, minimum = _six_bit_pairs(b[:, 4:16])
    d, low = _f16(b[:, :2])[..., None] * scale, _f16(b[:, 2:4])[..., None] * minimum
    return (d * _pairs_of_32(b[:, 16:]).astype(np.float32) - low).reshape(len(b), 256)


def _read_q5_k(b: Bytes) -> Floats:
    scale, minimum = _six_bit_pairs(b[:, 4:16])
    d, low = _f16(b[:, :2])[..., None] * scale, _f16(b[:, 2:4])[..., None] * minimum
    bits = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = _pairs_of_32(b[:, 48:]) | bits << 4
    return (d * q.astype(np.float32) - low).reshape(len(b), 256)


def _read_q6_k(b: Bytes) -> Floats:
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


def _read_q2_k(b: Bytes) -> Floats:
    scale, minimum = (b[:, :16] & 15).astype(np.float32), (b[:, :16] >> 4).astype(np.float32)
    d, low = _f16(b[:, 80:82]) * scale, _f16(b[:, 82:84]) * minimum
    q = _two_bits(b[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return (d[..., None] * q - low[..., None]).reshape(len(b), 256)


def _read_q3_k(b: Bytes) -> Floats:
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


def _read_tq1_0(b: Bytes) -> Floats:
    q = np.concatenate([_trits(b[:, :32], 5), _trits(b[:, 32:48], 5), _trits(b[:, 48:52], 4)], axis=-1)
    return _f16(b[:, 52:54]) * (q.astype(np.int8) - np.int8(1)).astype(np.float32)


def _read_tq2_0(b: Bytes) -> Floats:
    return _f16(b[:, 64:66]) * (_two_bits(b[:, :64]).astype(np.int8) - np.int8(1)).astype(np.float32)


# --- writing

_SMALL = 32  # weights in a block of the types that are written
_LARGEST_F16 = 65504.0


def _first(values: npt.NDArray[np.floating], wrong: npt.NDArray[np.bool_]) -> tuple[int, float]:
    """Row and value of the first wrong one in [R, ...]."""
    at = int(np.argmax(wrong))
    return at // (values.size // len(values)), float(values.flat[at])


def _write_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    if (grown := (rounded & 0x7FFF) == 0x7F80).any():
        row, value = _first(values, grown)
        raise Unwritable(row, f"a value of {value:g}, and BF16 ends at 3.39e38; take F32")
    return rounded.astype(np.uint16)


def _write_f16(values: Floats, what: str = "value", advice: str = "BF16 or Q8_0") -> npt.NDArray[np.float16]:
    """As F16. Raises Unwritable for one past its end; `what` the values [R, ...] are."""
    if (grown := np.abs(values) > _LARGEST_F16).any():
        row, value = _first(values, grown)
        raise Unwritable(row, f"a {what} of {value:g}, and F16 ends at 65,504; take {advice}")
    return values.astype(np.float16)


def _scales(values: Floats, rows: int) -> Bytes:
    """Scales of the blocks [N, 1] of so many rows, to bytes [N, 2]."""
    return _write_f16(values.reshape(rows, -1), "scale of a block", "BF16 or F32").reshape(-1, 1).view(np.uint8)


def _blocks(values: Floats) -> Floats:
    return values.reshape(-1, _SMALL)


def _inverse(scale: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale).astype(np.float32)


def _round_half_away(values: Floats) -> Floats:
    """Round half away from zero, as C's roundf."""
    whole = np.trunc(values)
    return whole + np.trunc(2 * (values - whole))


def _write_q8_0(values: Floats) -> Bytes:
    b = _blocks(values)
    d = np.abs(b).max(axis=1, keepdims=True) / np.float32(127)
    q = _round_half_away(b * _inverse(d)).astype(np.int8)
    return np.concatenate([_scales(d, len(values)), q.view(np.uint8)], axis=1)


def _join_nibbles(q: Bytes) -> Bytes:
    return q[:, : _SMALL // 2] | np.left_shift(q[:, _SMALL // 2 :], 4, dtype=np.uint8)


def _write_q4_0(values: Floats) -> Bytes:
    b = _blocks(values)
    at = np.abs(b).argmax(axis=1)[:, None]
    d = np.take_along_axis(b, at, axis=1) / np.float32(-8)
    q = np.trunc(b * _inverse(d) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_scales(d, len(values)), _join_nibbles(q)], axis=1)


def _write_q4_1(values: Floats) -> Bytes:
    b = _blocks(values)
    low = b.min(axis=1, keepdims=True)
    d = (b.max(axis=1, keepdims=True) - low) / np.float32(15)
    q = np.trunc((b - low) * _inverse(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    head = [_scales(d, len(values)), _scales(low, len(values))]
    return np.concatenate([*head, _join_nibbles(q)], axis=1)


def _write_f32(values: Floats) -> Floats:
    return values


# --- the types

TYPES = (
    BlockType("F32", 0, 1, 4, _read_f32, Written(0, _write_f32, 0.0)),
    BlockType("F16", 1, 1, 2, _f16, Written(1, _write_f16, 2**-11)),
    BlockType("Q4_0", 2, 32, 18, _read_q4_0, Written(2, _write_q4_0, 1 / 8)),
    BlockType("Q4_1", 3, 32, 20, _read_q4_1, Written(3, _write_q4_1, 2 / 15)),
    BlockType("Q5_0", 6, 32, 22, _read_q5_0),
    BlockType("Q5_1", 7, 32, 24, _read_q5_1),
    BlockType("Q8_0", 8, 32, 34, _read_q8_0, Written(7, _write_q8_0, 1 / 127)),
    BlockType("Q2_K", 10, 256, 84, _read_q2_k),
    BlockType("Q3_K", 11, 256, 110, _read_q3_k),
    BlockType("Q4_K", 12, 256, 144, _read_q4_k),
    BlockType("Q5_K", 13, 256, 176, _read_q5_k),
    BlockType("Q6_K", 14, 256, 210, _read_q6_k),
    BlockType("BF16", 30, 1, 2, _read_bf16, Written(32, _write_bf16, 2**-8)),
    BlockType("TQ1_0", 34, 256, 54, _read_tq1_0),
    BlockType("TQ2_0", 35, 256, 66, _read_tq2_0),
)
BY_ID = {t.id: t for t in TYPES}
BY_NAME = {t.name: t for t in TYPES}
WRITTEN = {t.name: t.written for t in TYPES if t.written}

# Known to ggml, unknown to us: named so that a refusal can say what the file holds.
UNSUPPORTED = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 39: "MXFP4", 40: "NVFP4",
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
    if block.block_size == 1:
        return block.read(raw)
    with np.errstate(invalid="ignore", over="ignore"):  # damaged scales: infinities are for the caller to judge
        return block.read(raw.reshape(-1, block.type_size)).reshape(len(raw), -1)


def quantize(values: Floats, kind: str) -> Bytes:
    """Rows [R, C] to bytes [R, row bytes]; C must be whole blocks (`fits`).

    Raises Unwritable for a value that is no finite number, and for one that the type cannot hold.
    """
    if kind not in WRITTEN:
        raise ValueError(f"{kind!r:.40} is not a type we write; choose one of {', '.join(WRITTEN)}")
    values = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        row, value = _first(values, ~finite)
        raise Unwritable(
            row, f"{value:g} is no number to compute with: the checkpoint is damaged or its training diverged"
        )
    with np.errstate(over="ignore"):  # what grew too large is found by _write_f16 and _write_bf16
        return np.ascontiguousarray(WRITTEN[kind].write(values)).view(np.uint8).reshape(len(values), -1)


def fits(cols: int, kind: str) -> bool:
    """Whether a row of this many columns is whole blocks."""
    return cols % BY_NAME[kind].block_size == 0

"""Where the numbers of a GGUF block lie: bytes [n, bytes of a block] to `Fields` and back, a pair of functions for each type.

A weight is d * scale * value - dmin * minimum. Layouts: ggml-common.h of ggml. `pack` is the inverse of `unpack` for all blocks
that a writer makes (TQ1_0 has spare bit patterns, which come back as the usual ones).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Shorts = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]

# What the four bits of an IQ4 weight mean: a table of ggml, dense in the middle as weights are.
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_IQ4 = np.array(IQ4_LEVELS, np.int16)


@dataclass(frozen=True, slots=True)
class Fields:
    """n blocks taken apart: values [n, weights] with the zero point off; integer scale and minimum [n, groups], 1 and 0 where a
    type has none; d and dmin [n, 1]."""

    values: Shorts
    scale: Shorts
    minimum: Shorts
    d: Floats
    dmin: Floats

    def weights(self) -> Floats:
        """float32 [n, weights], in the float steps of ggml's readers."""
        n, groups = self.scale.shape
        step, low = (self.d * self.scale.astype(np.float32)), (self.dmin * self.minimum.astype(np.float32))
        out: Floats = step[..., None] * self.values.reshape(n, groups, -1).astype(np.float32) - low[..., None]
        return out.reshape(n, -1)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a type's blocks are taken apart and put together. group: weights that share an integer scale. levels: what a value
    may be, in rising order."""

    group: int
    levels: tuple[int, ...]
    unpack: Callable[[Bytes], Fields]
    pack: Callable[[Fields], Bytes]

    def read(self, raw: Bytes) -> Floats:
        """Blocks [n, bytes] as weights float32 [n, weights]."""
        return self.unpack(raw).weights()


# --- numbers


def _f16(b: Bytes) -> Floats:
    return np.ascontiguousarray(b).view(np.float16).astype(np.float32)


def _half(x: Floats) -> Bytes:
    return x.astype(np.float16).view(np.uint8)


def _split_nibbles(q: Bytes) -> Bytes:
    """[n, k] bytes to [n, 2k]: all low nibbles, then all high ones."""
    return np.concatenate([q & 15, q >> 4], axis=-1)


def join_nibbles(q: Integers) -> Bytes:
    half = q.shape[-1] // 2
    out: Bytes = (q[..., :half] | np.left_shift(q[..., half:], 4)).astype(np.uint8)
    return out


def _pairs_of_32(q: Bytes) -> Bytes:
    """[n, 128] bytes to [n, 256]: 32 low nibbles, then the high ones of the same bytes, four times."""
    return _split_nibbles(q.reshape(-1, 4, 32)).reshape(-1, 256)


def _join_pairs_of_32(q: Integers) -> Bytes:
    return join_nibbles(q.reshape(-1, 4, 64)).reshape(-1, 128)


_TWO = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
_ONE = np.arange(8, dtype=np.uint8)[:, None]


def _two_bits(q: Bytes) -> Bytes:
    """[n, k] bytes to [n, 4k]: of each 32 bytes first all lowest pairs of bits, then the next."""
    out: Bytes = (q.reshape(len(q), -1, 1, 32) >> _TWO & np.uint8(3)).reshape(len(q), -1)
    return out


def _join_two_bits(q: Integers) -> Bytes:
    shifted = np.left_shift(q.reshape(len(q), -1, 4, 32), _TWO).astype(np.uint8)
    out: Bytes = np.bitwise_or.reduce(shifted, axis=2).reshape(len(q), -1)
    return out


def _one_bit(b: Bytes) -> Bytes:
    """[n, 32] bytes to [n, 256] bits: all lowest bits first."""
    out: Bytes = (b[:, None] >> _ONE & np.uint8(1)).reshape(len(b), 256)
    return out


def _join_one_bit(q: Integers) -> Bytes:
    out: Bytes = np.bitwise_or.reduce(np.left_shift(q.reshape(-1, 8, 32), _ONE).astype(np.uint8), axis=1)
    return out


def _stored(f: Fields, zero: int) -> Bytes:
    return (f.values + np.int16(zero)).astype(np.uint8)


def _plain(values: Integers, zero: int, d: Floats) -> Fields:
    """Blocks with one scale."""
    ones = np.ones((len(values), values.shape[1] // 32), np.int16)
    return Fields(values.astype(np.int16) - np.int16(zero), ones, ones * np.int16(0), d, np.zeros_like(d))


def _with_offset(values: Bytes, d: Floats, m: Floats) -> Fields:
    """Blocks with one scale and a float that is added."""
    ones = np.ones((len(values), 1), np.int16)
    return Fields(values.astype(np.int16), ones, ones, d, -m)


# --- 32 weights


def _unpack_q4_0(b: Bytes) -> Fields:
    return _plain(_split_nibbles(b[:, 2:]), 8, _f16(b[:, :2]))


def _pack_q4_0(f: Fields) -> Bytes:
    return np.concatenate([_half(f.d), join_nibbles(_stored(f, 8))], axis=1)


def _unpack_q4_1(b: Bytes) -> Fields:
    return _with_offset(_split_nibbles(b[:, 4:]), _f16(b[:, :2]), _f16(b[:, 2:4]))


def _pack_q4_1(f: Fields) -> Bytes:
    return np.concatenate([_half(f.d), _half(-f.dmin), join_nibbles(_stored(f, 0))], axis=1)


def _fifth_bits(b: Bytes) -> Bytes:
    """Four bytes [n, 4] as 32 bits [n, 32], each worth 16."""
    return np.unpackbits(b, axis=-1, bitorder="little") * np.uint8(16)


def _with_fifth(q: Bytes) -> Bytes:
    """The fifth bits of 32 values, and then their nibbles."""
    return np.concatenate([np.packbits(q >> 4, axis=-1, bitorder="little"), join_nibbles(q & 15)], axis=1)


def _unpack_q5_0(b: Bytes) -> Fields:
    return _plain(_split_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6]), 16, _f16(b[:, :2]))


def _pack_q5_0(f: Fields) -> Bytes:
    return np.concatenate([_half(f.d), _with_fifth(_stored(f, 16))], axis=1)


def _unpack_q5_1(b: Bytes) -> Fields:
    return _with_offset(_split_nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8]), _f16(b[:, :2]), _f16(b[:, 2:4]))


def _pack_q5_1(f: Fields) -> Bytes:
    return np.concatenate([_half(f.d), _half(-f.dmin), _with_fifth(_stored(f, 0))], axis=1)


def _unpack_q8_0(b: Bytes) -> Fields:
    return _plain(b[:, 2:].view(np.int8), 0, _f16(b[:, :2]))


def _pack_q8_0(f: Fields) -> Bytes:
    return np.concatenate([_half(f.d), f.values.astype(np.int8).view(np.uint8)], axis=1)


def _unpack_iq4_nl(b: Bytes) -> Fields:
    return _plain(_IQ4[_split_nibbles(b[:, 2:])], 0, _f16(b[:, :2]))


def _iq4_numbers(f: Fields) -> Bytes:
    return np.searchsorted(_IQ4, f.values).astype(np.uint8)


def _pack_iq4_nl(f: Fields) -> Bytes:
    return np.concatenate([_half(f.d), join_nibbles(_iq4_numbers(f))], axis=1)


# --- 256 weights


def _six_bit_pairs(s: Bytes) -> tuple[Shorts, Shorts]:
    """Twelve bytes [n, 12] as eight scales and eight minima [n, 8] of 6 bits."""
    a, b, c = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=-1)
    minimum = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=-1)
    return scale.astype(np.int16), minimum.astype(np.int16)


def _join_six_bit_pairs(f: Fields) -> Bytes:
    s, m = f.scale.astype(np.uint8), f.minimum.astype(np.uint8)
    first = [x[:, :4] | np.left_shift(x[:, 4:] >> 4, 6, dtype=np.uint8) for x in (s, m)]
    return np.concatenate([*first, (s[:, 4:] & 15) | np.left_shift(m[:, 4:] & 15, 4, dtype=np.uint8)], axis=1)


def _unpack_q4_k(b: Bytes) -> Fields:
    values = _pairs_of_32(b[:, 16:]).astype(np.int16)
    return Fields(values, *_six_bit_pairs(b[:, 4:16]), _f16(b[:, :2]), _f16(b[:, 2:4]))


def _pack_q4_k(f: Fields) -> Bytes:
    return np.concatenate([_half(f.d), _half(f.dmin), _join_six_bit_pairs(f), _join_pairs_of_32(_stored(f, 0))], axis=1)


def _unpack_q5_k(b: Bytes) -> Fields:
    values = (_pairs_of_32(b[:, 48:]) | _one_bit(b[:, 16:48]) << 4).astype(np.int16)
    return Fields(values, *_six_bit_pairs(b[:, 4:16]), _f16(b[:, :2]), _f16(b[:, 2:4]))


def _pack_q5_k(f: Fields) -> Bytes:
    q = _stored(f, 0)
    parts = [_half(f.d), _half(f.dmin), _join_six_bit_pairs(f), _join_one_bit(q >> 4), _join_pairs_of_32(q & 15)]
    return np.concatenate(parts, axis=1)


def _signed(values: Integers, zero: int, scale: Shorts, d: Floats) -> Fields:
    """Blocks of 256 without minima."""
    return Fields(values.astype(np.int16) - np.int16(zero), scale, np.zeros_like(scale), d, np.zeros_like(d))


def _unpack_q6_k(b: Bytes) -> Fields:
    q = _split_nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 256) | _two_bits(b[:, 128:192]) << 4
    return _signed(q, 32, b[:, 192:208].view(np.int8).astype(np.int16), _f16(b[:, 208:210]))


def _pack_q6_k(f: Fields) -> Bytes:
    q = _stored(f, 32)
    low = join_nibbles((q & 15).reshape(-1, 2, 128)).reshape(-1, 128)
    return np.concatenate([low, _join_two_bits(q >> 4), f.scale.astype(np.int8).view(np.uint8), _half(f.d)], axis=1)


def _unpack_q2_k(b: Bytes) -> Fields:
    scale, minimum = (b[:, :16] & 15).astype(np.int16), (b[:, :16] >> 4).astype(np.int16)
    return Fields(_two_bits(b[:, 16:80]).astype(np.int16), scale, minimum, _f16(b[:, 80:82]), _f16(b[:, 82:84]))


def _pack_q2_k(f: Fields) -> Bytes:
    head = f.scale.astype(np.uint8) | np.left_shift(f.minimum, 4).astype(np.uint8)
    return np.concatenate([head, _join_two_bits(_stored(f, 0)), _half(f.d), _half(f.dmin)], axis=1)


def _unpack_q3_k(b: Bytes) -> Fields:
    q = _two_bits(b[:, 32:96]) | _one_bit(b[:, :32]) << 2
    high = (b[:, None, 104:108] >> _TWO & np.uint8(3)).reshape(-1, 16)
    scale = (_split_nibbles(b[:, 96:104]) | high << 4).astype(np.int16) - np.int16(32)
    return _signed(q, 4, scale, _f16(b[:, 108:110]))


def _pack_q3_k(f: Fields) -> Bytes:
    q, s = _stored(f, 4), (f.scale + np.int16(32)).astype(np.uint8)
    high = np.bitwise_or.reduce(np.left_shift((s >> 4).reshape(-1, 4, 4), _TWO, dtype=np.uint8), axis=1)
    return np.concatenate(
        [_join_one_bit(q >> 2), _join_two_bits(q & 3), join_nibbles(s & 15), high, _half(f.d)], axis=1
    )


def _unpack_iq4_xs(b: Bytes) -> Fields:
    values = _IQ4[_split_nibbles(b[:, 8:].reshape(-1, 8, 16)).reshape(-1, 256)]
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    high = (b[:, 2:4, None] >> np.arange(0, 8, 2, dtype=np.uint8) & np.uint8(3)).reshape(-1, 8)
    scale = (low | high << 4).astype(np.int16) - np.int16(32)
    d = _f16(b[:, :2])
    return Fields(values, scale, np.zeros_like(scale), d, np.zeros_like(d))


def _pack_iq4_xs(f: Fields) -> Bytes:
    s = (f.scale + np.int16(32)).astype(np.uint8)
    high = np.left_shift((s >> 4).reshape(-1, 2, 4), np.arange(0, 8, 2, dtype=np.uint8), dtype=np.uint8)
    low = (s[:, ::2] & 15) | np.left_shift(s[:, 1::2] & 15, 4, dtype=np.uint8)
    values = join_nibbles(_iq4_numbers(f).reshape(-1, 8, 32)).reshape(-1, 128)
    return np.concatenate([_half(f.d), np.bitwise_or.reduce(high, axis=2), low, values], axis=1)


def _trits(q: Bytes, powers: int) -> Bytes:
    """[n, k] bytes to [n, powers * k] base-3 digits: digit i is the top of (byte * 3^i mod 256) * 3 / 256."""
    scaled = q[:, None, :] * np.array([1, 3, 9, 27, 81][:powers], dtype=np.uint8)[:, None]
    return (scaled.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(q), -1)


def _join_trits(q: Bytes, powers: int) -> Bytes:
    """The inverse: the number of five digits (a fifth that is missing is 0), as a share of 243 in 256ths, rounded up."""
    weight = np.array([81, 27, 9, 3, 1][:powers], dtype=np.uint16)[:, None]
    number = (q.reshape(len(q), powers, -1) * weight).sum(axis=1, dtype=np.uint16)
    out: Bytes = ((number * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)
    return out


def _unpack_tq1_0(b: Bytes) -> Fields:
    q = np.concatenate([_trits(b[:, :32], 5), _trits(b[:, 32:48], 5), _trits(b[:, 48:52], 4)], axis=-1)
    return _plain(q, 1, _f16(b[:, 52:54]))


def _pack_tq1_0(f: Fields) -> Bytes:
    q = _stored(f, 1)
    parts = [_join_trits(q[:, :160], 5), _join_trits(q[:, 160:240], 5), _join_trits(q[:, 240:], 4)]
    return np.concatenate([*parts, _half(f.d)], axis=1)


def _unpack_tq2_0(b: Bytes) -> Fields:
    return _plain(_two_bits(b[:, :64]), 1, _f16(b[:, 64:66]))


def _pack_tq2_0(f: Fields) -> Bytes:
    return np.concatenate([_join_two_bits(_stored(f, 1)), _half(f.d)], axis=1)


def _from(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1))


Q4_0 = Layout(32, _from(-8, 7), _unpack_q4_0, _pack_q4_0)
Q4_1 = Layout(32, _from(0, 15), _unpack_q4_1, _pack_q4_1)
Q5_0 = Layout(32, _from(-16, 15), _unpack_q5_0, _pack_q5_0)
Q5_1 = Layout(32, _from(0, 31), _unpack_q5_1, _pack_q5_1)
Q8_0 = Layout(32, _from(-128, 127), _unpack_q8_0, _pack_q8_0)
Q2_K = Layout(16, _from(0, 3), _unpack_q2_k, _pack_q2_k)
Q3_K = Layout(16, _from(-4, 3), _unpack_q3_k, _pack_q3_k)
Q4_K = Layout(32, _from(0, 15), _unpack_q4_k, _pack_q4_k)
Q5_K = Layout(32, _from(0, 31), _unpack_q5_k, _pack_q5_k)
Q6_K = Layout(16, _from(-32, 31), _unpack_q6_k, _pack_q6_k)
IQ4_NL = Layout(32, IQ4_LEVELS, _unpack_iq4_nl, _pack_iq4_nl)
IQ4_XS = Layout(32, IQ4_LEVELS, _unpack_iq4_xs, _pack_iq4_xs)
TQ1_0 = Layout(32, _from(-1, 1), _unpack_tq1_0, _pack_tq1_0)
TQ2_0 = Layout(32, _from(-1, 1), _unpack_tq2_0, _pack_tq2_0)

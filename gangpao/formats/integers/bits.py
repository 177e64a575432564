"""Numbers of 2, 3, 4 or 8 bits in 32-bit words, lowest bits first, as GPTQ, AWQ and compressed-tensors keep them.

Where bits divide 32 a word has 32 / bits numbers. Three bits run on over the ends of words: 32 numbers in three of them. AWQ
interleaves the numbers of a word; its order is an argument.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int16]

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # place of number i of eight in its word


def unpack(words: npt.NDArray[np.int32], bits: int, count: int) -> Ints:
    """int32 [..., W] to unsigned numbers [..., count]; what is packed behind them is padding."""
    w = words.view(np.uint32)
    if bits == 3:
        return _unpack_run(w, count)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = (w[..., None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.int16)
    return numbers.reshape(*w.shape[:-1], -1)[..., :count]


def unpack_apart(words: npt.NDArray[np.int32], bits: int, count: int) -> Ints:
    """The same where no number runs on over the end of a word and the bits that are left are padding: compressed-tensors of 3 bits
    up to version 0.17, ten numbers a word."""
    w, shifts = words.view(np.uint32), np.arange(0, 32 - bits + 1, bits, dtype=np.uint32)
    numbers = (w[..., None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.int16)
    return numbers.reshape(*w.shape[:-1], -1)[..., :count]


def pack(numbers: Ints, bits: int) -> npt.NDArray[np.int32]:
    """The inverse: unsigned numbers [..., count] to int32 [..., W], as many words as they need."""
    group = 32 if bits == 3 else 32 // bits
    pad = -numbers.shape[-1] % group
    wide = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, pad)]).astype(np.uint32)
    wide = wide.reshape(*numbers.shape[:-1], -1, group)
    if bits == 3:
        stream = (wide[..., None] >> np.arange(3, dtype=np.uint32) & 1).astype(np.uint8)
        stream = stream.reshape(*wide.shape[:-1], 96)
        out = np.packbits(stream, axis=-1, bitorder="little").view(np.uint32)
    else:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        out = np.bitwise_or.reduce(wide << shifts, axis=-1)[..., None]
    whole = out.reshape(*numbers.shape[:-1], -1)[..., : -(-numbers.shape[-1] * bits // 32)]
    return np.ascontiguousarray(whole).view(np.int32)


def _unpack_run(w: Words, count: int) -> Ints:
    stream = np.unpackbits(np.ascontiguousarray(w).view(np.uint8), axis=-1, bitorder="little")
    whole = stream.shape[-1] // 3
    bits = stream[..., : whole * 3].reshape(*w.shape[:-1], whole, 3).astype(np.int16)
    out: Ints = (bits[..., 0] | bits[..., 1] << 1 | bits[..., 2] << 2)[..., :count]
    return out


def ordered(numbers: Ints, order: tuple[int, ...] = AWQ_ORDER) -> Ints:
    """Numbers [..., 8 * W] as they lie in AWQ's words, to their own order."""
    out: Ints = numbers.reshape(*numbers.shape[:-1], -1, len(order))[..., list(order)].reshape(numbers.shape)
    return out

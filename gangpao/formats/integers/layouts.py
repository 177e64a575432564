"""The packed tensors of one matrix to its numbers: GPTQ's, AWQ's and those of compressed-tensors.

    gptq     qweight int32 [C / n, R] along columns, qzeros int32 [G, R / n], scales [G, R], g_idx int32 [C]
    awq      qweight int32 [C, R / 8] along rows, interleaved; qzeros int32 [G, R / 8]; scales [G, R]
    packed   weight_packed int32 [R, C / n], weight_scale [R, G], weight_zero_point int32 [R / n, G], weight_g_idx [C],
             weight_shape [2]
    ints     weight int8 [R, C], weight_scale [R, G], weight_zero_point int8 [R, G]

R rows (outputs), C columns (inputs), G groups, n numbers of a word; g_idx: which group a column is in. The last group may be
short, so groups are counted upwards.
Scales may be negative (AutoRound) and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.formats.integers import bits
from gangpao.formats.integers.scheme import Scheme

Floats = npt.NDArray[np.float32]
Parts = Mapping[str, npt.NDArray[np.generic]]

_Ints = npt.NDArray[np.int16]
_Numbers = tuple[_Ints, Floats, _Ints]  # q, scale, zero

SUFFIXES = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "packed": ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"),
    "ints": ("weight", "weight_scale", "weight_zero_point"),
}
_NEEDED = {
    "gptq": ("qweight", "qzeros", "scales"),
    "awq": ("qweight", "qzeros", "scales"),
    "packed": ("weight_packed", "weight_scale"),
    "ints": ("weight", "weight_scale"),
}


@dataclass(frozen=True, slots=True)
class Integers:
    """A matrix [R, C]: w = scale * (q - zero), scale and zero those of the column's group.

    q int16 [R, C]; scale float32 [R, G]; zero int16 [R, G]; group int64 [C], which group a column is in.
    """

    q: npt.NDArray[np.int16]
    scale: Floats
    zero: npt.NDArray[np.int16]
    group: npt.NDArray[np.int64]

    def dense(self) -> Floats:
        """The weights, float32 [R, C], each one product of two numbers."""
        out = self.q - self.zero[:, self.group]
        return out.astype(np.float32) * self.scale[:, self.group]


def is_whole(parts: Parts, layout: str) -> bool:
    """Whether all is there that a matrix of this layout must have."""
    return all(name in parts for name in _NEEDED[layout])


def integers_of(parts: Parts, scheme: Scheme, shape: tuple[int, int]) -> Integers:
    """The numbers of a matrix [R, C] from its tensors by suffix. Raises ValueError for tensors of other shapes or types.

    shape: what the configuration says. Floats may be given as float32 whatever they are in the file.
    """
    rows, cols = shape
    read = {"gptq": _gptq, "awq": _awq, "packed": _packed, "ints": _ints}[scheme.layout]
    q, scale, zero = read(parts, scheme, rows, cols)
    groups = scale.shape[1]
    index = parts.get("g_idx", parts.get("weight_g_idx"))
    group = _group_of(index, scheme, cols, groups)
    return Integers(q, np.ascontiguousarray(scale, dtype=np.float32), zero.astype(np.int16), group)


def _group_of(index: npt.NDArray[np.generic] | None, scheme: Scheme, cols: int, groups: int) -> npt.NDArray[np.int64]:
    if index is not None and index.size and not (index == -1).all():
        if index.shape != (cols,) or index.dtype.kind not in "iu":
            raise ValueError(f"g_idx is {index.dtype} {list(index.shape)}, not a group for each of {cols} columns")
        out: npt.NDArray[np.int64] = index.astype(np.int64)
        if out.min() < 0 or out.max() >= groups:
            raise ValueError(f"g_idx names group {out.max() if out.max() >= groups else out.min()} of {groups}")
        return out
    return np.arange(cols) // (scheme.group or cols)


def _gptq(parts: Parts, s: Scheme, rows: int, cols: int) -> _Numbers:
    groups = _groups(s, cols)
    words = _checked(parts, "qweight", (_words(cols, s.bits), rows))
    q = bits.unpack(np.ascontiguousarray(words.T), s.bits, cols)
    zeros = _checked(parts, "qzeros", (groups, _words(rows, s.bits)))
    # One less than a zero point of 0 is all ones in the file: it is counted around.
    zero: _Ints = bits.unpack(zeros, s.bits, rows).T + np.int16(s.minus_one) & np.int16((1 << s.bits) - 1)
    return q, _scales(parts, "scales", (groups, rows)).T, zero


def _awq(parts: Parts, s: Scheme, rows: int, cols: int) -> _Numbers:
    groups = _groups(s, cols)
    words = _checked(parts, "qweight", (cols, rows // 8))
    q = bits.ordered(bits.unpack(words, 4, rows)).T
    zero = bits.ordered(bits.unpack(_checked(parts, "qzeros", (groups, rows // 8)), 4, rows)).T
    return np.ascontiguousarray(q), _scales(parts, "scales", (groups, rows)).T, zero


def _packed(parts: Parts, s: Scheme, rows: int, cols: int) -> _Numbers:
    groups = _groups(s, cols)
    middle = np.int16(1 << (s.bits - 1))
    # Nothing in a folder says how three bits are packed but the number of words, which differs in every row of 160 and more.
    apart = parts["weight_packed"].shape == (rows, _words_apart(cols, s.bits)) != (rows, _words(cols, s.bits))
    count, unpack = (_words_apart, bits.unpack_apart) if apart else (_words, bits.unpack)
    q: _Ints = unpack(_checked(parts, "weight_packed", (rows, count(cols, s.bits))), s.bits, cols) - middle
    zero: _Ints = np.zeros((rows, groups), dtype=np.int16)
    if "weight_zero_point" in parts:
        words = _checked(parts, "weight_zero_point", (count(rows, s.bits), groups))
        zero = unpack(np.ascontiguousarray(words.T), s.bits, rows).T - middle
    return q, _scales(parts, "weight_scale", (rows, groups)), zero


def _ints(parts: Parts, s: Scheme, rows: int, cols: int) -> _Numbers:
    groups = _groups(s, cols)
    q = _checked(parts, "weight", (rows, cols), "i1").astype(np.int16)
    zero = np.zeros((rows, groups), dtype=np.int16)
    if "weight_zero_point" in parts:
        zero = _checked(parts, "weight_zero_point", (rows, groups), "i1").astype(np.int16)
    return q, _scales(parts, "weight_scale", (rows, groups)), zero


def _words(count: int, number_bits: int) -> int:
    """Words that so many numbers take."""
    return -(-count * number_bits // 32)


def _words_apart(count: int, number_bits: int) -> int:
    """The same where each word has whole numbers only."""
    return -(-count // (32 // number_bits))


def _groups(s: Scheme, cols: int) -> int:
    return -(-cols // s.group) if s.group else 1


def _checked(parts: Parts, name: str, shape: tuple[int, int], kind: str = "i4") -> npt.NDArray[np.int32]:
    found = parts[name]
    if found.dtype != np.dtype(kind) or found.shape != shape:
        raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, not {np.dtype(kind)} {list(shape)}")
    return np.ascontiguousarray(found)


def _scales(parts: Parts, name: str, shape: tuple[int, int]) -> Floats:
    found = parts[name]
    if found.dtype.kind != "f" or found.shape != shape:
        raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, not floats {list(shape)}")
    return found.astype(np.float32)

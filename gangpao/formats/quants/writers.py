"""How rows of weights become blocks of a type: which search, with which candidates, and what the columns weigh.

A column weighs as much as its importance, the mean square of the activation that meets it: then what is minimised is the mean
squared error of the layer's output, as far as columns do not speak for one another. Without importance all weigh the same.
The candidates are measured (docs/compression.md): more of them gained less than 0.2 % of the error of any type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.formats.quants import layout, plain
from gangpao.formats.quants.layout import IQ4_LEVELS, Bytes, Fields, Floats, Layout
from gangpao.formats.quants.plain import Unwritable, first_wrong
from gangpao.formats.quants.search import Grid, Offset, Symmetric, inverse, offset_scale, symmetric_scale
from gangpao.formats.quants.superblock import Found, Pairs, Scales, half

_LEAST_WEIGHT = 2.0**-12  # of a column beside the mean: one that calibration never met is still written
_PIECE = 1 << 19  # weights searched at once


def column_weights(importance: Floats | None, cols: int) -> Floats:
    """What each column weighs, float32 [cols] with a mean of about 1; ones without importance, and where all of it is zero.

    Raises ValueError for an importance of another length or with values that are negative or no numbers.
    """
    if importance is None:
        return np.ones(cols, np.float32)
    if importance.shape != (cols,):
        raise ValueError(f"importance must have a value for each of {cols} columns, got shape {importance.shape}")
    wide = importance.astype(np.float32).astype(np.float64)
    if (wrong := ~((wide >= 0) & (wide < np.inf))).any():
        at = int(np.argmax(wrong))
        raise ValueError(f"importance of column {at} is {wide[at]:g}; it must be finite and at least 0")
    mean = np.add.accumulate(wide)[-1] / cols
    if mean == 0:
        return np.ones(cols, np.float32)
    out: Floats = np.maximum(wide / mean, _LEAST_WEIGHT).astype(np.float32)
    return out


@dataclass(frozen=True, slots=True)
class Writer:
    """How a type is written: where its numbers lie, weights of a group and of a block, the search, the largest value that the
    scales reach, and what is done without importance where that is not the search."""

    layout: Layout
    group: int
    block: int
    search: Symmetric | Offset | Scales | Pairs
    reach: float
    plain: Callable[[Floats], Bytes] | None = None

    def __call__(self, values: Floats, importance: Floats | None = None) -> Bytes:
        """Rows float32 [R, C] as blocks. Raises Unwritable for a value that the scales do not reach."""
        if importance is None and self.plain:
            return self.plain(values)
        if (far := np.abs(values) > np.float32(self.reach)).any():
            row, value = first_wrong(values, far)
            raise Unwritable(row, f"a value of {value:g}, and the scales end at {self.reach:g}; take BF16 or F32")
        columns = column_weights(importance, values.shape[1])
        step = max(1, _PIECE // max(values.shape[1], 1))
        pieces = [self._blocks(values[i : i + step], columns) for i in range(0, len(values), step)]
        return np.concatenate(pieces)

    def _blocks(self, values: Floats, columns: Floats) -> Bytes:
        x, w = (self._standing(a) for a in (values, np.broadcast_to(columns, values.shape)))
        found = _find(x, w, self.search)
        n = x.shape[-1]
        numbers = found.values.transpose(2, 1, 0).reshape(n, -1).astype(np.int16)
        scale, minimum = found.scale.T.astype(np.int16), found.minimum.T.astype(np.int16)
        return self.layout.pack(Fields(numbers, scale, minimum, found.d[:, None], found.dmin[:, None]))

    def _standing(self, values: npt.NDArray[np.float32]) -> Floats:
        """[R, C] as [g, G, N]."""
        groups = self.block // self.group
        return np.ascontiguousarray(values.reshape(-1, groups, self.group).transpose(2, 1, 0)) + np.float32(0)


def _find(x: Floats, w: Floats, search: Symmetric | Offset | Scales | Pairs) -> Found:
    if isinstance(search, Scales | Pairs):
        return search.find(x, w)
    one, none = np.ones(x.shape[1:], np.float32), np.zeros(x.shape[1:], np.float32)
    if isinstance(search, Symmetric):
        d = half(symmetric_scale(x, w, search))
        return Found(search.grid.nearest(x * inverse(d)), one, none, d[0], none[0])
    scale, offset = offset_scale(x, w, search)
    d, dmin = half(scale), half(offset)
    return Found(search.grid.nearest((x + dmin) * inverse(d)), one, one, d[0], dmin[0])


def _range(first: float, step: float, count: int) -> tuple[float, ...]:
    return tuple(float(np.float32(first) + np.float32(i) * np.float32(step)) for i in range(count))


_IQ4 = Grid(-127, 113, IQ4_LEVELS)
_IQ4_TRIES = _range(-139, 5, 9) + _range(101, 6, 5)
_AROUND = tuple((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1))
_F16 = 65504.0

_q4_0 = Symmetric(Grid(-8, 7), _range(-8.625, 0.1875, 12) + _range(6.375, 0.3125, 4), 2)
_q5_0 = Symmetric(Grid(-16, 15), _range(-16.75, 0.375, 8) + _range(14, 0.5, 4), 2)
_q8_0 = Symmetric(Grid(-127, 127), _range(-127.5, 0.5, 8), 2)
_ternary = Symmetric(Grid(-1, 1), (0.875, 1.0, 1.1875, 1.4375, 1.6875, 2.0, 2.375, 2.8125, 3.3125, 4.0), 3)
_q3_k = Symmetric(Grid(-4, 3), _range(-4.75, 0.1875, 10) + _range(2.375, 0.3125, 4), 2)
_q6_k = Symmetric(Grid(-32, 31), _range(-33, 0.5, 9) + _range(29.5, 0.5, 5), 3)

Q4_0 = Writer(layout.Q4_0, 32, 32, _q4_0, 8 * _F16, plain.write_q4_0)
Q4_1 = Writer(layout.Q4_1, 32, 32, Offset(15, _range(-2, 0.1875, 16), 2, True), _F16, plain.write_q4_1)
Q5_0 = Writer(layout.Q5_0, 32, 32, _q5_0, 16 * _F16)
Q5_1 = Writer(layout.Q5_1, 32, 32, Offset(31, _range(-3, 0.3125, 14), 2, True), _F16)
Q8_0 = Writer(layout.Q8_0, 32, 32, _q8_0, 127 * _F16, plain.write_q8_0)
IQ4_NL = Writer(layout.IQ4_NL, 32, 32, Symmetric(_IQ4, _IQ4_TRIES, 2), 127 * _F16)
TQ1_0 = Writer(layout.TQ1_0, 256, 256, _ternary, _F16)
TQ2_0 = Writer(layout.TQ2_0, 256, 256, _ternary, _F16)
Q3_K = Writer(layout.Q3_K, 16, 256, Scales(_q3_k, -32, 31, (-1, 0, 1), (-32, -31, -30, 31), 2), 4 * 32 * _F16)
Q6_K = Writer(layout.Q6_K, 16, 256, Scales(_q6_k, -128, 127, (-1, 0, 1), (-128, -127, 127), 2), 32 * 128 * _F16)
IQ4_XS = Writer(
    layout.IQ4_XS,
    32,
    256,
    Scales(Symmetric(_IQ4, _IQ4_TRIES, 2), -32, 31, (-1, 0, 1), (-32, -31, 31), 2),
    127 * 32 * _F16,
)
Q2_K = Writer(
    layout.Q2_K,
    16,
    256,
    Pairs(Offset(3, _range(-1, 0.1875, 10), 3), 15, _AROUND, ((15, 15), (14, 15), (13, 14)), 3),
    15 * _F16,
)
Q4_K = Writer(
    layout.Q4_K, 32, 256, Pairs(Offset(15, _range(-2, 0.1875, 16), 2), 63, _AROUND, ((63, 63),), 2), 63 * _F16
)
Q5_K = Writer(
    layout.Q5_K, 32, 256, Pairs(Offset(31, _range(-3, 0.3125, 14), 2), 63, _AROUND, ((63, 63),), 2), 63 * _F16
)

"""The scale (and offset) of a group of weights that loses least: candidates around the largest value, then least squares.

Groups stand in columns: values and weights are float32 [g, ...], a group is one column, and every sum over it goes from the first
element to the last. Each step is one float32 operation, rounded as it is written, so that the compiled writer
(kernels/src/quantize_rows.h), where a lane of a vector is a column, gives the same bits.

For integers q the best scale is a quotient of sums, and what it gains over a group of zeros is a closed formula: a candidate
costs one pass. The best candidate is then alternated: integers for the scale, scale for the integers; neither can lose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TINY = np.float32(1e-12)  # a group whose values are all smaller is zero: no F16 scale is that small
_ZERO, _ONE, _HALF, _LEAST = np.float32(0), np.float32(1), np.float32(0.5), np.float32(-3e38)
_WHOLE = np.float32(1.5 * 2**23)  # added and taken off again, it leaves the nearest integer, halfway the even one


@dataclass(frozen=True, slots=True)
class Grid:
    """What a value may be: the integers low to high, or the `levels` of a codebook."""

    low: int
    high: int
    levels: tuple[int, ...] = ()

    def nearest(self, y: Floats) -> Floats:
        """The nearest that it may be; halfway, the even integer or the lower level."""
        if not self.levels:
            return nearest_integer(y, self.low, self.high)
        levels = np.array(self.levels, np.float32)
        out: Floats = levels[np.searchsorted((levels[1:] + levels[:-1]) * _HALF, y, side="left")]
        return out


@dataclass(frozen=True, slots=True)
class Symmetric:
    """A search for values = scale * q. tries: where on the grid the largest value is put; rounds: of alternation."""

    grid: Grid
    tries: tuple[float, ...]
    rounds: int = 2


@dataclass(frozen=True, slots=True)
class Offset:
    """A search for values = scale * q - offset with q from 0 to `high`. tries: what is added to `high` when the range of a group
    is divided by it; signed: whether the offset may be less than 0, else the values' range begins at 0 or below."""

    high: int
    tries: tuple[float, ...]
    rounds: int = 2
    signed: bool = False

    @property
    def grid(self) -> Grid:
        return Grid(0, self.high)


def nearest_integer(y: Floats, low: int, high: int) -> Floats:
    """The nearest integer from low to high."""
    out: Floats = np.minimum(np.maximum(y, np.float32(low)), np.float32(high)) + _WHOLE - _WHOLE
    return out


def total(x: Floats) -> Floats:
    """Sum over the first axis, one element after the other."""
    out: Floats = np.add.accumulate(x, axis=0)[-1] + _ZERO
    return out


def quotient(a: Floats, b: Floats) -> Floats:
    """a / b, and 0 where b is not above 0."""
    return np.where(b > 0, a / np.where(b > 0, b, _ONE), _ZERO)


def inverse(x: Floats) -> Floats:
    """1 / x, and 0 for what is too small to be a scale."""
    fits = np.abs(x) >= TINY
    return np.where(fits, _ONE / np.where(fits, x, _ONE), _ZERO)


def symmetric_scale(x: Floats, w: Floats, search: Symmetric) -> Floats:
    """The scale [...] of every group of values [g, ...] with weights [g, ...]; 0 for a group of zeros."""
    wx = w * x
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    unit = inverse(largest)
    best = scale = np.zeros_like(largest)
    for put in search.tries:
        found, gain = _fit(x, w, wx, np.float32(put) * unit, search.grid)
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, found, scale)
    for _ in range(search.rounds):
        scale = _fit(x, w, wx, inverse(scale), search.grid)[0]
    out: Floats = scale
    return out


def _fit(x: Floats, w: Floats, wx: Floats, inverse_scale: Floats, grid: Grid) -> tuple[Floats, Floats]:
    """The integers of a scale, the scale that suits these integers best, and what that gains."""
    q = grid.nearest(x * inverse_scale)
    xq = total(wx * q)
    scale = quotient(xq, total((w * q) * q))
    return scale, scale * xq


def offset_scale(x: Floats, w: Floats, search: Offset) -> tuple[Floats, Floats]:
    """Scale and offset [...] of every group of values [g, ...] with weights [g, ...]: values = scale * q - offset."""
    low, high = x.min(axis=0), x.max(axis=0)
    low = low if search.signed else np.minimum(low, _ZERO)
    y = x - low  # of the shifted values the offset may be no less than `low`, where a type has none below 0
    fit = _OffsetFit(y, w, search.grid, np.full_like(low, _LEAST) if search.signed else low)
    unit = inverse(high - low)
    best = scale = offset = np.zeros_like(low)
    for i in range(len(search.tries) + search.rounds):
        if i < len(search.tries):
            found = fit((np.float32(search.high) + np.float32(search.tries[i])) * unit, np.zeros_like(low))
        else:
            found = fit(inverse(scale), offset)
        better = found[2] > best
        scale, offset, best = (np.where(better, *pair) for pair in zip(found, (scale, offset, best), strict=True))
    return scale, offset - low


class _OffsetFit:
    """Least squares for scale and offset of values y [g, ...] that are at least 0."""

    def __init__(self, y: Floats, w: Floats, grid: Grid, least: Floats) -> None:
        self.y, self.w, self.wy, self.grid, self.least = y, w, w * y, grid, least
        self.w1, self.y1 = total(w), total(self.wy)

    def __call__(self, inverse_scale: Floats, offset: Floats) -> tuple[Floats, Floats, Floats]:
        """The integers of a scale and an offset, then the scale and the offset that suit these integers best, and their gain."""
        q = self.grid.nearest((self.y + offset) * inverse_scale)
        wq = self.w * q
        q1, q2, yq = total(wq), total(wq * q), total(self.wy * q)
        scale = quotient(self.w1 * yq - q1 * self.y1, self.w1 * q2 - q1 * q1)
        offset = np.maximum((scale * q1 - self.y1) / self.w1, self.least)
        moved = yq + offset * q1
        scale = quotient(moved, q2)
        return scale, offset, scale * moved - offset * ((self.y1 + self.y1) + offset * self.w1)

"""The scales of a superblock together: integers of its groups and the one or two floats that all of them share.

A group's own best scale is rounded twice, to an integer and with the float of the superblock. So the integers are chosen by what
they lose, among the neighbours of the rounded ones, and the floats by least squares for these integers, in turn; the best state
is kept. Arrays: values x and weights w float32 [g, G, N] (element, group, superblock), scales [G, N], floats of a superblock [N].
Every float step is defined, as in search.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from gangpao.formats.quants.search import (
    Floats,
    Offset,
    Symmetric,
    inverse,
    nearest_integer,
    offset_scale,
    quotient,
    symmetric_scale,
    total,
)

_ZERO, _MOST = np.float32(0), np.float32(3e38)
_LARGEST_F16 = np.float32(65504)


class Found(NamedTuple):
    """Integers as floats: values [g, G, N], scale and minimum [G, N]; d and dmin [N], as F16 holds them."""

    values: Floats
    scale: Floats
    minimum: Floats
    d: Floats
    dmin: Floats


def half(x: Floats) -> Floats:
    """The nearest that F16 holds, no farther out than its last number."""
    return np.minimum(np.maximum(x, -_LARGEST_F16), _LARGEST_F16).astype(np.float16).astype(np.float32) + _ZERO


class _Scaled(NamedTuple):
    """A state of `Scales`: what it gains [N] or, of a group, [G, N]; integer scales and sums of their integers [G, N]; d [N]."""

    gain: Floats
    scale: Floats
    xq: Floats
    q2: Floats
    d: Floats


@dataclass(frozen=True, slots=True)
class Scales:
    """Superblocks without minima (Q3_K, Q6_K, IQ4_XS). search: of a group; low, high: what its integer scale may be; steps: how
    far from the rounded one to look; tries: where the largest scale is put; rounds: of floats and integers in turn."""

    search: Symmetric
    low: int
    high: int
    steps: tuple[int, ...]
    tries: tuple[float, ...]
    rounds: int

    def find(self, x: Floats, w: Floats) -> Found:
        """The numbers of superblocks x [g, G, N] with weights w."""
        wanted = symmetric_scale(x, w, self.search)
        largest = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=0)[None], axis=0)[0]
        wx, none = w * x, np.zeros_like(wanted)
        state = _Scaled(none[0], none, none, none, none[0])
        for put in self.tries:
            state = self._better(x, w, wx, half(largest / np.float32(put)), wanted, state)
        for _ in range(self.rounds):
            d = half(quotient(total(state.scale * state.xq), total((state.scale * state.scale) * state.q2)))
            state = self._better(x, w, wx, d, state.d * state.scale, state)
        q = self.search.grid.nearest(x * inverse(state.d * state.scale))
        return Found(q, state.scale, none, state.d, none[0])

    def _better(self, x: Floats, w: Floats, wx: Floats, d: Floats, wanted: Floats, state: _Scaled) -> _Scaled:
        """The state, or one with the float d and integer scales near wanted / d where that gains more."""
        middle, none = nearest_integer(wanted * inverse(d), self.low, self.high), np.zeros_like(wanted)
        best = _Scaled(none, none, none, none, d)
        for step in self.steps:
            integer = nearest_integer(middle + np.float32(step), self.low, self.high)
            scale = d * integer
            q = self.search.grid.nearest(x * inverse(scale))
            xq, q2 = total(wx * q), total((w * q) * q)
            gain = scale * ((xq + xq) - scale * q2)
            best = _where(gain > best.gain, _Scaled(gain, integer, xq, q2, d), best)
        gain = total(best.gain)
        return _where(gain > state.gain, best._replace(gain=gain, d=d), state)


class _Paired(NamedTuple):
    """A state of `Pairs`: what it loses [N] or, of a group, [G, N]; integers and sums over a group [G, N]; d and dmin [N]."""

    loss: Floats
    scale: Floats
    minimum: Floats
    q1: Floats
    q2: Floats
    xq: Floats
    d: Floats
    dmin: Floats


@dataclass(frozen=True, slots=True)
class Pairs:
    """Superblocks with minima (Q2_K, Q4_K, Q5_K). search: of a group; high: the largest integer scale and minimum; steps: how far
    from the rounded pair to look; tries: where the largest scale and the largest minimum are put; rounds: as in Scales."""

    search: Offset
    high: int
    steps: tuple[tuple[int, int], ...]
    tries: tuple[tuple[float, float], ...]
    rounds: int

    def find(self, x: Floats, w: Floats) -> Found:
        """The numbers of superblocks x [g, G, N] with weights w."""
        scale, offset = offset_scale(x, w, self.search)
        top, bottom = np.maximum(scale.max(axis=0), _ZERO), np.maximum(offset.max(axis=0), _ZERO)
        wx, none = w * x, np.zeros_like(scale)
        w1, x1 = total(w), total(wx)
        state = _Paired(none[0] + _MOST, none, none, none, none, none, none[0], none[0])
        for high, low in self.tries:
            d, dmin = half(top / np.float32(high)), half(bottom / np.float32(low))
            state = self._better(x, w, wx, d, dmin, scale, offset, state)
        for _ in range(self.rounds):
            d, dmin = _floats(state, w1, x1)
            state = self._better(x, w, wx, d, dmin, state.d * state.scale, state.dmin * state.minimum, state)
        q = self.search.grid.nearest((x + state.dmin * state.minimum) * inverse(state.d * state.scale))
        return Found(q, state.scale, state.minimum, state.d, state.dmin)

    def _better(
        self, x: Floats, w: Floats, wx: Floats, d: Floats, dmin: Floats, scale: Floats, offset: Floats, state: _Paired
    ) -> _Paired:
        """The state, or one with the floats d and dmin and integers near scale / d and offset / dmin where that loses less."""
        near_s, near_m = (nearest_integer(a * inverse(b), 0, self.high) for a, b in ((scale, d), (offset, dmin)))
        none = np.zeros_like(scale)
        best = _Paired(none + _MOST, none, none, none, none, none, d, dmin)
        for step_s, step_m in self.steps:
            ls = nearest_integer(near_s + np.float32(step_s), 0, self.high)
            lm = nearest_integer(near_m + np.float32(step_m), 0, self.high)
            y = x + dmin * lm
            q = self.search.grid.nearest(y * inverse(d * ls))
            error, wq = y - (d * ls) * q, w * q
            new = _Paired(total((w * error) * error), ls, lm, total(wq), total(wq * q), total(wx * q), d, dmin)
            best = _where(new.loss < best.loss, new, best)
        loss = total(best.loss)
        return _where(loss < state.loss, best._replace(loss=loss, d=d, dmin=dmin), state)


State = TypeVar("State", _Scaled, _Paired)


def _where(better: npt.NDArray[np.bool_], new: State, old: State) -> State:
    return type(new)(*(np.where(better, a, b) for a, b in zip(new, old, strict=True)))


def _floats(s: _Paired, w1: Floats, x1: Floats) -> tuple[Floats, Floats]:
    """d and dmin that lose least with the integers of a state. w1, x1 [G, N]: sums of weights and of weighted values."""
    aa, ab, bb = (
        total((s.scale * s.scale) * s.q2),
        total((s.scale * s.minimum) * s.q1),
        total((s.minimum * s.minimum) * w1),
    )
    xa, xb = total(s.scale * s.xq), total(s.minimum * x1)
    determinant = aa * bb - ab * ab
    d = np.where(determinant > 0, quotient(xa * bb - ab * xb, determinant), quotient(xa, aa))
    dmin = quotient(ab * xa - aa * xb, determinant)
    return half(np.maximum(d, _ZERO)), half(np.maximum(dmin, _ZERO))

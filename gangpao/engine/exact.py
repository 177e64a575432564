"""Functions whose bits are the same on every machine: powers, logarithms, and exponentials of whole vocabularies.

numpy's and the C library's differ in the last bit between processors, because they are chosen by instruction set. These
are made of additions, multiplications and roundings of doubles, each rounded as IEEE 754 says, and of decimal arithmetic.
A sum over a vocabulary is one of whole numbers, so its order does not matter.
"""

import decimal
import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gangpao import kernels

Doubles = npt.NDArray[np.float64]

_DECIMALS = decimal.Context(prec=50)
_LOWEST = -44.0  # e^-44 is 8e-20 of the likeliest token: nothing
_FINE, _COARSE = 65536, 64  # steps of the two tables in a unit
_BLOCK = 8192  # numbers worked on together: they stay in the fastest cache
_UNIT = 2.0**44  # of a weight as a whole number; 2^18 weights of at most 1 fit 63 bits


def power(base: float, exponent: Fraction) -> float:
    """base ** exponent, correctly rounded."""
    there = _DECIMALS.divide(decimal.Decimal(exponent.numerator), decimal.Decimal(exponent.denominator))
    return float(_DECIMALS.power(decimal.Decimal(base), there))


def log(value: float) -> float:
    """The natural logarithm, correctly rounded."""
    return float(_DECIMALS.ln(decimal.Decimal(value)))


@lru_cache(maxsize=1)
def _tables() -> tuple[Doubles, Doubles]:
    """e^(-i / 64) for i up to 44 * 64, and e^(-j / 65536) for j below 1024."""

    def exp(numerator: int, denominator: int) -> float:
        return float(_DECIMALS.exp(decimal.Decimal(-numerator) / denominator))

    units = np.array([exp(i, 1) for i in range(-int(_LOWEST) + 1)])
    parts = np.array([exp(i, _COARSE) for i in range(_COARSE)])
    small = -np.arange(_FINE // _COARSE) / _FINE
    fine = np.ones_like(small)
    for n in range(7, 0, -1):  # the Taylor series: x^8 / 8! is below 1e-19 here
        fine = fine * small / n + 1.0
    return np.outer(units, parts).ravel(), fine


def exp(values: npt.NDArray[np.floating]) -> Doubles:
    """e^x of numbers [N] that are 0 or below, within 4e-11 of it; 0 below -44.

    The nearest 65536th comes from two tables, what is left is so small that 1 + x does.
    """
    coarse, fine = _tables()
    out = np.empty(len(values))
    places = np.empty(min(_BLOCK, len(values)), np.int32)
    for begin in range(0, len(values), _BLOCK):
        x = np.maximum(values[begin : begin + _BLOCK], _LOWEST, dtype=np.float64)
        nearest = np.rint(x * -_FINE)
        at = places[: len(x)]
        np.copyto(at, nearest, casting="unsafe")
        nearest *= 1.0 / _FINE
        nearest += x
        nearest += 1.0
        nearest *= x > _LOWEST
        part = out[begin : begin + len(x)]
        np.multiply(coarse.take(at // (_FINE // _COARSE)), fine.take(at % (_FINE // _COARSE)), out=part)
        part *= nearest
    return out


def top_softmax(logits: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The k largest of each row [N, E], and their softmax among themselves: places and weights [N, k], the largest first.

    Of equal ones the first is taken. A row with a number that is none has such weights.
    """
    fine = None
    if not np.isfinite(logits.sum(dtype=np.float64)):
        fine = np.asarray(np.isfinite(logits).all(axis=1))
        logits = np.where(fine[:, None], logits, np.float32(0))
    chosen = (-logits).argsort(axis=1, kind="stable")[:, :k]
    top = logits[np.arange(len(logits))[:, None], chosen].astype(np.float64)
    weights = exp((top - top[:, :1]).ravel()).reshape(top.shape)
    total = weights[:, 0].copy()
    for rank in range(1, k):  # in one order
        total += weights[:, rank]
    weights /= total[:, None]
    if fine is not None:
        weights[~fine] = np.nan
    return chosen, weights.astype(np.float32)


def log_sum_exp(values: npt.NDArray[np.float32]) -> float:
    """log(sum(e^x)) of finite numbers [N] (and -inf), N at most 2^18; within 1e-8."""
    assert len(values) <= 2**18, len(values)
    peak = float(values.max())
    weights = exp(values.astype(np.float64) - peak)
    weights *= _UNIT
    total = int(np.rint(weights, out=weights).astype(np.int64).sum())
    return peak + log(total / _UNIT)


def log_sum_exps(rows: kernels.Array, count: int) -> list[float]:
    """The same, to the last bit, of each of the first rows [count, N]; NaN where a row has one, or nothing but -inf."""
    assert rows.cols <= 2**18, rows.cols
    totals = kernels.exp_totals(rows, count, *_tables())
    return [peak + log(total / _UNIT) if total else math.nan for peak, total in totals]

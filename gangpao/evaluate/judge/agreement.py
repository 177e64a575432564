"""How far two judges agree on the same things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def exact(a: Sequence[float], b: Sequence[float]) -> float:
    """Share of equal values."""
    return float(np.mean(np.asarray(a) == np.asarray(b)))


def within(a: Sequence[float], b: Sequence[float], distance: float) -> float:
    """Share of values at most so far apart."""
    return float(np.mean(np.abs(np.asarray(a, float) - np.asarray(b, float)) <= distance + 1e-9))


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation of the ranks, ties at their mean rank; None where one of them says the same of everything."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread else None


def kappa(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Cohen's: agreement beyond that of two who draw from their own habits; None where chance alone would agree always."""
    n = len(a)
    habits = Counter(a), Counter(b)
    chance = sum(habits[0][value] * habits[1][value] for value in habits[0]) / (n * n) if n else 1.0
    return None if chance == 1 else (exact(a, b) - chance) / (1 - chance)


def _ranks(values: Sequence[float]) -> Floats:
    _, place, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Floats = last - (counts - 1) / 2
    return means[place]

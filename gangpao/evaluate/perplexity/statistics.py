"""Sums that grow cluster by cluster, and the standard errors of their quotients.

Tokens of one text are no independent draws: what surprises in one sentence makes the next one likelier. So the error of a mean
over tokens is taken from whole windows or documents: with x and n the sums and counts of each of W of them and m the mean,
the variance of m is sum((x - m n)^2) W / (W - 1) / sum(n)^2. llama-perplexity takes tokens for independent; `naive` is that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(slots=True)
class Quotient:
    """sum(x) / sum(n) over clusters, in memory that does not grow."""

    x: float = 0.0
    n: float = 0.0
    clusters: int = 0
    _xx: float = 0.0
    _xn: float = 0.0
    _nn: float = 0.0

    def add(self, x: float, n: float) -> None:
        """A cluster with the sum x over n."""
        self.x, self.n, self.clusters = self.x + x, self.n + n, self.clusters + 1
        self._xx, self._xn, self._nn = self._xx + x * x, self._xn + x * n, self._nn + n * n

    @property
    def value(self) -> float:
        """NaN over nothing."""
        return self.x / self.n if self.n else math.nan

    @property
    def stderr(self) -> float | None:
        """Standard error of the value; None for a single cluster."""
        if self.clusters < 2 or not self.n:
            return None
        m = self.value
        squares = max(0.0, self._xx - 2 * m * self._xn + m * m * self._nn)
        return math.sqrt(squares * self.clusters / (self.clusters - 1)) / self.n


def naive(total: float, squares: float, count: int) -> float | None:
    """Standard error of a mean of `count` independent numbers with these sums; llama-perplexity's."""
    if count < 2:
        return None
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2) / (count - 1))


def percentiles(values: npt.NDArray[np.floating], wanted: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """p50, p90 ... and max, between the two nearest values in proportion."""
    found = np.percentile(values, wanted)
    named = {f"p{p:g}": float(value) for p, value in zip(wanted, found, strict=True)}
    return named | {"max": float(values.max())}


def perplexity_of(nll: float, tokens: float) -> float:
    """e^(nll / tokens); infinity beyond what a float holds, NaN over nothing."""
    if not tokens:
        return math.nan
    return math.exp(nll / tokens) if nll / tokens < 709 else math.inf

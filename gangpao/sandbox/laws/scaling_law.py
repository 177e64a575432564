"""The laws themselves: loss over parameters and tokens, a power law, what MiniCPM published; the points that they are fitted to,
and the two quantiles that every interval needs. solver.py fits the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WIDE = 1.959964  # half the 95 % interval of a normal number


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def predict(self, N: float, D: float) -> float:
        """The loss of N parameters after D tokens."""
        return float(self.E + self.A * N**-self.alpha + self.B * D**-self.beta)

    def optimum(self, C: float, flops_per: float = 6.0) -> tuple[float, float]:
        """N and D of the lowest loss among those with flops_per * N * D = C.

        N = K (C / flops_per)^(beta / (alpha + beta)), D the rest, K = (alpha A / (beta B))^(1 / (alpha + beta)).
        Raises ValueError where A or B is 0: then there is no best size.
        """
        if not (0 < C < math.inf and 0 < flops_per < math.inf):
            raise ValueError(f"a budget must be a positive number of FLOPs, not {C} with {flops_per} per N D")
        if self.A <= 0 or self.B <= 0:
            gone = "size" if self.A <= 0 else "tokens"
            raise ValueError(f"the loss does not depend on {gone} in this law: fit it to a wider range of {gone}")
        log_n = self._log_k() + self.beta / (self.alpha + self.beta) * math.log(C / flops_per)
        return math.exp(log_n), math.exp(math.log(C / flops_per) - log_n)

    def ratio(self, C: float, flops_per: float = 6.0) -> float:
        """D / N at the optimum: K^-2 (C / flops_per)^-eta. Where A is 0 it is infinite, else where B is 0 it is 0."""
        if self.A <= 0 or self.B <= 0:
            return math.inf if self.A <= 0 else 0.0
        N, D = self.optimum(C, flops_per)
        return D / N

    @property
    def eta(self) -> float:
        """N / D at the optimum goes with C to this power."""
        return (self.beta - self.alpha) / (self.alpha + self.beta)

    @property
    def K(self) -> float:
        """N / D at the optimum is K^2 (C / 6)^eta."""
        return math.exp(self._log_k())

    def _log_k(self) -> float:
        return math.log(self.alpha * self.A / (self.beta * self.B)) / (self.alpha + self.beta)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """y = a x^b."""

    a: float
    b: float

    def predict(self, x: float) -> float:
        """y at x."""
        return float(self.a * x**self.b)


@dataclass(frozen=True, slots=True)
class Published:
    """What a report says of its law. unit: of N and D in k2, see MINICPM. exponents are rounded as printed."""

    source: str
    alpha: float
    beta: float
    k2: float
    eta: float
    tokens_per_parameter: float
    unit: float
    batch: PowerLaw

    def parameters_per_token(self, C: float, *, unit: float | None = None) -> float:
        """N / D at the best size of C FLOPs: K^2 (C / 6)^eta, with N and D counted in `unit`s (the report's own by default)."""
        scale = self.unit if unit is None else unit
        return float(self.k2 * (C / 6 / scale**2) ** self.eta)

    def flops_where(self, tokens_per_parameter: float, *, unit: float | None = None) -> float:
        """The C at which the printed formula gives this D / N."""
        scale = self.unit if unit is None else unit
        return float(6 * scale**2 * (1 / (self.k2 * tokens_per_parameter)) ** (1 / self.eta))


# arXiv 2404.06395 (MiniCPM), the sections on scaling law and batch size. Printed: alpha, beta, K^2, eta, D / N, the batch law.
# Two things the report does not say. (1) From the rounded exponents eta is -0.115, not -0.10. (2) K^2 (C / 6)^eta depends on
# the unit of N and D: with plain counts D / N = 192 would be at C = 4e3 FLOPs, and thousands at any real budget; with
# billions it is at 4e21 FLOPs, about 1.9e9 parameters, in the midst of their models. So billions are taken (deduced).
MINICPM = Published(
    source="arXiv 2404.06395",
    alpha=0.29,
    beta=0.23,
    k2=0.01,
    eta=-0.10,
    tokens_per_parameter=192.0,
    unit=1e9,
    batch=PowerLaw(1.21e9, -6.24),  # tokens of a batch, from the loss on C4
)


# --- what laws are fitted to


@dataclass(frozen=True, slots=True)
class Point:
    """One run: parameters, tokens, loss at its end."""

    N: float
    D: float
    loss: float
    seed: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name + ': ' if self.name else ''}N={self.N:g}, D={self.D:g}, loss={self.loss:g}"


class Extent:
    """How far the points of a law reach."""

    points: tuple[Point, ...]

    @property
    def ends(self) -> tuple[float, float]:
        """The largest N and D of the points."""
        return max(p.N for p in self.points), max(p.D for p in self.points)

    @property
    def starts(self) -> tuple[float, float]:
        """The smallest N and D of the points."""
        return min(p.N for p in self.points), min(p.D for p in self.points)

    def above(self, N: float, D: float) -> float:
        """How many times past the largest points this is, in N or in D; 1 where it is not."""
        n, d = self.ends
        return max(1.0, N / n, D / d)

    def below(self, N: float, D: float) -> float:
        """How many times below the smallest points this is, in N or in D; 1 where it is not."""
        n, d = self.starts
        return max(1.0, n / N, d / D)

    def reach(self, N: float, D: float) -> float:
        """How many times outside the points this is, in N or in D, above or below; 1 within."""
        return max(self.above(N, D), self.below(N, D))


# --- intervals


def student(dof: int) -> float:
    """The 97.5 % point of Student's t: exact for one and two, else the Cornish-Fisher series (within 1 %)."""
    z = WIDE
    if dof == 1:
        return 12.7062
    if dof == 2:
        return 4.30265
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / dof + second / dof**2 + third / dof**3


def between(values: Array, level: float) -> tuple[float, float]:
    """The middle part of a sample. Orders, not interpolation: there may be infinities among them."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a probability between 0 and 1, for example 0.95")
    ordered = np.sort(values)
    skip = int(len(ordered) * (1 - level) / 2)
    return float(ordered[skip]), float(ordered[len(ordered) - 1 - skip])

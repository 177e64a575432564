"""A law of loss whose two terms limit each other, averaged over what the points leave open.

    L(N, D) = E + ((A / N^alpha)^p + (B / D^beta)^p)^(1 / p)

p = 1 is Chinchilla's law, where the gain from size is the same at every number of tokens. In the first millions of tokens it is
not: there small and large models are held back by tokens alike, and p is above 1 (Kaplan's law, arXiv:2001.08361, is E = 0
and p = 1 / beta). Few and short runs tell neither p nor E, and most of an error far away comes from these two. So no
single best law is taken: all of a grid of E and p are fitted, each weighed by how well it fits and by what was known before,
and a prediction is the mean over them. What was known: a floor given by the user, and exponents about those that were
published (0.34 and 0.28 in arXiv:2203.15556, 0.29 and 0.23 in arXiv:2404.06395, 0.35 and 0.37 in arXiv:2404.10102), within
a factor of 1.5 or so.

What it gives up: the noise that the runs of a size share is not told from that of each, so intervals are somewhat narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gangpao.sandbox.fit import Point
from gangpao.sandbox.laws import EXPONENTS, FLOOR, Array, between

COUPLINGS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)  # equally likely before
PUBLISHED, SPREAD = 0.33, 0.4  # of an exponent: the median, and the standard deviation of its logarithm
DRAWS = 1000
_FLOORS = 24
_STARTS = ((0.2, 0.3), (0.5, 0.3), (0.3, 0.6))


@dataclass(frozen=True)
class CoupledFit:
    """The laws that the points allow.

    draws: rows E, log A, alpha, log B, beta, p with A and B at the centre of the points, each as likely as the others. sigma:
    relative scatter about the best one. best: the likeliest row.
    """

    points: tuple[Point, ...]
    floor: tuple[float, float] | None
    sigma: float
    best: tuple[float, ...]
    draws: Array = field(repr=False, compare=False)
    centre: tuple[float, float] = field(repr=False, compare=False)

    def predict(self, N: float, D: float) -> float:
        """The mean of what the laws say."""
        return float(self._values(N, D).mean())

    def interval(self, N: float, D: float, level: float = 0.95) -> tuple[float, float]:
        """Where the loss of one more run lies with this probability."""
        rng = np.random.default_rng(1)
        dof = max(1, len(self.points) - 5)
        noise = self.sigma * rng.standard_normal(len(self.draws)) * np.sqrt(dof / rng.chisquare(dof, len(self.draws)))
        return between(self._values(N, D) * (1 + noise), level)

    def bounds(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of E, alpha, beta or p."""
        return between(self.draws[:, {"E": 0, "alpha": 2, "beta": 4, "p": 5}[name]], level)

    def _values(self, N: float, D: float) -> Array:
        E, a, alpha, b, beta, p = self.draws.T
        size, data = math.log(N / self.centre[0]), math.log(D / self.centre[1])
        return np.asarray(E + _joined(a - alpha * size, b - beta * data, p))

    def json(self) -> dict[str, Any]:
        """All of it as plain data."""
        names = ("E", "alpha", "beta", "p")
        return {
            "form": "coupled", "sigma": self.sigma, "points": len(self.points), "floor": self.floor,
            "best": dict(zip(("E", "log_A", "alpha", "log_B", "beta", "p"), self.best, strict=True)),
            "bounds": {name: list(self.bounds(name)) for name in names}, "centre": list(self.centre),
        }  # fmt: skip


def fit_coupled(points: Sequence[Point], *, floor: tuple[float, float] | None = None) -> CoupledFit:
    """See the module. floor: what E is expected to be, and the standard deviation of that; None: anything below the lowest loss.

    Raises ValueError for too few points, or a floor that is none.
    """
    if len(points) < 6:
        raise ValueError(f"{len(points)} points are too few for a law: run at least six")
    if floor is not None and not (floor[0] >= 0 and floor[1] > 0):
        raise ValueError(f"floor={floor}: a loss that is not below zero, and a standard deviation above it")
    rows = sorted((p.N, p.D, p.loss) for p in points)
    N, D, loss = np.array(rows, dtype=float).T
    centre = float(np.exp(np.log(N).mean())), float(np.exp(np.log(D).mean()))
    n, d = np.log(N / centre[0]), np.log(D / centre[1])
    cells = [
        _Cell(E, p, n, d, loss)
        for p in COUPLINGS
        for E in np.linspace(0, 0.97 * float(loss.min()), _FLOORS)
    ]  # fmt: skip
    least = max(min(cell.cost for cell in cells), FLOOR**2 * len(rows))
    dof = max(1, len(rows) - 5)
    weights = np.array([cell.log_weight(least, dof, floor) for cell in cells])
    weights = np.exp(weights - weights.max())
    sigma = math.sqrt(least / dof)
    rng = np.random.default_rng(0)
    picked = rng.choice(len(cells), DRAWS, p=weights / weights.sum())
    draws = np.concatenate(
        [cells[i].draw(rng, int(count), sigma) for i, count in zip(*np.unique(picked, return_counts=True), strict=True)]
    )
    best = cells[int(weights.argmax())]
    row = (float(best.E), best.x[0], math.exp(best.x[1]), best.x[2], math.exp(best.x[3]), best.p)
    return CoupledFit(tuple(points), floor, sigma, tuple(map(float, row)), draws, centre)


def _joined(u: Array, v: Array, p: float | Array) -> Array:
    """(e^(p u) + e^(p v))^(1 / p)."""
    return np.asarray(np.exp(np.logaddexp(p * u, p * v) / p))


class _Cell:
    """The best law for one E and p: x = log A, log alpha, log B, log beta, by Levenberg-Marquardt from some starts.

    The cost is the sum of squared relative residuals; the published exponents count as if the scatter were half a percent.
    """

    def __init__(self, E: float, p: float, n: Array, d: Array, loss: Array) -> None:
        self.E, self.p, self.n, self.d, self.loss = E, p, n, d, loss
        rest = math.log(max(1e-6, float(loss.mean()) - E) / 2)
        found = [self._solve(np.array([rest, math.log(a), rest, math.log(b)])) for a, b in _STARTS]
        self.x = min(found, key=lambda x: float((self.residual(x) ** 2).sum()))
        self.cost = float((self.residual(self.x) ** 2).sum())

    def residual(self, x: Array) -> Array:
        value = self.E + _joined(x[0] - np.exp(x[1]) * self.n, x[2] - np.exp(x[3]) * self.d, self.p)
        pull = 0.005 / SPREAD * (x[[1, 3]] - math.log(PUBLISHED))
        return np.concatenate([np.log(value / self.loss), pull])

    def _jacobian(self, x: Array) -> Array:
        step = 1e-5 * np.eye(4)
        return np.stack([(self.residual(x + h) - self.residual(x - h)) / 2e-5 for h in step], axis=1)

    def _solve(self, x: Array) -> Array:
        low, high = math.log(EXPONENTS[0]), math.log(EXPONENTS[1])
        damp, r = 1e-2, self.residual(x)
        for _ in range(60):
            J = self._jacobian(x)
            H = J.T @ J
            step = np.linalg.solve(H + damp * np.diag(np.diag(H) + 1e-12), -J.T @ r)
            there = x + np.clip(step, -0.7, 0.7)
            there[[1, 3]] = np.clip(there[[1, 3]], low, high)
            new = self.residual(there)
            gain = float(r @ r - new @ new)
            if gain <= 0:
                damp *= 5
                if damp > 1e6:
                    break
                continue
            x, r, damp = there, new, max(damp / 5, 1e-9)
            if gain < 1e-12 * float(r @ r):
                break
        return x

    def log_weight(self, least: float, dof: int, floor: tuple[float, float] | None) -> float:
        """With the scatter unknown, the likelihood goes with its sum of squares to the power of -dof / 2."""
        known = 0.0 if floor is None else -0.5 * ((self.E - floor[0]) / floor[1]) ** 2
        return -0.5 * dof * math.log(max(self.cost, least) / least) + known

    def draw(self, rng: np.random.Generator, count: int, sigma: float) -> Array:
        """Laws of this E and p that are about as likely as the best."""
        J = self._jacobian(self.x)
        values, vectors = np.linalg.eigh(J.T @ J)
        spread = sigma * rng.standard_normal((count, 4)) / np.sqrt(np.maximum(values, 1e-9 * values.max()))
        x = self.x + spread @ vectors.T
        ends = np.log(EXPONENTS)
        x[:, [1, 3]] = np.exp(np.clip(x[:, [1, 3]], *ends))
        return np.column_stack([np.full(count, self.E), x, np.full(count, self.p)])

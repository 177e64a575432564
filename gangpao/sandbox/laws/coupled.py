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
from numpy.typing import NDArray

from gangpao.sandbox.laws.scaling_law import Array, Extent, Point, between
from gangpao.sandbox.laws.solver import EXPONENTS, FLOOR

COUPLINGS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)  # equally likely before
PUBLISHED, SPREAD = 0.33, 0.4  # of an exponent: the median, and the standard deviation of its logarithm
DRAWS = 1000
_FLOORS = 24
_ROUNDS = 60
_STARTS = ((0.2, 0.3), (0.5, 0.3), (0.3, 0.6))


@dataclass(frozen=True)
class CoupledFit(Extent):
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

    def ratios(self, C: float) -> Array:
        """D / N of the lowest loss among those with 6 N D = C, of each law: there alpha (A / N^alpha)^p = beta (B / D^beta)^p."""
        _, a, alpha, b, beta, p = self.draws.T
        whole = math.log(C / 6) - math.log(self.centre[0]) - math.log(self.centre[1])
        size = (a - b + beta * whole + np.log(alpha / beta) / p) / (alpha + beta)
        return np.asarray(np.exp(whole - 2 * size) * self.centre[1] / self.centre[0])

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Nothing by name: what the points do not tell is averaged over, and the interval says how much that is."""
        return ()

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
    grid = [(E, p) for p in COUPLINGS for E in np.linspace(0, 0.97 * float(loss.min()), _FLOORS)]
    floors, powers = np.array(grid).T
    cells = _Cells(floors, powers, np.log(N / centre[0]), np.log(D / centre[1]), loss)
    x, cost = cells.solve()
    dof = max(1, len(rows) - 5)
    least = max(float(cost.min()), FLOOR**2 * len(rows))
    # With the scatter unknown, the likelihood goes with its sum of squares to the power of -dof / 2.
    weights = -0.5 * dof * np.log(np.maximum(cost, least) / least)
    if floor is not None:
        weights -= 0.5 * ((cells.E - floor[0]) / floor[1]) ** 2
    best = int(weights.argmax())
    weights = np.exp(weights - weights[best])
    sigma = math.sqrt(least / dof)
    rng = np.random.default_rng(0)
    picked = np.sort(rng.choice(len(grid), DRAWS, p=weights / weights.sum()))
    draws = cells.drawn(picked, x[picked], sigma * rng.standard_normal((DRAWS, 4)))
    row = cells.drawn(np.array([best]), x[[best]], np.zeros((1, 4)))[0]
    return CoupledFit(tuple(points), floor, sigma, tuple(map(float, row)), draws, centre)


def _joined(u: Array, v: Array, p: float | Array) -> Array:
    """(e^(p u) + e^(p v))^(1 / p)."""
    return np.asarray(np.exp(np.logaddexp(p * u, p * v) / p))


class _Cells:
    """The best law for each E and p: x = log A, log alpha, log B, log beta, by Levenberg-Marquardt from some starts, all at once.

    The cost is the sum of squared relative residuals; the published exponents count as if the scatter were half a percent.
    """

    def __init__(self, E: Array, p: Array, n: Array, d: Array, loss: Array) -> None:
        self.E, self.p, self.n, self.d, self.loss = E, p, n, d, loss

    def residual(self, rows: NDArray[np.intp], x: Array) -> Array:
        """[rows, points and 2] of laws x with the E and p of `rows`."""
        a, alpha, b, beta = x.T[:, :, None]
        joined = _joined(a - np.exp(alpha) * self.n, b - np.exp(beta) * self.d, self.p[rows, None])
        pull = 0.005 / SPREAD * (x[:, [1, 3]] - math.log(PUBLISHED))
        return np.concatenate([np.log((self.E[rows, None] + joined) / self.loss), pull], axis=1)

    def jacobian(self, rows: NDArray[np.intp], x: Array) -> Array:
        """[rows, points and 2, 4]."""
        steps = 1e-5 * np.eye(4)
        return np.stack([(self.residual(rows, x + h) - self.residual(rows, x - h)) / 2e-5 for h in steps], axis=2)

    def solve(self) -> tuple[Array, Array]:
        """x and cost of each."""
        rest = np.log(np.maximum(1e-6, self.loss.mean() - self.E) / 2)
        starts = [
            self._descend(np.stack([rest, np.full_like(rest, math.log(a)), rest, np.full_like(rest, math.log(b))], 1))
            for a, b in _STARTS
        ]
        costs = np.stack([cost for _, cost in starts])
        chosen, every = costs.argmin(0), np.arange(len(self.E))
        return np.stack([x for x, _ in starts])[chosen, every], costs[chosen, every]

    def _descend(self, x: Array) -> tuple[Array, Array]:
        ends = np.log(EXPONENTS)
        cost = (self.residual(np.arange(len(x)), x) ** 2).sum(1)
        damp, left = np.full(len(x), 1e-2), np.arange(len(x))
        for _ in range(_ROUNDS):
            J, r = self.jacobian(left, x[left]), self.residual(left, x[left])
            H = np.swapaxes(J, 1, 2) @ J
            H += (damp[left, None] * np.einsum("kii->ki", H) + 1e-12)[:, :, None] * np.eye(4)
            step = np.linalg.solve(H, -np.swapaxes(J, 1, 2) @ r[:, :, None])[:, :, 0]
            there = x[left] + np.clip(step, -0.7, 0.7)
            there[:, [1, 3]] = np.clip(there[:, [1, 3]], *ends)
            new = (self.residual(left, there) ** 2).sum(1)
            gain = cost[left] - new
            better = gain > 0
            x[left[better]], cost[left[better]] = there[better], new[better]
            damp[left] = np.where(better, np.maximum(damp[left] / 5, 1e-9), damp[left] * 5)
            left = left[np.where(better, gain > 1e-12 * new, damp[left] < 1e6)]
            if not len(left):
                break
        return x, cost

    def drawn(self, rows: NDArray[np.intp], x: Array, spread: Array) -> Array:
        """Laws about as likely as x: rows E, log A, alpha, log B, beta, p. spread: normal numbers times the scatter, [rows, 4]."""
        J = self.jacobian(rows, x)
        values, vectors = np.linalg.eigh(np.swapaxes(J, 1, 2) @ J)
        scaled = spread / np.sqrt(np.maximum(values, 1e-9 * values[:, -1:]))
        near = x + (vectors @ scaled[:, :, None])[:, :, 0]
        near[:, [1, 3]] = np.exp(np.clip(near[:, [1, 3]], *np.log(EXPONENTS)))
        return np.column_stack([self.E[rows], near, self.p[rows]])

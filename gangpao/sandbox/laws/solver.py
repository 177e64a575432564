"""The solver that fits L(N, D) = E + A / N^alpha + B / D^beta, once or to many resamples at a time.

The idea: with the two exponents given, the law is linear, so only the exponents are searched (variable projection). All solves of
a grid or of many resamples are one array operation, and E, A, B >= 0.

What it gives up: exponents outside `EXPONENTS`. N and D are centred in logs, so data of any size are as well conditioned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gangpao.sandbox.laws.scaling_law import Array

EXPONENTS = (0.02, 3.0)  # below, a power cannot be told from a logarithm; above, it is gone within a doubling or two
PARAMETERS = 5
HUBER = 1.345  # 95 % efficient when the noise is normal
FLOOR = 1e-7  # relative residuals below are rounding
SHARES = np.linspace(0, 0.9, 10)  # of the variance of the noise: what may be common to the runs of a size
_GRID = 24
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Design:
    """Logs of N and D about their means."""

    n: Array
    d: Array
    mean_n: float
    mean_d: float

    @staticmethod
    def of(N: Array, D: Array) -> Design:
        n, d = np.log(N), np.log(D)
        return Design(n - n.mean(), d - d.mean(), float(n.mean()), float(d.mean()))

    @property
    def flat(self) -> tuple[bool, bool]:
        """Is an exponent free? Two values of N fit any alpha, with E and A to match; so do two of D."""
        return len(np.unique(self.n)) < 3, len(np.unique(self.d)) < 3

    def laws(self, exponents: Array, linear: Array) -> Array:
        """Rows E, A, B, alpha, beta for N and D as they are, from logs of exponents and the linear part about the means."""
        a, b = np.exp(exponents[:, 0]), np.exp(exponents[:, 1])
        A = linear[:, 1] * np.exp(a * self.mean_n)
        B = linear[:, 2] * np.exp(b * self.mean_d)
        return np.stack([linear[:, 0], A, B, a, b], axis=1) + 0.0  # no -0.0


def _least(columns: list[Array], y: Array) -> tuple[list[Array], Array]:
    """Least squares by Gram-Schmidt for every row at once: the coefficients and the squared residual."""
    q: list[Array] = []
    steps: list[list[Array]] = []
    rest, shares = y, []
    for column in columns:
        size = np.sqrt((column * column).sum(1))
        above = []
        for unit in q:
            along = (unit * column).sum(1)
            column = column - along[:, None] * unit
            above.append(along)
        norm = np.sqrt((column * column).sum(1))
        # A column inside the span of those before it says nothing: its coefficient becomes 0.
        useful = norm > 1e-12 * size
        unit = column * (useful / np.maximum(norm, _TINY))[:, None]
        share = (unit * rest).sum(1)
        rest = rest - share[:, None] * unit
        q.append(unit)
        steps.append([*above, np.where(useful, norm, 1.0)])
        shares.append(share)
    found = shares
    for i in reversed(range(len(columns))):
        found[i] = found[i] / steps[i][i]
        for j in range(i):
            found[j] = found[j] - steps[i][j] * found[i]
    return found, (rest * rest).sum(1)


def project(design: Design, exponents: Array, y: Array, root: Array) -> tuple[Array, Array]:
    """The best E, A, B >= 0 for every row of exponents (logs), and the sum of (root * residual)^2.

    y and root: a row each for every row of exponents, or one row for all.
    """
    a, b = np.exp(exponents[:, :1]), np.exp(exponents[:, 1:])
    shape = (len(exponents), len(design.n))
    root = np.broadcast_to(root, shape)
    target = np.broadcast_to(y, shape) * root
    # (1 - n^-a) / a instead of n^-a: for small exponents a power is nearly the constant, this is nearly the logarithm.
    size = -np.expm1(-a * design.n) / a * root
    data = -np.expm1(-b * design.d) / b * root
    (c, u, v), cost = _least([root, size, data], target)
    A, B = -u / a[:, 0], -v / b[:, 0]
    linear = np.stack([c - A - B, A, B], axis=1)
    bad = np.flatnonzero(linear.min(1) < 0)
    if len(bad):
        columns = [root[bad], root[bad] - a[bad] * size[bad], root[bad] - b[bad] * data[bad]]
        linear[bad], cost[bad] = _bounded(columns, target[bad])
    return linear, cost


def _bounded(columns: list[Array], y: Array) -> tuple[Array, Array]:
    """With at least one of E, A, B at 0: the best of the feasible subsets. E alone always is, as losses are positive."""
    linear = np.zeros((len(y), 3))
    best = np.full(len(y), np.inf)
    for subset in ((0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):
        found, cost = _least([columns[i] for i in subset], y)
        better = (np.min(found, axis=0) >= 0) & (cost < best)
        best[better] = cost[better]
        linear[better] = 0
        for i, value in zip(subset, found, strict=True):
            linear[better, i] = value[better]
    return linear, best


def grid() -> Array:
    """Logs of the exponents that are tried first."""
    side = np.linspace(math.log(0.05), math.log(1.6), _GRID)
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Pull:
    """A prior: weight * (distance of the logs of the exponents to centre)^2 is added to the cost. Rows as the exponents."""

    centre: Array
    weight: float


def refine(
    design: Design,
    start: Array,
    y: Array,
    root: Array,
    *,
    step: float = 0.3,
    rounds: int = 40,
    until: float = 1e-6,
    pull: Pull | None = None,
) -> tuple[Array, Array]:
    """Logs of the exponents of lowest cost near `start`, and E, A, B there; a row for each problem.

    Each round looks at the eight neighbours and at the minimum of the parabola through all nine, goes to the best, and takes a
    smaller step where that is the middle, down to `until`.
    """
    low, high = math.log(EXPONENTS[0]), math.log(EXPONENTS[1])
    offsets = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], dtype=float)
    out = np.clip(start, low, high)
    shape = (len(out), len(design.n))
    y, root = np.broadcast_to(y, shape), np.broadcast_to(root, shape)
    centre = np.broadcast_to(pull.centre, out.shape) if pull else out
    h = np.full(len(out), step)
    active = np.arange(len(out))

    def cost(points: Array, rows: NDArray[np.intp]) -> Array:
        value = project(design, points, y[rows], root[rows])[1]
        return value + pull.weight * ((points - centre[rows]) ** 2).sum(1) if pull else value

    for _ in range(rounds):
        here, reach = out[active], h[active]
        around = np.clip(here[:, None] + offsets * reach[:, None, None], low, high)
        values = cost(around.reshape(-1, 2), np.repeat(active, 9)).reshape(-1, 9)
        jump = np.clip(here + _newton(values) * reach[:, None], low, high)
        values = np.concatenate([values, cost(jump, active)[:, None]], axis=1)
        # Equal costs: the middle, so that a flat direction is not walked along.
        pick = np.where(values.min(1) < values[:, 4], values.argmin(1), 4)
        out[active] = np.concatenate([around, jump[:, None]], axis=1)[np.arange(len(active)), pick]
        moved = np.abs(out[active] - here).max(1)
        h[active] = np.where(moved < 0.5 * reach, reach / 4, reach)
        active = active[h[active] > until]
        if not len(active):
            break
    return out, project(design, out, y, root)[0]


def _newton(v: Array) -> Array:
    """The minimum of a parabola through nine values, in steps; at most two steps away, 0 where it has none."""
    gx, gy = (v[:, 7] - v[:, 1]) / 2, (v[:, 5] - v[:, 3]) / 2
    xx, yy = v[:, 7] - 2 * v[:, 4] + v[:, 1], v[:, 5] - 2 * v[:, 4] + v[:, 3]
    xy = (v[:, 8] - v[:, 6] - v[:, 2] + v[:, 0]) / 4
    det = xx * yy - xy * xy
    good = (det > 1e-9 * np.abs(xx * yy)) & (xx > 0)
    safe = np.where(good, det, 1.0)
    step = np.stack([-(yy * gx - xy * gy) / safe, -(xx * gy - xy * gx) / safe], axis=1)
    return np.where(good[:, None], np.clip(step, -2, 2), 0.0)


# --- a robust fit, and many


def fitted(design: Design, exponents: Array, linear: Array) -> Array:
    """Losses of the laws, a row each."""
    a, b = np.exp(exponents[:, :1]), np.exp(exponents[:, 1:])
    return linear[:, :1] + linear[:, 1:2] * np.exp(-a * design.n) + linear[:, 2:] * np.exp(-b * design.d)


def scale(residual: Array, parameters: int) -> float:
    """Standard deviation from the median of the residuals that the parameters could not make small."""
    size = np.sort(np.abs(residual))
    return max(FLOOR, float(np.median(size[min(parameters, len(size) - 1) :])) / 0.6745)


def robust(design: Design, loss: Array) -> tuple[Array, Array, Array, Array]:
    """Huber's fit of relative residuals: logs of exponents, linear part, residuals, weights."""
    # Least absolute deviations on the grid: a start that one wild run does not decide.
    nodes = grid()
    for i in np.flatnonzero(design.flat):
        nodes[:, i] = math.log(0.3)
    weight = np.ones((len(nodes), len(loss)))
    size, losses = weight, loss
    for _ in range(10):
        linear, _ = project(design, nodes, loss, np.sqrt(weight) / losses)
        losses = fitted(design, nodes, linear)
        size = np.abs(loss / losses - 1)
        weight = 1 / np.maximum(size, 1e-5)
    exponents = nodes[[int(size.sum(1).argmin())]]
    linear = linear[[int(size.sum(1).argmin())]]
    step = 0.3
    for _ in range(15):
        losses = fitted(design, exponents, linear)[0]
        residual = loss / losses - 1
        weight = np.minimum(1, HUBER * scale(residual, PARAMETERS) / np.maximum(np.abs(residual), FLOOR))
        before = exponents
        exponents, linear = refine(design, exponents, loss, np.sqrt(weight) / losses, step=step)
        if np.abs(exponents - before).max() < 1e-5:
            break
        step = 0.1
    return exponents, linear, loss / fitted(design, exponents, linear)[0] - 1, weight


def _basis(design: Design, exponents: Array, linear: Array, losses: Array) -> Array:
    """Orthonormal directions in which the five numbers of the law move the relative residuals."""
    (a, b), (_, A, B) = np.exp(exponents[0]), linear[0]
    size, data = np.exp(-a * design.n), np.exp(-b * design.d)
    jacobian = (
        np.stack([np.ones_like(size), size, data, A * size * design.n, B * data * design.d], axis=1) / losses[:, None]
    )
    found = np.linalg.svd(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), _TINY), full_matrices=False)
    out: Array = found.U[:, found.S[0] / 1e9 < found.S]
    return out


def shared_noise(design: Design, residual: Array, basis: Array, shares: Array) -> tuple[Array, Array, int]:
    """How much of the noise all runs of a size share: the probability of each of `shares`, the sum of squares of the whole noise
    if so, and its degrees of freedom.

    Restricted likelihood, all shares alike before. With few sizes the points hardly tell, and then all stay possible.
    """
    n, p = basis.shape
    same = (design.n[:, None] == design.n).astype(float)
    dof = max(1, n - p)
    value, squares = np.empty(len(shares)), np.empty(len(shares))
    for i, share in enumerate(shares):
        cov = (1 - share) * np.eye(n) + share * same
        weighted = np.linalg.solve(cov, np.column_stack([basis, residual]))
        gram, side = basis.T @ weighted[:, :p], basis.T @ weighted[:, p]
        squares[i] = max(float(residual @ weighted[:, p] - side @ np.linalg.solve(gram, side)), _TINY)
        value[i] = -(np.linalg.slogdet(cov)[1] + np.linalg.slogdet(gram)[1] + dof * math.log(squares[i])) / 2
    chance = np.exp(value - value.max())
    return chance / chance.sum(), squares, dof


def bootstrap(
    design: Design,
    exponents: Array,
    linear: Array,
    residual: Array,
    resamples: int,
    prior: tuple[float, float, float] | None,
    shares: Array,
) -> tuple[Array, Array, float]:
    """Laws fitted to simulated losses, the relative error of one more run for each, and the share of the noise that the runs of a
    size have in common, on average.

    Decays of one stable run share its luck, which moves a whole size and looks like a law: so each resample draws how much is
    shared, and its noise level as uncertain as it is at these degrees of freedom (chi-square).
    """
    rng = np.random.default_rng(0)
    losses, n = fitted(design, exponents, linear), len(residual)
    chance, squares, dof = shared_noise(design, residual, _basis(design, exponents, linear, losses[0]), shares)
    which = rng.choice(len(shares), resamples, p=chance)
    level = np.sqrt(squares[which] / rng.chisquare(dof, resamples))[:, None]
    share = shares[which][:, None]
    size = np.append(np.unique(design.n, return_inverse=True)[1], n)  # the one more run is of another size
    own, common = rng.standard_normal((resamples, n + 1)), rng.standard_normal((resamples, n + 1))
    # A loss is positive, also with one degree of freedom, where the level has no mean.
    drawn = np.clip(level * (np.sqrt(1 - share) * own + np.sqrt(share) * common[:, size]), -0.9, 9.0)
    start = np.repeat(exponents, resamples, axis=0)
    for i in np.flatnonzero(design.flat):  # the search stays where it starts in a flat direction: start anywhere
        start[:, i] = rng.uniform(math.log(EXPONENTS[0]), math.log(EXPONENTS[1]), resamples)
    pull = None
    if prior is not None:
        # The prior is a measurement like the others: it has its own error in each resample.
        spread = rng.standard_normal((resamples, 2)) / math.sqrt(prior[2])
        pull = Pull(np.log([prior[:2]]) + spread, max(float(squares @ chance) / dof, FLOOR**2) * prior[2])
    found, parts = refine(
        design, start, losses * (1 + drawn[:, :n]), 1 / losses, step=0.4, rounds=25, until=1e-3, pull=pull
    )
    return design.laws(found, parts), drawn[:, n], float(chance @ shares)

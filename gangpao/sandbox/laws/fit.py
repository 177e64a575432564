"""Laws from the results of many small runs, with intervals: loss over size and tokens, power laws, the best of a sweep, noise.

The idea: a law is worth what its interval says. Every fit is robust (Huber) and names the points it left out by rule; it is
then repeated on simulated losses, with the small number of points paid for by a random noise level, so that intervals
widen as Student's t does. Everything is deterministic and does not depend on the order of the points.

What it gives up: with four sizes nothing tells how much luck the runs of a size share, and where it is nearly all of
it, 95 % intervals hold about 60 to 80 %; with six sizes about 85 %. A law of another form is not noticed far away:
`held_out` is the check that rests on neither.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gangpao.sandbox.laws.scaling_law import (
    MINICPM,
    Array,
    Extent,
    Point,
    PowerLaw,
    ScalingLaw,
    between,
    student,
)
from gangpao.sandbox.laws.solver import (
    EXPONENTS,
    FLOOR,
    HUBER,
    PARAMETERS,
    SHARES,
    Design,
    Pull,
    bootstrap,
    fitted,
    refine,
    robust,
    scale,
)
from gangpao.sandbox.reasons import NoLaw, Reason

__all__ = [
    "MINICPM", "SUPPORT", "HeldOut", "Noise", "Optimum", "Point", "PowerFit", "PowerLaw",
    "ScalingFit", "ScalingLaw", "fit_optimum", "fit_power", "fit_scaling", "held_out", "seed_noise",
]  # fmt: skip

SUPPORT = 8.0  # a law is believed up to this many times outside the N and D it was fitted to
SKEW = 0.3  # of a sweep: its cubic term over its curvature, per unit of log x
VAGUE = 30.0  # an exponent is not known whose 95 % interval is wider than this factor
OUTLIER = 6.0  # times the robust scale of the residuals: farther points are left out
RESAMPLES = 200


# --- the law of loss


@dataclass(frozen=True)
class ScalingFit(Extent):
    """A law, the points it was fitted to, and how well it is known.

    sigma: relative scatter about the law. shared: how much of the noise the runs of a size seem to share, 0 to 0.9. draws: laws
    (rows E, A, B, alpha, beta) of the resamples; noise: the relative error of one more run, for each. without_prior: the law
    without the pull of `prior` (alpha, beta, strength).
    """

    law: ScalingLaw
    points: tuple[Point, ...]
    excluded: tuple[tuple[Point, Reason], ...]
    sigma: float
    shared: float
    draws: Array = field(repr=False, compare=False)
    noise: Array = field(repr=False, compare=False)
    prior: tuple[float, float, float] | None = None
    without_prior: ScalingLaw | None = None

    def predict(self, N: float, D: float) -> float:
        """The loss the law gives."""
        return self.law.predict(N, D)

    def interval(self, N: float, D: float, level: float = 0.95, *, noise: bool = True) -> tuple[float, float]:
        """Where the loss of one more run lies with this probability; without `noise`, where the law does."""
        E, A, B, alpha, beta = self.draws.T
        values = E + A * N**-alpha + B * D**-beta
        return between(values * (1 + self.noise) if noise else values, level)

    def bounds(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of E, A, B, alpha or beta."""
        names = ("E", "A", "B", "alpha", "beta")
        if name not in names:
            raise ValueError(f"a scaling law has {', '.join(names)}, not {name!r}")
        return between(self.draws[:, names.index(name)], level)

    def ratio_interval(self, C: float, level: float = 0.95) -> tuple[float, float]:
        """Interval of D / N at the best size for C FLOPs; infinite or 0 where size or tokens may not matter."""
        return between(np.array([ScalingLaw(*map(float, row)).ratio(C) for row in self.draws]), level)

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Exponents that the points do not tell: two values only, no effect, an end of what is searched, or an interval that
        says nothing (VAGUE)."""
        low, high = EXPONENTS[0] * 1.001, EXPONENTS[1] * 0.999
        law, sizes, tokens = self.law, {p.N for p in self.points}, {p.D for p in self.points}
        parts = (("alpha", law.alpha, law.A, sizes), ("beta", law.beta, law.B, tokens))
        least = 1e-6 * self.points[0].loss
        vague = {s for s, *_ in parts for below, above in [self.bounds(s)] if above > VAGUE * below}
        bad = (s for s, k, c, x in parts if len(x) < 3 or c * min(x) ** -k < least or not low < k < high)
        return tuple(sorted(vague.union(bad)))

    def json(self) -> dict[str, Any]:
        """All of it as plain data."""
        names = ("E", "A", "B", "alpha", "beta")
        out: dict[str, Any] = {name: getattr(self.law, name) for name in names}
        out["bounds"] = {name: list(self.bounds(name)) for name in names}
        out |= {
            "sigma": self.sigma,
            "shared": self.shared,
            "points": len(self.points),
            "ends": list(self.ends),
            "support": SUPPORT,
        }
        out["excluded"] = [{"point": str(p), "reason": why.model_dump(mode="json")} for p, why in self.excluded]
        out["undetermined"] = list(self.undetermined)
        if self.prior and self.without_prior:
            plain = {name: getattr(self.without_prior, name) for name in names}
            out["prior"] = {"alpha": self.prior[0], "beta": self.prior[1], "strength": self.prior[2], "without": plain}
        return out


def fit_scaling(
    points: Sequence[Point],
    *,
    prior: tuple[float, float, float] | None = None,
    shared: bool = True,
    resamples: int = RESAMPLES,
) -> ScalingFit:
    """The law of loss from at least six runs of several sizes and token counts, and its intervals.

    shared: the runs of a size may have noise in common, as decays of one stable run do; False for runs that were trained
    separately, which gives narrower intervals.

    Points that are not finite are left out, and with ten or more also those farther from a first robust fit than OUTLIER times
    the scale of the residuals, but never more than a quarter. prior = (alpha, beta, strength) pulls the exponents
    there as if each had been measured with a standard deviation of 1 / sqrt(strength) in its logarithm.
    """
    if resamples < 20:
        raise ValueError(f"resamples={resamples}: an interval needs at least 20")
    good, excluded = _usable(points)
    if prior is not None and not (min(prior) > 0 and all(math.isfinite(v) for v in prior)):
        raise ValueError(f"prior={prior}: alpha, beta and strength must be positive numbers")
    kept, far = _trimmed(good)
    excluded += far
    N, D, loss = _arrays(kept)
    design = Design.of(N, D)
    exponents, linear, residual, weight = robust(design, loss)
    plain = _law(design, exponents, linear)
    dof = max(1, len(kept) - PARAMETERS)
    sigma = math.sqrt(float(residual @ residual) / dof)
    law = plain
    if prior is not None:
        pull = Pull(np.log([prior[:2]]), max(sigma, FLOOR) ** 2 * prior[2])
        root = np.sqrt(weight) / fitted(design, exponents, linear)
        exponents, linear = refine(design, exponents, loss, root, pull=pull)
        law = _law(design, exponents, linear)
        residual = loss / fitted(design, exponents, linear)[0] - 1
    shares = SHARES if shared else SHARES[:1]
    draws, noise, common = bootstrap(design, exponents, linear, residual, resamples, prior, shares)
    return ScalingFit(law, tuple(kept), tuple(excluded), sigma, common, draws, noise, prior, plain if prior else None)


def _usable(points: Sequence[Point]) -> tuple[list[Point], list[tuple[Point, Reason]]]:
    """Sorted finite points, and the others with the reason. Raises NoLaw when what is left cannot give a law."""
    good, bad = [], []
    for p in points:
        if not all(math.isfinite(v) for v in (p.N, p.D, p.loss)):
            bad.append((p, Reason.of("not_finite")))
        elif min(p.N, p.D, p.loss) <= 0:
            bad.append((p, Reason.of("not_positive")))
        else:
            good.append(p)
    good.sort(key=lambda p: (p.N, p.D, p.loss))
    _enough(good, len(bad))
    return good, bad


def _enough(points: Sequence[Point], left_out: int = 0) -> None:
    sizes, tokens = len({p.N for p in points}), len({p.D for p in points})
    if sizes < 2:
        raise NoLaw(Reason.of("few_sizes", count=sizes, left_out=left_out))
    if tokens < 2:
        raise NoLaw(Reason.of("few_tokens", count=tokens, left_out=left_out))
    if len(points) < PARAMETERS + 1:
        raise NoLaw(Reason.of("few_points", count=len(points), left_out=left_out))


def _arrays(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    table = np.array([(p.N, p.D, p.loss) for p in points], dtype=float)
    return table[:, 0], table[:, 1], table[:, 2]


def _law(design: Design, exponents: Array, linear: Array) -> ScalingLaw:
    return ScalingLaw(*map(float, design.laws(exponents, linear)[0]))


def _trimmed(points: list[Point]) -> tuple[list[Point], list[tuple[Point, Reason]]]:
    """Points without those far from a first fit, unless too few would be left."""
    if len(points) < 2 * PARAMETERS:
        return points, []
    N, D, loss = _arrays(points)
    residual = robust(Design.of(N, D), loss)[2]
    spread = max(scale(residual, PARAMETERS), 1e-5)
    far = np.abs(residual) > OUTLIER * spread
    kept = [p for p, out in zip(points, far, strict=True) if not out]
    alike = min(len({p.N for p in kept}), len({p.D for p in kept})) < 2
    if alike or not far.any() or far.sum() > len(points) // 4:
        return points, []
    limits = {"times": OUTLIER, "scale": 100 * spread}
    reasons = [Reason.of("far", percent=100 * float(r), **limits) for r in residual[far]]
    return kept, list(zip([p for p, out in zip(points, far, strict=True) if out], reasons, strict=True))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The largest size predicted from the smaller ones. errors: predicted / actual - 1 for each of its points."""

    N: float
    predicted: tuple[float, ...]
    points: tuple[Point, ...]
    errors: tuple[float, ...]
    inside: float  # share of the points within their 95 % interval

    @property
    def worst(self) -> float:
        """The largest error, without its sign."""
        return max(abs(e) for e in self.errors)


def held_out(points: Sequence[Point], *, prior: tuple[float, float, float] | None = None) -> HeldOut:
    """Fit without the largest size, and predict it: evidence that does not rest on the intervals."""
    good, _ = _usable(points)
    largest = max(p.N for p in good)
    try:
        fit = fit_scaling([p for p in good if largest > p.N], prior=prior)
    except ValueError as error:
        raise ValueError(f"nothing to predict the size {largest:g} from: {error}") from error
    out = tuple(p for p in good if largest == p.N)
    predicted = tuple(fit.predict(p.N, p.D) for p in out)
    inside = [low <= p.loss <= high for p in out for low, high in [fit.interval(p.N, p.D)]]
    errors = tuple(guess / p.loss - 1 for guess, p in zip(predicted, out, strict=True))
    return HeldOut(largest, predicted, out, errors, sum(inside) / len(inside))


# --- a power law


@dataclass(frozen=True)
class PowerFit:
    """y = a x^b with intervals. draws: log a and b of the resamples; sigma: of log y about the law."""

    law: PowerLaw
    sigma: float
    draws: Array = field(repr=False, compare=False)

    def predict(self, x: float) -> float:
        """y at x."""
        return self.law.predict(x)

    def bounds(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of a or b."""
        if name not in ("a", "b"):
            raise ValueError(f"a power law has a and b, not {name!r}")
        return between(np.exp(self.draws[:, 0]) if name == "a" else self.draws[:, 1], level)

    def interval(self, x: float, level: float = 0.95) -> tuple[float, float]:
        """Where the law may be at x, without the noise of one more point."""
        return between(np.exp(self.draws @ np.array([1.0, math.log(x)])), level)


def fit_power(x: Sequence[float], y: Sequence[float], *, resamples: int = 1000) -> PowerFit:
    """A power law through at least three points, robustly in logs: batch against loss, batch against tokens."""
    pairs = sorted(zip(map(float, x), map(float, y), strict=True))
    if bad := [pair for pair in pairs if not all(0 < v < math.inf for v in pair)]:
        raise ValueError(f"a power law is fitted to positive numbers: ({bad[0][0]}, {bad[0][1]}) cannot be used")
    if len({a for a, _ in pairs}) < 3:
        raise ValueError(
            f"{len({a for a, _ in pairs})} different x are too few for a power law with an interval: measure three"
        )
    u, v = np.log(np.array(pairs)).T
    middle = u.mean()
    X = np.stack([np.ones_like(u), u - middle], axis=1)
    weight = np.ones_like(u)
    for _ in range(20):
        root = np.sqrt(weight)[:, None]
        found = np.linalg.lstsq(X * root, v * root[:, 0], rcond=None)[0]
        residual = v - X @ found
        weight = np.minimum(1, HUBER * scale(residual, 2) / np.maximum(np.abs(residual), FLOOR))
    n = len(u)
    dof = n - 2
    sigma = math.sqrt(float(residual @ residual) / dof)
    # Normal draws: with three or four points, resampled residuals are a handful of values.
    rng = np.random.default_rng(0)
    level = sigma * np.sqrt(dof / rng.chisquare(dof, resamples))
    noisy = (X @ found) + rng.standard_normal((resamples, n)) * level[:, None]
    draws = noisy @ np.linalg.pinv(X).T

    draws[:, 0] -= draws[:, 1] * middle
    a, b = map(float, found)
    return PowerFit(PowerLaw(math.exp(a - b * middle), b), sigma, draws)


# --- the best of a sweep


@dataclass(frozen=True)
class Optimum:
    """Where a sweep is lowest. low, high: 95 % interval. at_edge: the grid ends too early to know. convex: a parabola in log x
    was fitted; else `best` is a grid point and low, high are its neighbours. x, losses: the sweep, finite means."""

    best: float
    low: float
    high: float
    loss: float
    at_edge: bool
    convex: bool
    x: tuple[float, ...] = field(repr=False)
    losses: tuple[float, ...] = field(repr=False)
    parabola: tuple[float, float, float, float, float] | None = field(default=None, repr=False)

    def loss_at(self, x: float) -> float:
        """The parabola near the best, else straight lines between the points in log x. Raises ValueError outside the sweep."""
        if not self.x[0] <= x <= self.x[-1]:
            raise ValueError(
                f"{x:g} lies outside the sweep, {self.x[0]:g} .. {self.x[-1]:g}: run it, nothing is extrapolated"
            )
        if self.parabola:
            c, b, a, start, end = self.parabola
            if start <= x <= end:
                t = math.log(x / self.best)
                return c + b * t + a * t * t
        return float(np.interp(math.log(x), np.log(self.x), self.losses))


def fit_optimum(
    x: Sequence[float], loss: Sequence[float], *, noise: float | None = None, dof: int | None = None
) -> Optimum:
    """The minimum of loss over log x, by a robust parabola through the best point and up to two on each side.

    noise: standard deviation of one loss, measured with dof degrees of freedom (None: known); None: from the residuals of the
    parabola. A loss that is not finite is a run that
    diverged: it is not fitted, but shows that the sweep goes far enough on its side. Several losses at one x are averaged.
    """
    table = _averaged(x, loss)
    finite = [row for row in table if math.isfinite(row[1])]
    if noise is not None and not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise}: the standard deviation of a loss, or None")
    if len(table) < 3 or not finite:
        raise ValueError(
            f"{len(table)} values, {len(finite)} with a finite loss: a minimum needs three; run more values"
        )
    xs, ys, counts = (np.array(column, dtype=float) for column in zip(*finite, strict=True))
    k = int(ys.argmin())
    whole = [row[0] for row in table]
    at_edge = xs[k] in (whole[0], whole[-1])
    below, above = xs[max(k - 1, 0)], xs[min(k + 1, len(xs) - 1)]
    sweep = (tuple(map(float, xs)), tuple(map(float, ys)))
    plain = Optimum(float(xs[k]), float(below), float(above), float(ys[k]), at_edge, False, *sweep)
    if k in (0, len(xs) - 1):
        return plain
    near = slice(max(0, k - 2), k + 3)
    t = np.log(xs[near] / xs[k])
    found, cov, left = _parabola(t, ys[near], counts[near], noise)
    dof = left if noise is None else dof
    c, b, a = map(float, found)
    if not a > 0 or not t[0] <= -b / (2 * a) <= t[-1]:
        return plain
    # Never farther than the neighbours: the measured best is evidence too.
    place = float(np.clip(-b / (2 * a), math.log(below / xs[k]), math.log(above / xs[k])))
    low, high = below, above
    if cov is not None:
        low, high = np.clip(xs[k] * np.exp(_range(found, cov, dof, t)), xs[near][0], xs[near][-1])
    best = float(np.clip(xs[k] * math.exp(place), below, above))
    shifted = (c + b * place + a * place * place, b + 2 * a * place, a)
    parabola = (*shifted, float(xs[near][0]), float(xs[near][-1]))
    return Optimum(best, min(float(low), best), max(float(high), best), shifted[0], False, True, *sweep, parabola)


def _averaged(x: Sequence[float], loss: Sequence[float]) -> list[tuple[float, float, int]]:
    """Sorted x, mean loss (infinite if one of them is not finite) and their number."""
    groups: dict[float, list[float]] = {}
    for at, value in zip(x, loss, strict=True):
        if not 0 < at < math.inf:
            raise ValueError(f"x={at}: a sweep is fitted over log x, which needs positive numbers")
        groups.setdefault(float(at), []).append(float(value))
    means = {at: sum(v) / len(v) if all(map(math.isfinite, v)) else math.inf for at, v in groups.items()}
    return [(at, means[at], len(groups[at])) for at in sorted(groups)]


def _parabola(t: Array, y: Array, counts: Array, noise: float | None) -> tuple[Array, Array | None, int | None]:
    """c + b t + a t^2, the covariance (None if nothing tells the noise), and its degrees of freedom (None: noise is known).

    First by Huber; then each loss has the noise, and all share cubic and quartic terms of unknown size like those of
    t^2 exp(SKEW t): a sweep is steeper on one side, and else the outer points move the minimum by more than the interval.
    """
    X = np.stack([np.ones_like(t), t, t * t], axis=1)
    weight = np.ones_like(t)
    dof, middle = len(t) - 3, y.mean()
    for _ in range(20):
        root = np.sqrt(weight * counts)
        found = np.linalg.lstsq(X * root[:, None], (y - middle) * root, rcond=None)[0]
        residual = (y - middle - X @ found) * np.sqrt(counts)
        spread = max(scale(residual, 3) if dof > 1 else math.inf, noise or 0.0)
        weight = np.minimum(1, HUBER * spread / np.maximum(np.abs(residual), 1e-300))
    known = noise is not None or dof > 0
    variance = float(residual @ residual) / max(dof, 1)
    # A known noise is the scale, unless the parabola misses the points by more than that: then its misses are.
    variance = noise**2 if noise is not None and variance < 3 * noise**2 else variance
    a = abs(found[2])
    # The floor keeps the matrix invertible where there is no noise at all.
    variance = max(variance, 1e-20 * float(y @ y), 1e-8 * a * a, 1e-200)
    # About the minimum itself: there the higher terms have no slope.
    s = t - np.clip(-found[1] / (2 * max(found[2], 1e-300)), t[0], t[-1])
    bend = np.outer(SKEW * a * s**3, SKEW * a * s**3) + np.outer(SKEW**2 * a * s**4, SKEW**2 * a * s**4) / 4
    # A point without any weight, or a bend over many decades, would leave rounding no inverse.
    apart = variance / (np.maximum(weight, 1e-9) * counts) + 1e-12 * np.trace(bend)
    half = np.linalg.inv(np.linalg.cholesky(np.diag(apart) + bend))
    solve = np.linalg.pinv(half @ X)
    found = solve @ (half @ (y - middle))
    found[0] += middle
    return found, solve @ solve.T if known else None, None if noise is not None else dof


def _range(found: Array, cov: Array, dof: int | None, t: Array) -> tuple[float, float]:
    """95 % of the minima of parabolas within the covariance; those that are not convex have theirs at an end."""
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(cov)
    spread = rng.standard_normal((2000, 3)) * np.sqrt(np.maximum(values, 0))
    if dof is not None:
        spread *= np.sqrt(dof / rng.chisquare(dof, (2000, 1)))
    _, b, a = (found + spread @ vectors.T).T
    inner = np.clip(-b / (2 * np.where(a > 0, a, 1.0)), t[0], t[-1])
    ends = np.where(b * t[0] + a * t[0] ** 2 < b * t[-1] + a * t[-1] ** 2, t[0], t[-1])
    return between(np.where(a > 0, inner, ends), 0.95)


# --- noise between seeds


class Noise(NamedTuple):
    """What differs by the seed only. sigma: standard deviation of one run; dof: degrees of freedom it was measured with."""

    sigma: float
    dof: int

    def wide(self, seeds: int = 1) -> float:
        """Half the 95 % interval of a mean over seeds."""
        return student(self.dof) * self.sigma / math.sqrt(seeds)

    def between(self, seeds: int) -> float:
        """Half the 95 % interval of a difference between two means over seeds."""
        return math.sqrt(2) * self.wide(seeds)


def seed_noise(groups: Sequence[Sequence[float]]) -> Noise | None:
    """Standard deviation between runs that differ by the seed only, pooled over groups; None without a group of two."""
    several = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    if not several:
        return None
    if not all(np.isfinite(group).all() for group in several):
        raise ValueError("a loss is not finite: leave out runs that diverged before asking for the noise")
    dof = sum(len(g) - 1 for g in several)
    return Noise(math.sqrt(sum(float(((g - g.mean()) ** 2).sum()) for g in several) / dof), dof)

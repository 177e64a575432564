"""A sweep: one value of a trial is varied, for several seeds; where is the loss lowest, and how sure is that?

What it gives up: a value at which any seed diverged counts as too high; an average over the seeds that survived would flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gangpao.sandbox.experiments.outcome import finite
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.verdict import Limits
from gangpao.sandbox.trials.trial import Result


@dataclass(frozen=True, slots=True)
class Sweep:
    """Losses over one value. losses: of each seed, infinite where it diverged. optimum: none where values are too few, and why.
    wide: half the 95 % interval of a difference between two means, None where the noise is not known."""

    x: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    optimum: fit.Optimum | None
    why: str = ""
    wide: float | None = None

    @property
    def means(self) -> list[float]:
        """Infinite where a seed diverged."""
        return [sum(group) / len(group) for group in self.losses]

    @property
    def bounds(self) -> Limits:
        """95 % interval of the best value; 0 or infinite on a side where the values, or their noise, do not tell it."""
        best = self.optimum
        if best is None:
            return 0.0, math.inf
        low, high = self._plausible()
        if not best.convex:
            return low, high
        assert best.parabola is not None
        start, end = best.parabola[3:]
        # A parabola knows its own points only: what reaches their end may reach farther.
        return (best.low if best.low > start else low), (best.high if best.high < end else high)

    @property
    def closed(self) -> Limits:
        """The same where an open side ends one step beyond the values that were tried."""
        (low, high), x = self.bounds, self.x
        if len(x) < 2:
            return x[0], x[0]
        return (low if low > 0 else x[0] ** 2 / x[1]), (high if high < math.inf else x[-1] ** 2 / x[-2])

    def _plausible(self) -> Limits:
        """The neighbours of all values that noise does not tell from the best one."""
        if self.wide is None:
            return 0.0, math.inf
        least = min(self.means)
        near = [i for i, mean in enumerate(self.means) if mean <= least + self.wide]
        low, high = near[0] - 1, near[-1] + 1
        return self.x[low] if low >= 0 else 0.0, self.x[high] if high < len(self.x) else math.inf

    @property
    def measured(self) -> float | None:
        """The lowest mean that was measured; a fitted bottom may lie below it."""
        return min((v for v in self.means if v < math.inf), default=None)

    def more(self) -> list[float]:
        """Values to add where the best lies at the edge."""
        x = self.x
        if self.optimum is None or self.optimum.convex or len(x) < 2:
            return []
        i = x.index(self.optimum.best)
        return [x[0] ** 2 / x[1]] * (i == 0) + [x[-1] ** 2 / x[-2]] * (i == len(x) - 1)

    def json(self) -> dict[str, Any]:
        """Plain data; None for what is infinite."""
        best = self.optimum
        return {
            "x": list(self.x), "bpb": [finite(v) for v in self.means], "bounds": [finite(v) for v in self.bounds],
            "closed": list(self.closed) if self.x else None, "more": self.more(), "measured": self.measured,
            "optimum": {"best": best.best, "loss": best.loss, "at_edge": best.at_edge} if best is not None else None,
        }  # fmt: skip


def sweeps_of(groups: Mapping[Any, Mapping[float, Sequence[Result]]]) -> tuple[dict[Any, Sweep], fit.Noise | None]:
    """A sweep for every key (value -> its seeds), and the noise between seeds that they share: of the values near each best one,
    because a rate that is nearly too high scatters more. A value that lacks a seed without having diverged is left out."""
    tables = {key: _table(group) for key, group in groups.items()}
    noise = fit.seed_noise([losses for table in tables.values() for losses in _near(table)])
    sweeps = {}
    for key, table in tables.items():
        flat = [(x, loss) for x, losses in table.items() for loss in losses]
        optimum, why = None, ""
        try:
            xs, losses = [x for x, _ in flat], [loss for _, loss in flat]
            optimum = fit.fit_optimum(xs, losses, noise=noise and noise.sigma, dof=noise and noise.dof)
        except ValueError as error:
            why = str(error)
        seeds = max((len(row) for row in table.values()), default=1)
        wide = noise and noise.between(seeds)
        sweeps[key] = Sweep(tuple(table), tuple(map(tuple, table.values())), optimum, why, wide)
    return sweeps, noise


def _table(group: Mapping[float, Sequence[Result]]) -> dict[float, list[float]]:
    def losses(results: Sequence[Result]) -> list[float]:
        return [math.inf if r.state == "diverged" else math.nan if r.bpb is None else r.bpb for r in results]

    table = {x: losses(group[x]) for x in sorted(group)}
    return {x: row for x, row in table.items() if row and not any(math.isnan(v) for v in row)}


def _near(table: dict[float, list[float]]) -> list[list[float]]:
    """The losses at the best value and up to two on each side."""
    rows = [row for row in table.values() if all(math.isfinite(v) for v in row)]
    if not rows:
        return []
    k = min(range(len(rows)), key=lambda i: sum(rows[i]))
    return rows[max(0, k - 2) : k + 3]


def opened(low: float, high: float) -> Limits:
    """An interval of a positive number, where 0 means that nothing tells its lower end."""
    return (low if low > 0 else -math.inf), high


def quotient(a: Sweep, b: Sweep) -> tuple[float, float]:
    """Interval of b's best over a's: independent errors in logs; open ones cannot be added, and are taken at their worst."""
    assert a.optimum is not None
    assert b.optimum is not None
    (a_low, a_high), (b_low, b_high) = a.bounds, b.bounds
    if a_low == 0 or a_high == math.inf or b_low == 0 or b_high == math.inf:
        return (0.0 if a_high == math.inf else b_low / a_high), (math.inf if a_low == 0 else b_high / a_low)
    factor = b.optimum.best / a.optimum.best
    down = math.hypot(math.log(b.optimum.best / b_low), math.log(a_high / a.optimum.best))
    up = math.hypot(math.log(b_high / b.optimum.best), math.log(a.optimum.best / a_low))
    return factor * math.exp(-down), factor * math.exp(up)

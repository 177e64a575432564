"""AdamW against Muon, or their hyperballs: the tokens, and the seconds, that each needs for the same loss.

A difference in loss says little, because its worth depends on where the curve is flat. So each optimizer gets its best rate
at every number of tokens, which gives a curve of loss over tokens, and the two curves are read across: the tokens of one over
those of the other at equal loss, between points by straight lines in log tokens. A step of Muon does more work, so the
ratio of seconds is said too, from the time that the steps took here.

The interval comes from drawing losses (and seconds) anew with the noise that was measured and reading the curves again.

What it gives up: one size and one batch; weight decay and Muon's momentum are not tuned; both try the same rates. Every
point is a run of its own with its own decay, which costs more than branches and asks nothing of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gangpao.sandbox.experiments.outcome import Outcome, Submit, ended_badly
from gangpao.sandbox.experiments.sweep import Sweep, opened, sweeps_of
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.scaling_law import WIDE, student
from gangpao.sandbox.laws.verdict import UNKNOWN, Limits, Verdict
from gangpao.sandbox.trials.config import ExperimentTable, Optimizer
from gangpao.sandbox.trials.field_types import Positive, Seed, Some, Tokens
from gangpao.sandbox.trials.trial import Lab, Result, Spec

_DRAWS = 600
_LEVELS = 21  # losses at which the curves are read across

Array = np.ndarray[Any, np.dtype[np.float64]]
Key = tuple[str, int]  # optimizer, tokens


class OptimConfig(ExperimentTable):
    """AdamW against Muon, or AdamH and MuonH: the tokens each needs for the same loss."""

    optimizers: Some[Optimizer] = ("adamw", "muon")
    rates: Some[Positive] = (0.005, 0.01, 0.02)
    tokens: Some[Tokens] = (500_000, 1_000_000, 2_000_000)
    seeds: Some[Seed] = (0,)


@dataclass(frozen=True, slots=True)
class _Curve:
    """Loss over tokens at the best rates. seconds: of a token, in the trials that ended well."""

    optimizer: str
    D: Array
    loss: Array
    seconds: Array

    def json(self) -> dict[str, Any]:
        """Plain data; seconds: the middle one of a token."""
        seconds = float(np.median(self.seconds)) if len(self.seconds) else None
        own = {"D": [int(D) for D in self.D], "loss": self.loss.tolist(), "seconds": seconds}
        return {"optimizer": self.optimizer, **own}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Tokens of an optimizer over those of another at equal loss, mean over the losses that both reach. low, high: 95 %; None
    where the noise is not known. ends: at the highest and at the lowest common loss. bound: without a common loss, what the ratio
    is at most (below one) or at least; None too where noise may be all that keeps the curves apart."""

    value: float | None
    low: float | None = None
    high: float | None = None
    losses: tuple[float, float] | None = None
    ends: tuple[float, float] | None = None
    bound: float | None = None

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in ("value", "low", "high", "losses", "ends", "bound")}


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError where there is nothing to compare."""
    c = lab.config.table(OptimConfig)
    optimizers, tokens, rates = list(dict.fromkeys(c.optimizers)), sorted(set(c.tokens)), sorted(set(c.rates))
    if len(optimizers) < 2 or len(tokens) < 2 or len(rates) < 3:
        raise ValueError(
            f"optim: {len(optimizers)} optimizers, {len(tokens)} token counts and {len(rates)} rates: give two, two (better four) "
            "and three or more"
        )
    groups: dict[Key, dict[float, list[Spec]]] = {}
    for D in reversed(tokens):  # long trials first: the last ones to end are then short
        for name in optimizers:
            rows = {lr: [lab.spec(optimizer=name, tokens=D, lr=lr, seed=s) for s in c.seeds] for lr in rates}
            groups[name, rows[rates[0]][0].tokens] = rows
    if len(groups) < len(optimizers) * len(tokens):
        batch = lab.config.common.batch_tokens
        raise ValueError(f"optim.tokens: some of {tokens} are the same whole steps of {batch:,} tokens: spread them")
    found = iter(submit([spec for group in groups.values() for row in group.values() for spec in row]))
    results = {key: {lr: [next(found) for _ in row] for lr, row in group.items()} for key, group in groups.items()}
    sweeps, noise = sweeps_of(results)
    curves = [_curve(name, results, sweeps) for name in optimizers]
    everything = [r for group in results.values() for row in group.values() for r in row]
    return _outcome(lab, curves, sweeps, noise, everything)


def _curve(name: str, results: Mapping[Key, Mapping[float, Sequence[Result]]], sweeps: Mapping[Key, Sweep]) -> _Curve:
    """Points whose best rate is at an edge count too: the optimizer can do that much."""
    points = []
    for (optimizer, D), sweep in sweeps.items():
        if optimizer == name:
            means = [v for v in sweep.means if v < math.inf]
            best = sweep.optimum.loss if sweep.optimum else min(means, default=None)
            points += [] if best is None else [(float(D), best)]
    points.sort()
    timed = [
        r.busy / (r.spec.steps * r.spec.batch_tokens)
        for (optimizer, _), group in results.items()
        for row in group.values()
        for r in row
        if optimizer == name and r.state == "done" and r.busy > 0
    ]
    table = np.array(points, dtype=float).reshape(-1, 2)
    return _Curve(name, table[:, 0], table[:, 1], np.array(timed, dtype=float))


# --- reading across


def _needed(D: Array, loss: Array, wanted: Array) -> Array:
    """Log tokens at which a curve first reaches each loss: a monotone cubic through the points that were better than all before.

    Straight lines would lie above a curve that flattens, by more than the noise of good trials. Past the ends (asked for
    only by draws) the outer slope goes on, but never farther than the outer segment is long.
    """
    better = loss < np.minimum.accumulate(np.concatenate([[math.inf], loss[:-1]]))
    x, u = -loss[better], np.log(D[better])
    if len(x) < 2:
        return np.full(len(wanted), u[0])
    width, slope = np.diff(x), np.diff(u) / np.diff(x)
    tangent = _tangents(width, slope)
    i = np.clip(np.searchsorted(x, -wanted) - 1, 0, len(width) - 1)
    t = (-wanted - x[i]) / width[i]
    s = np.clip(t, 0, 1)
    inner = u[i] + width[i] * (
        s**2 * (3 - 2 * s) * slope[i] + s * (1 - s) ** 2 * tangent[i] + s**2 * (s - 1) * tangent[i + 1]
    )
    beyond = np.where(t < 0, t * tangent[0], np.where(t > 1, (t - 1) * tangent[-1], 0.0)) * width[i]
    longest = np.abs(u[i + 1] - u[i])
    return np.asarray(inner + np.clip(beyond, -longest, longest), dtype=float)


def _tangents(width: Array, slope: Array) -> Array:
    """Of a monotone cubic at its points (Fritsch and Butland 1984: a weighted harmonic mean; at the ends three points)."""
    if len(slope) == 1:
        return np.array([slope[0], slope[0]])
    w1, w2 = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    middle = (w1 + w2) / (w1 / slope[:-1] + w2 / slope[1:])
    ends = [
        float(np.clip(slope[a] + (slope[a] - slope[b]) * width[a] / (width[a] + width[b]), 0, 3 * slope[a]))
        for a, b in ((0, 1), (-1, -2))
    ]
    return np.concatenate([[ends[0]], middle, [ends[1]]])


def compare(a: _Curve, b: _Curve, sigma: float | None, dof: int | None = None) -> tuple[Ratio, Ratio]:
    """Tokens, and seconds, of b over those of a. sigma: of a point of a curve; dof: degrees of freedom that it was measured with,
    None where it is known."""
    nothing = Ratio(None)
    if min(len(a.D), len(b.D)) < 2:
        return nothing, nothing
    high, low = min(a.loss[0], b.loss[0]), max(a.loss.min(), b.loss.min())
    if not low < high:
        # Nowhere equal: the better one at its fewest tokens beats the other at its most, or as much the other way round.
        if sigma is None or low - high <= (student(dof) if dof else WIDE) * math.sqrt(2) * sigma:
            return nothing, nothing
        bound = float(b.D[0] / a.D[-1]) if b.loss.min() < a.loss.min() else float(b.D[-1] / a.D[0])
        return Ratio(None, bound=bound), nothing
    wanted = np.linspace(high, low, _LEVELS)
    logs = _needed(b.D, b.loss, wanted) - _needed(a.D, a.loss, wanted)
    draws = None
    if sigma is not None:
        rng = np.random.default_rng(0)
        levels = sigma * np.sqrt(dof / rng.chisquare(dof, _DRAWS)) if dof else np.full(_DRAWS, sigma)
        draws = np.array([
            np.mean(_needed(b.D, b.loss + level * rng.standard_normal(len(b.D)), wanted)
                    - _needed(a.D, a.loss + level * rng.standard_normal(len(a.D)), wanted))
            for level in levels
        ])  # fmt: skip
    ends = (math.exp(logs[0]), math.exp(logs[-1]))
    tokens = _ratio(float(logs.mean()), draws, (float(high), float(low)), ends)
    if not len(a.seconds) or not len(b.seconds):
        return tokens, nothing
    dearer = math.log(float(np.median(b.seconds)) / float(np.median(a.seconds)))
    rng = np.random.default_rng(1)
    spread_ = np.log(_medians(b.seconds, rng) / _medians(a.seconds, rng))
    # Where the noise of losses is not known the time's alone would look like an interval of all.
    both = None if draws is None else draws + spread_
    ends = (ends[0] * math.exp(dearer), ends[1] * math.exp(dearer))
    return tokens, _ratio(float(logs.mean()) + dearer, both, (float(high), float(low)), ends)


def _ratio(log: float, draws: Array | None, losses: tuple[float, float], ends: tuple[float, float]) -> Ratio:
    if draws is None:
        return Ratio(math.exp(log), losses=losses, ends=ends)
    low, high = np.exp(np.quantile(draws, [0.025, 0.975]))
    return Ratio(math.exp(log), float(low), float(high), losses, ends)


def _medians(values: Array, rng: np.random.Generator) -> Array:
    """Medians of resamples."""
    picked = rng.integers(0, len(values), (_DRAWS, len(values)))
    return np.asarray(np.median(values[picked], axis=1), dtype=float)


# --- the outcome


def _outcome(
    lab: Lab, curves: Sequence[_Curve], sweeps: Mapping[Key, Sweep], noise: fit.Noise | None, results: list[Result]
) -> Outcome:
    seeds = len(lab.config.table(OptimConfig).seeds)
    sigma = None if noise is None else noise.sigma / math.sqrt(seeds)
    first = curves[0]
    ratios = {c.optimizer: compare(first, c, sigma, noise and noise.dof) for c in curves[1:]}
    edges = {name for (name, _), s in sweeps.items() if s.more()}
    tokens = {c.optimizer: _judged(first, c, ratios[c.optimizer][0], "tokens", edges) for c in curves[1:]}
    seconds = {c.optimizer: _judged(first, c, ratios[c.optimizer][1], "seconds", edges) for c in curves[1:]}
    return Outcome(
        name="optim",
        verdicts=[judged[name][0] for name in ratios for judged in (tokens, seconds)],
        facts={
            "noise": noise and noise.sigma,
            "error": noise and noise.between(seeds),
            "first": first.optimizer,
            "edges": sorted(edges),
            "tokens": {name: facts for name, (_, facts) in tokens.items()},
            "seconds": {name: facts for name, (_, facts) in seconds.items()},
            "optimum": {c.optimizer: _best_rates(c, sweeps) for c in curves},
            "curves": [c.json() for c in curves],
            "sweeps": [{"optimizer": name, "D": D, **sweep.json()} for (name, D), sweep in sweeps.items()],
        },
        left_out=ended_badly(results),
        results=results,
    )


def _best_rates(c: _Curve, sweeps: Mapping[Key, Sweep]) -> dict[str, float | None]:
    """Tokens -> best rate; None where the rates end too early."""
    here = {D: s for (name, D), s in sorted(sweeps.items()) if name == c.optimizer}
    return {str(D): None if s.optimum is None or s.more() else s.optimum.best for D, s in here.items()}


def _judged(a: _Curve, b: _Curve, r: Ratio, what: str, edges: set[str]) -> tuple[Verdict, dict[str, Any]]:
    """Does b need less than a, and the ratio as plain data with the answer. edges: optimizers whose best rate may lie beyond those
    that were tried: they may do better, so an answer against one of them is open on that side."""
    about = {"first": a.optimizer, "other": b.optimizer, "what": what}
    verdict = Verdict("less", r.value, _interval(a, b, r, edges), (-math.inf, 1 - 1e-9), about=about)
    return verdict, r.json() | {"answer": verdict.answer}


def _interval(a: _Curve, b: _Curve, r: Ratio, edges: set[str]) -> Limits:
    low, high = (r.low or 0.0, r.high or math.inf) if r.value is not None else (0.0, math.inf)
    if r.bound is not None:
        low, high = (0.0, r.bound) if r.bound < 1 else (r.bound, math.inf)
    if a.optimizer in edges:
        high = math.inf
    low, high = opened(0.0 if b.optimizer in edges else low, high)
    return (low, high) if low > -math.inf or high < math.inf else UNKNOWN

"""How the best learning rate moves with the number of tokens: a power law, with its interval.

muP makes a rate hold across widths. Nothing makes it hold across horizons: a run that goes on for longer often wants a lower rate,
and a plan that follows a law of loss far ahead with the rate of short runs then misses, or diverges (Delphi's first try; its mend
is a rate that falls as tokens^-0.3). So the best rate is found at several numbers of tokens, each a run with a decay of its own,
and a line is drawn through their logarithms. `plan` goes on along it, where it surely falls or rises.

The interval of the exponent comes from the intervals of the best rates, by weighted least squares; a best rate whose interval is
open on a side counts as far as the next value of the grid.

What it gives up: one size and one batch; the exponent is that of the optimizer and the schedule of the common trial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import Outcome, Submit, ended_badly, finite
from gangpao.sandbox.experiments.sweep import Sweep, opened, quotient, sweeps_of
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.scaling_law import WIDE
from gangpao.sandbox.laws.verdict import UNKNOWN, Limits, Verdict
from gangpao.sandbox.trials.config import ExperimentTable
from gangpao.sandbox.trials.field_types import Positive, Seed, Some, Tokens
from gangpao.sandbox.trials.trial import Lab, Result, Spec

# Where an exponent is called none: over a factor of 100 in tokens the rate moves by less than 1.6.
FLAT = 0.1


class HorizonConfig(ExperimentTable):
    """The best learning rate across numbers of tokens."""

    tokens: Some[Tokens] = (250_000, 500_000, 1_000_000, 2_000_000)
    rates: Some[Positive] = (0.0025, 0.005, 0.01, 0.02, 0.04)
    seeds: Some[Seed] = (0,)


@dataclass(frozen=True, slots=True)
class Exponent:
    """best rate = rate * (tokens / at)^-value. low, high: 95 %; None where too few best rates are known."""

    value: float
    low: float
    high: float
    rate: float
    at: float

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "value": self.value,
            "low": finite(self.low),
            "high": finite(self.high),
            "rate": self.rate,
            "at": self.at,
        }


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError where there is nothing to compare."""
    c = lab.config.table(HorizonConfig)
    tokens, rates = sorted(set(c.tokens)), sorted(set(c.rates))
    if len(tokens) < 3 or len(rates) < 3:
        raise ValueError(f"horizon: {len(tokens)} token counts and {len(rates)} rates: a line needs three, better more")
    groups: dict[int, dict[float, list[Spec]]] = {}
    for D in reversed(tokens):  # long trials first: the last ones to end are then short
        rows = {lr: [lab.spec(tokens=D, lr=lr, seed=seed) for seed in c.seeds] for lr in rates}
        groups[rows[rates[0]][0].tokens] = rows
    if len(groups) < len(tokens):
        batch = lab.config.common.batch_tokens
        raise ValueError(f"horizon.tokens: some of {tokens} are the same whole steps of {batch:,} tokens: spread them")
    found = iter(submit([spec for group in groups.values() for row in group.values() for spec in row]))
    results = {D: {lr: [next(found) for _ in row] for lr, row in group.items()} for D, group in groups.items()}
    sweeps, noise = sweeps_of(results)
    everything = [r for group in results.values() for row in group.values() for r in row]
    return _outcome(lab, sweeps, noise, rates, everything)


def exponent_of(sweeps: Mapping[int, Sweep]) -> Exponent | None:
    """The line through the logarithms of tokens and best rates; None where fewer than three of them are known."""
    points = []
    for D, sweep in sorted(sweeps.items()):
        if sweep.optimum is None or sweep.more():
            continue
        low, high = sweep.closed
        points.append((math.log(D), math.log(sweep.optimum.best), max(math.log(high / low) / (2 * WIDE), 1e-3)))
    if len(points) < 3:
        return None
    weights = [1 / sigma**2 for _, _, sigma in points]
    whole = sum(weights)
    x0 = sum(w * x for w, (x, _, _) in zip(weights, points, strict=True)) / whole
    y0 = sum(w * y for w, (_, y, _) in zip(weights, points, strict=True)) / whole
    spread = sum(w * (x - x0) ** 2 for w, (x, _, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - x0) * (y - y0) for w, (x, y, _) in zip(weights, points, strict=True)) / spread
    # Points that scatter by more than their intervals say make the interval wider, never narrower.
    misfit = sum(w * (y - y0 - slope * (x - x0)) ** 2 for w, (x, y, _) in zip(weights, points, strict=True))
    error = WIDE * math.sqrt(max(1.0, misfit / (len(points) - 2)) / spread)
    return Exponent(-slope, -slope - error, -slope + error, math.exp(y0), math.exp(x0))


def _moves(sweeps: Mapping[int, Sweep], rates: Sequence[float]) -> Verdict:
    """Does the best rate of the longest runs stay within a step of the grid of that of the shortest?"""
    (first, a), (last, b) = min(sweeps.items()), max(sweeps.items())
    step = max(high / low for low, high in itertools.pairwise(rates)) * (1 + 1e-9)
    about = {"first": first, "last": last}
    if a.optimum is None or b.optimum is None:
        return Verdict("stays", None, UNKNOWN, (1 / step, step), about=about)
    interval: Limits = opened(*quotient(a, b))
    return Verdict("stays", b.optimum.best / a.optimum.best, interval, (1 / step, step), about=about)


def _outcome(
    lab: Lab, sweeps: Mapping[int, Sweep], noise: fit.Noise | None, rates: Sequence[float], results: list[Result]
) -> Outcome:
    law = exponent_of(sweeps)
    flat = Verdict("flat", None, UNKNOWN, (-FLAT, FLAT))
    if law is not None:
        flat = Verdict("flat", law.value, (law.low, law.high), (-FLAT, FLAT))
    return Outcome(
        name="horizon",
        verdicts=[_moves(sweeps, rates), flat],
        facts={
            "conditions": conditions(lab),
            "noise": noise and noise.sigma,
            "law": law and law.json(),
            "sweeps": [{"D": D, **sweep.json()} for D, sweep in sorted(sweeps.items())],
        },
        left_out=ended_badly(results),
        results=results,
    )

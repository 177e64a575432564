"""The best learning rate across widths and depths, under every rule of transfer.

A rule of transfer promises that the rate which is best for a small model is best for a large one. So each rule is tried at
several widths (and depths), the best rate of each size is found with an interval, and the question is whether it moved by
more than one step of the grid. What moving would cost is said too: the loss at the small model's best rate. Both questions
have three answers (gangpao.sandbox.laws.verdict).

What it gives up: loss at one number of tokens, the common one, and one batch size; the rate is the peak of the schedule.
A rate at which any seed diverged counts as too high: an average over the seeds that survived would flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import Outcome, Submit, ended_badly, finite
from gangpao.sandbox.experiments.sweep import Sweep, opened, quotient, sweeps_of
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.verdict import Answer, Verdict
from gangpao.sandbox.trials.config import ExperimentTable, Rule, Size
from gangpao.sandbox.trials.field_types import Layers, Once, Positive, Rates, Seed, Some, Tokens, Width
from gangpao.sandbox.trials.trial import Lab, Result, Spec

COSTS = 0.3  # percent of the loss: less than that is called no cost


class LrConfig(ExperimentTable):
    """The best learning rate across widths and depths."""

    widths: Once[Width] = Field(default=(64, 128, 256), description="At the common depth; empty: only depths.")
    layers: Once[Layers] = Field(default=(), description="Also these depths, at the common width.")
    rates: Some[Positive] = (0.0025, 0.0035, 0.005, 0.007, 0.01, 0.014, 0.02, 0.028, 0.04)
    standard_rates: Once[Positive] = Field(
        default=(), description="For rules named standard*, whose rates live elsewhere; empty: rates."
    )
    rules: Some[Rule] = ("minicpm", "standard")
    tokens: Tokens | None = Field(default=None, description="Of each trial; none: the common number.")
    seeds: Some[Seed] = (0,)


# --- the experiment


@dataclass(frozen=True, slots=True)
class _Series:
    """The sizes along which a rule's best rate is followed. axis: width or depth. key: where its rates are configured."""

    rule: str
    axis: str
    sizes: tuple[Size, ...]
    rates: Rates
    key: str

    def json(self) -> dict[str, Any]:
        """Plain data."""
        sizes = [str(size) for size in self.sizes]
        return {"rule": self.rule, "axis": self.axis, "sizes": sizes, "rates": list(self.rates), "key": self.key}


@dataclass(frozen=True, slots=True)
class Shift:
    """How far the best rate moved from the smallest size to the largest, as a factor, with its 95 % interval. step: of the grid."""

    rule: str
    axis: str
    small: Size
    large: Size
    step: float
    factor: float | None
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Does it stay within a step of the grid?"""
        limit, about = self.step * (1 + 1e-9), {"rule": self.rule, "axis": self.axis}
        return Verdict("stays", self.factor, opened(self.low, self.high), (1 / limit, limit), about=about)

    @property
    def answer(self) -> Answer:
        """Of the verdict."""
        return self.verdict.answer

    def json(self) -> dict[str, Any]:
        """Plain data."""
        same = {name: getattr(self, name) for name in ("rule", "axis", "step", "factor", "low", "answer")}
        return same | {"small": str(self.small), "large": str(self.large), "high": finite(self.high)}


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError where there is nothing to compare."""
    series = _series(lab)
    seeds = lab.config.table(LrConfig).seeds
    groups: dict[tuple[str, Size], dict[float, list[Spec]]] = {}
    for s in series:
        for size in s.sizes:
            tokens = lab.config.table(LrConfig).tokens or lab.config.common.tokens
            changes = {"rule": s.rule, "width": size.width, "layers": size.layers, "tokens": tokens}
            groups[s.rule, size] = {
                lr: [lab.spec(**changes, lr=lr, seed=seed) for seed in seeds] for lr in sorted(set(s.rates))
            }
    # Large trials first: the last ones to end are then short.
    order = sorted(groups, key=lambda key: -key[1].layers * key[1].width ** 2)
    found = iter(submit([spec for key in order for group in groups[key].values() for spec in group]))
    results = {key: {lr: [next(found) for _ in group] for lr, group in groups[key].items()} for key in order}
    sweeps: dict[tuple[str, Size], Sweep] = {}
    noise: dict[str, fit.Noise | None] = {}
    for rule in dict.fromkeys(
        s.rule for s in series
    ):  # a rule under which training is shaky says nothing about the others' noise
        found_sweeps, noise[rule] = sweeps_of({key: group for key, group in results.items() if key[0] == rule})
        sweeps |= found_sweeps
    shifts = [_shift(s, sweeps) for s in series]
    everything = [r for group in results.values() for row in group.values() for r in row]
    return _outcome(lab, series, sweeps, shifts, noise, everything)


def _series(lab: Lab) -> list[_Series]:
    c, common = lab.config.table(LrConfig), lab.config.common
    widths = tuple(Size(width=w, layers=common.layers) for w in sorted(set(c.widths)))
    depths = tuple(Size(width=common.width, layers=n) for n in sorted(set(c.layers)))
    axes = [(axis, sizes) for axis, sizes in (("width", widths), ("depth", depths)) if len(sizes) > 1]
    if not axes or not c.rules:
        raise ValueError(
            f"lr: {len(c.rules)} rules, {len(widths)} widths and {len(depths)} depths: give one rule and two widths, or two depths"
        )
    out = []
    for rule in dict.fromkeys(c.rules):
        own = rule.startswith("standard") and bool(c.standard_rates)
        key, rates = ("lr.standard_rates", c.standard_rates) if own else ("lr.rates", c.rates)
        if len(set(rates)) < 3:
            raise ValueError(f"{key}: {len(set(rates))} different values; a minimum needs three, better seven")
        out += [_Series(rule, axis, sizes, tuple(sorted(set(rates))), key) for axis, sizes in axes]
    return out


def _shift(s: _Series, sweeps: Mapping[tuple[str, Size], Sweep]) -> Shift:
    """Is the best rate of the largest size within one step of the smallest one's? An open interval may still say no."""
    a, b = sweeps[s.rule, s.sizes[0]], sweeps[s.rule, s.sizes[-1]]
    step = max(high / low for low, high in zip(s.rates, s.rates[1:], strict=False))
    if a.optimum is None or b.optimum is None:
        return Shift(s.rule, s.axis, s.sizes[0], s.sizes[-1], step, None, 0.0, math.inf)
    factor = b.optimum.best / a.optimum.best
    return Shift(s.rule, s.axis, s.sizes[0], s.sizes[-1], step, factor, *quotient(a, b))


def _lost(small: Sweep, here: Sweep) -> float | None:
    """Loss at the small model's best rate less that at the own one; infinite where it diverges, None where it is not known."""
    if small.optimum is None or here.optimum is None:
        return None
    try:
        return here.optimum.loss_at(small.optimum.best) - here.optimum.loss
    except ValueError:
        beyond = small.optimum.best > here.optimum.x[-1] and here.x[-1] > here.optimum.x[-1]
        return math.inf if beyond else None


def _cost(s: _Series, sweeps: Mapping[tuple[str, Size], Sweep], error: float | None) -> Verdict | None:
    """Is the small model's best rate good enough for the large one? None where nothing can be asked."""
    small, large = sweeps[s.rule, s.sizes[0]], sweeps[s.rule, s.sizes[-1]]
    lost = _lost(small, large)
    if lost is None or large.optimum is None:
        return None
    allowed, about = (-math.inf, COSTS), {"rule": s.rule, "size": str(s.sizes[-1]), "most": COSTS}
    if lost == math.inf:  # it diverges there
        return Verdict("costs", None, (math.inf, math.inf), allowed, " %", about)
    percent = 100 / large.optimum.loss
    interval = verdict.about(percent * lost, None if error is None else percent * error)
    return Verdict("costs", percent * lost, interval, allowed, " %", about)


def _outcome(
    lab: Lab,
    series: Sequence[_Series],
    sweeps: Mapping[tuple[str, Size], Sweep],
    shifts: Sequence[Shift],
    noise: Mapping[str, fit.Noise | None],
    results: list[Result],
) -> Outcome:
    seeds = len(lab.config.table(LrConfig).seeds)
    errors = {rule: known and known.between(seeds) for rule, known in noise.items()}
    costs = [_cost(s, sweeps, errors[s.rule]) for s in series]
    return Outcome(
        name="lr",
        verdicts=[v for shift, cost in zip(shifts, costs, strict=True) for v in (shift.verdict, cost) if v is not None],
        facts={
            "conditions": conditions(lab),
            "noise": {rule: found.sigma for rule, found in noise.items() if found is not None},
            "optimum": {s.rule: _of_largest(s, sweeps) for s in reversed(series)},
            "series": [s.json() for s in series],
            "shifts": [shift.json() for shift in shifts],
            "sweeps": [{"rule": rule, "size": str(size), **sweep.json()} for (rule, size), sweep in sweeps.items()],
            "rows": [_row(s, size, sweeps, errors[s.rule]) for s in series for size in s.sizes],
        },
        left_out=ended_badly(results),
        results=results,
    )


def _of_largest(s: _Series, sweeps: Mapping[tuple[str, Size], Sweep]) -> float | None:
    """The best rate of the largest size, None where the rates end too early: what a plan goes on from."""
    sweep = sweeps[s.rule, s.sizes[-1]]
    return None if sweep.optimum is None or sweep.more() else sweep.optimum.best


def _row(s: _Series, size: Size, sweeps: Mapping[tuple[str, Size], Sweep], error: float | None) -> dict[str, Any]:
    """What the small model's best rate costs a size, "inf" where it diverges; noise: of such a difference."""
    lost = _lost(sweeps[s.rule, s.sizes[0]], sweeps[s.rule, size])
    shown = "inf" if lost == math.inf else lost
    return {"rule": s.rule, "axis": s.axis, "size": str(size), "lost": shown, "noise": error}

"""What to doubt about a law of loss, as reasons with codes: a floor at its bound, a best D / N that the points do not tell or that
lies far from every run, a loss that no run has reached.

A fit always gives numbers. These are the signs that they come from the form of the law and not from the runs.

What it gives up: a law of the wrong form that fits well is not noticed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.coupled import CoupledFit
from gangpao.sandbox.laws.scaling_law import Point, between
from gangpao.sandbox.laws.verdict import UNKNOWN, Limits, Verdict
from gangpao.sandbox.reasons import Reason

Law = fit.ScalingFit | CoupledFit

AT_BOUND = 0.05  # share of the laws that the points allow: so many with a floor of 0 are too many
PUBLISHED = (20.0, 192.0)  # best D / N of Chinchilla (arXiv:2203.15556) and of MiniCPM (arXiv:2404.06395)
FAR = 10.0  # times outside of what was published: no law of language has been seen there


def ratio_of(law: Law, C: float) -> tuple[float, Limits]:
    """The best D / N for C = 6 N D FLOPs, and its 95 % interval."""
    if isinstance(law, CoupledFit):
        ratios = law.ratios(C)
        return float(np.median(ratios)), between(ratios, 0.95)
    return law.law.ratio(C), law.ratio_interval(C)


def largest(points: Sequence[Point]) -> float:
    """6 N D of the largest run."""
    return max(6 * p.N * p.D for p in points)


def floor_at_bound(law: Law) -> float:
    """Share of the laws that the points allow whose floor E is 0."""
    least = 1e-6 * min(p.loss for p in law.points)
    return float((law.draws[:, 0] <= least).mean())


def of_law(law: Law) -> list[Reason]:
    """About the law itself, at the largest run that it was fitted to."""
    return [*_floor(law), *_ratio(law)]


def _floor(law: Law) -> list[Reason]:
    share = floor_at_bound(law)
    if isinstance(law, fit.ScalingFit) and 1e-6 * min(p.loss for p in law.points) >= law.law.E:
        return [Reason.of("floor_zero")]
    return [Reason.of("floor_share", share=share)] if share >= AT_BOUND else []


def _ratio(law: Law) -> list[Reason]:
    C, out = largest(law.points), []
    ratio, (low, high) = ratio_of(law, C)
    if high > fit.VAGUE * low:
        out.append(Reason.of("ratio_vague", C=C, low=low, high=high))
    if 0 < ratio < math.inf:
        out += _outside(law, math.sqrt(C / 6 / ratio), math.sqrt(C / 6 * ratio))
        out += far(ratio)
    return out


def _outside(law: Law, N: float, D: float) -> list[Reason]:
    """An optimum that lies beyond the runs."""
    (n, d), (N_end, D_end) = law.starts, law.ends
    if n <= N <= N_end and d <= D <= D_end:
        return []
    return [Reason.of("optimum_outside", N=N, D=D, n_low=n, n_high=N_end, d_low=d, d_high=D_end)]


def far(ratio: float) -> list[Reason]:
    """A D / N that no published law has."""
    low, high = PUBLISHED
    if low / FAR <= ratio <= high * FAR:
        return []
    return [Reason.of("ratio_far", ratio=ratio, times=FAR, low=low, high=high)]


def of_choice(law: Law, N: float, D: float, loss: float) -> list[Reason]:
    """About what a law says of one run: also that of the law itself where the run lies beyond its points."""
    ratios = [p.D / p.N for p in law.points]
    ratio, low, high = D / N, min(ratios), max(ratios)
    out = [*(_floor(law) if law.reach(N, D) > 1 else []), *far(ratio)]
    if not low / fit.SUPPORT <= ratio <= high * fit.SUPPORT:
        out.append(Reason.of("ratio_not_run", ratio=ratio, low=low, high=high))
    best = min(p.loss for p in law.points)
    if loss < best:
        out.append(Reason.of("below_best", loss=loss, best=best))
    return out


def verdicts(law: Law) -> list[Verdict]:
    """Do the points tell the floor, and which side of Chinchilla's ratio the best D / N is?"""
    low, high = law.bounds("E")
    value = law.law.E if isinstance(law, fit.ScalingFit) else float(np.median(law.draws[:, 0]))
    at_bound = floor_at_bound(law) >= AT_BOUND
    floor = Verdict("floor", value, (-math.inf if at_bound or low <= 0 else low, high), (1e-9, math.inf))
    C, chinchilla = largest(law.points), PUBLISHED[0]
    ratio, interval = ratio_of(law, C)
    known = UNKNOWN if interval[0] <= 0 and interval[1] == math.inf else interval
    about = {"C": C, "chinchilla": chinchilla}
    asked = Verdict("ratio", ratio, known, (chinchilla, math.inf), about=about)
    return [floor, asked]

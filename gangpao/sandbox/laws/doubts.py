"""What to doubt about a law of loss, in words: a floor at its bound, a best D / N that the points do not tell or that lies far from
every run, a loss that no run has reached.

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

Law = fit.ScalingFit | CoupledFit
Said = tuple[str, str]

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


def of_law(law: Law) -> list[Said]:
    """About the law itself, at the largest run that it was fitted to."""
    return [*_floor_said(law), *_ratio_said(law)]


def _floor_said(law: Law) -> list[Said]:
    share = floor_at_bound(law)
    if isinstance(law, fit.ScalingFit) and 1e-6 * min(p.loss for p in law.points) >= law.law.E:
        en = "E, the loss that no model gets below, is 0, the end of what is allowed"
        zh = "任何模型都不会低于的损失 E 为 0，即允许范围的端点"
    elif share >= AT_BOUND:
        en = f"E, the loss that no model gets below, is 0 in {share:.0%} of the laws that the points allow"
        zh = f"在各点允许的规律中，有 {share:.0%} 的 E（任何模型都不会低于的损失）为 0"
    else:
        return []
    en += ": the points do not tell it, and losses far away are probably predicted too low; "
    en += "run longer and larger, or give scaling.floor."
    return [(en, zh + "：这些点定不出 E，远处的损失很可能预测得过低；请训练更久、更大，或给出 scaling.floor。")]


def _ratio_said(law: Law) -> list[Said]:
    C, said = largest(law.points), []
    ratio, (low, high) = ratio_of(law, C)
    if high > fit.VAGUE * low:
        en = f"The points do not tell the best D/N at 6ND = {C:.3g}: its interval is {low:.3g} .. {high:.3g}."
        said.append((en, f"这些点定不出 6ND = {C:.3g} 时的最优 D/N：其区间为 {low:.3g} .. {high:.3g}。"))
    if 0 < ratio < math.inf:
        said += _outside_said(law, math.sqrt(C / 6 / ratio), math.sqrt(C / 6 * ratio))
        said += far_said(ratio)
    return said


def _outside_said(law: Law, N: float, D: float) -> list[Said]:
    """An optimum that lies beyond the runs."""
    (n, d), (N_end, D_end) = law.starts, law.ends
    if n <= N <= N_end and d <= D <= D_end:
        return []
    en = (
        f"The optimum there, N = {N:.3g} and D = {D:.3g}, lies outside the runs (N {n:.3g} .. {N_end:.3g}, D {d:.3g} .. "
        f"{D_end:.3g}): it is the law's, and was not measured."
    )
    runs = f"N {n:.3g} .. {N_end:.3g}，D {d:.3g} .. {D_end:.3g}"
    zh = f"该处的最优点 N = {N:.3g}、D = {D:.3g} 在所做训练之外（{runs}）：出自规律，没有测过。"
    return [(en, zh)]


def far_said(ratio: float) -> list[Said]:
    """A D / N that no published law has."""
    low, high = PUBLISHED
    if low / FAR <= ratio <= high * FAR:
        return []
    en = f"A D/N of {ratio:.3g} is more than {FAR:g} times outside the best ones that were published, {low:g} .. {high:g}."
    return [(en, f"D/N 为 {ratio:.3g}，超出已发表的最优值 {low:g} .. {high:g} 达 {FAR:g} 倍以上。")]


def of_choice(law: Law, N: float, D: float, loss: float) -> list[Said]:
    """About what a law says of one run: also that of the law itself where the run lies beyond its points."""
    ratios = [p.D / p.N for p in law.points]
    ratio, low, high = D / N, min(ratios), max(ratios)
    said = [*(_floor_said(law) if law.reach(N, D) > 1 else []), *far_said(ratio)]
    if not low / fit.SUPPORT <= ratio <= high * fit.SUPPORT:
        en = f"Its D/N of {ratio:.3g} is far from those that were run, {low:.3g} .. {high:.3g}."
        said.append((en, f"其 D/N 为 {ratio:.3g}，远离所做训练的 {low:.3g} .. {high:.3g}。"))
    best = min(p.loss for p in law.points)
    if loss < best:
        en = f"The predicted {loss:.4f} is below the best run that was measured, {best:.4f}: a law says so, no run has shown it."
        said.append((en, f"预测值 {loss:.4f} 低于测得的最好训练 {best:.4f}：出自规律，没有训练证实过。"))
    return said


def verdicts(law: Law) -> list[Verdict]:
    """Do the points tell the floor, and which side of Chinchilla's ratio the best D / N is?"""
    low, high = law.bounds("E")
    value = law.law.E if isinstance(law, fit.ScalingFit) else float(np.median(law.draws[:, 0]))
    at_bound = floor_at_bound(law) >= AT_BOUND
    question = (
        "Do the points tell the loss E that no model gets below (E above 0)?",
        "这些点能否定出任何模型都不会低于的损失 E（E 大于 0）？",
    )
    floor = Verdict(question, value, (-math.inf if at_bound or low <= 0 else low, high), (1e-9, math.inf))
    C, chinchilla = largest(law.points), PUBLISHED[0]
    ratio, interval = ratio_of(law, C)
    en = f"At 6ND = {C:.3g}, is the best D/N above Chinchilla's {chinchilla:g}?"
    known = UNKNOWN if interval[0] <= 0 and interval[1] == math.inf else interval
    asked = Verdict(
        (en, f"6ND = {C:.3g} 时，最优 D/N 是否大于 Chinchilla 的 {chinchilla:g}？"),
        ratio,
        known,
        (chinchilla, math.inf),
    )
    return [floor, asked]

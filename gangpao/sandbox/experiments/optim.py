"""AdamW against Muon: the tokens, and the seconds, that each needs for the same loss.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from gangpao.sandbox.experiments import plot
from gangpao.sandbox.experiments.lr import Sweep, excluded, noise_said, opened, span, sweeps_of
from gangpao.sandbox.experiments.outcome import Language, Outcome, Submit, Text, join
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.scaling_law import WIDE, student
from gangpao.sandbox.laws.verdict import UNKNOWN, Limits, Verdict
from gangpao.sandbox.trials.config import ExperimentTable, Optimizer
from gangpao.sandbox.trials.field_types import Positive, Seed, Some, Tokens
from gangpao.sandbox.trials.trial import Lab, Result, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWS = 600
_LEVELS = 21  # losses at which the curves are read across
_SHOWN = {"adamw": "AdamW", "muon": "Muon"}

Array = np.ndarray[Any, np.dtype[np.float64]]
Key = tuple[str, int]  # optimizer, tokens


class OptimConfig(ExperimentTable):
    """AdamW against Muon: the tokens each needs for the same loss."""

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
    error = noise and noise.between(seeds)
    said = _edges_said(sweeps)
    edges = {name for (name, _), s in sweeps.items() if s.more()}
    verdicts = [
        _asked(first, c, ratio, what, edges)
        for c in curves[1:]
        for ratio, what in zip(
            ratios[c.optimizer], (("tokens", " token"), ("seconds of steps", "步的秒数")), strict=True
        )
    ]
    for c, judged in zip(curves[1:], zip(verdicts[::2], verdicts[1::2], strict=True), strict=True):
        said += _ratio_said(first, c, *ratios[c.optimizer], *judged, edges)
    return Outcome(
        name="optim",
        title={"en": "Optimizers at equal loss", "zh": "同等损失下的优化器"},
        columns=_COLUMNS,
        rows=_rows(first, curves, sweeps, error),
        verdicts=verdicts,
        verdict=join([*said, noise_said(noise, "optim")]),
        draw=lambda figure, language: _draw(figure, language, curves, sweeps),
        facts={
            "noise": noise and noise.sigma,
            "first": first.optimizer,
            "tokens": {name: tokens.json() for name, (tokens, _) in ratios.items()},
            "seconds": {name: seconds.json() for name, (_, seconds) in ratios.items()},
            "optimum": {c.optimizer: _best_rates(c, sweeps) for c in curves},
            "sweeps": [{"optimizer": name, "D": D, **sweep.json()} for (name, D), sweep in sweeps.items()],
        },
        excluded=excluded(results),
        results=results,
    )


def _best_rates(c: _Curve, sweeps: Mapping[Key, Sweep]) -> dict[str, float | None]:
    """Tokens -> best rate; None where the rates end too early."""
    here = {D: s for (name, D), s in sorted(sweeps.items()) if name == c.optimizer}
    return {str(D): None if s.optimum is None or s.more() else s.optimum.best for D, s in here.items()}


_COLUMNS: dict[str, Text] = {
    "optimizer": {"en": "optimizer", "zh": "优化器"},
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "lr": {"en": "best rate", "zh": "最佳学习率"},
    "interval": {"en": "95 % interval", "zh": "95 % 区间"},
    "bpb": {"en": "bpb there, fitted", "zh": "该处 bpb（拟合）"},
    "measured": {"en": "lowest bpb measured", "zh": "测得的最低 bpb"},
    "difference": {"en": "to the first", "zh": "与第一个之差"},
    "noise": {"en": "noise of a difference (95 %)", "zh": "差的噪声（95 %）"},
    "seconds": {"en": "seconds", "zh": "秒"},
}


def _rows(
    first: _Curve, curves: Sequence[_Curve], sweeps: Mapping[Key, Sweep], error: float | None
) -> list[dict[str, Any]]:
    base = dict(zip(first.D.tolist(), first.loss.tolist(), strict=True))
    rows = []
    for c in curves:
        for D, loss in zip(c.D.tolist(), c.loss.tolist(), strict=True):
            sweep = sweeps[c.optimizer, int(D)]
            rows.append({
                "optimizer": _SHOWN[c.optimizer], "D": int(D), "lr": sweep.optimum and sweep.optimum.best,
                "interval": span(*sweep.bounds), "bpb": loss, "measured": sweep.measured,
                "difference": loss - base[D] if c is not first and D in base else None,
                "noise": error if c is not first else None,
                "seconds": float(np.median(c.seconds)) * D if len(c.seconds) else None,
            })  # fmt: skip
    return rows


def _edges_said(sweeps: Mapping[Key, Sweep]) -> list[tuple[str, str]]:
    said = []
    groups: dict[tuple[str, str], list[str]] = {}
    for (name, D), sweep in sorted(sweeps.items()):
        more = sweep.more()
        if sweep.optimum is None or more:
            groups.setdefault((_SHOWN[name], f"{more[0]:.2g}" if more else ""), []).append(f"{D:,}")
    for (where, add), counts in groups.items():
        count = " / ".join(counts)
        if not add:
            en = f"{where} at {count} tokens: too few trials ended well for a best rate."
            said.append((en, f"{where} 在 {count} token 处正常结束的试验太少，定不出最佳学习率。"))
        else:
            en = f"{where} at {count} tokens: the best rate is at the edge of the grid and may do better: add {add} to optim.rates."
            zh = f"{where} 在 {count} token 处最佳学习率在网格边缘，也许还能更好：请在 optim.rates 中加入 {add}。"
            said.append((en, zh))
    return said


def _asked(a: _Curve, b: _Curve, r: Ratio, what: tuple[str, str], edges: set[str]) -> Verdict:
    """Does b need less than a? edges: optimizers whose best rate may lie beyond those that were tried: they may do better, so an
    answer against one of them is open on that side."""
    one, other = _SHOWN[a.optimizer], _SHOWN[b.optimizer]
    en = f"Does {other} need fewer {what[0]} than {one} for the same loss (ratio below 1)?"
    zh = f"同等损失下，{other} 所需{what[1]}是否少于 {one}（比值小于 1）？"
    return Verdict((en, zh), r.value, _interval(a, b, r, edges), (-math.inf, 1 - 1e-9))


def _interval(a: _Curve, b: _Curve, r: Ratio, edges: set[str]) -> Limits:
    low, high = (r.low or 0.0, r.high or math.inf) if r.value is not None else (0.0, math.inf)
    if r.bound is not None:
        low, high = (0.0, r.bound) if r.bound < 1 else (r.bound, math.inf)
    if a.optimizer in edges:
        high = math.inf
    low, high = opened(0.0 if b.optimizer in edges else low, high)
    return (low, high) if low > -math.inf or high < math.inf else UNKNOWN


def _ratio_said(
    a: _Curve, b: _Curve, tokens: Ratio, seconds: Ratio, less: Verdict, sooner: Verdict, edges: set[str]
) -> list[tuple[str, str]]:
    """edges: optimizers whose best rate may lie beyond those that were tried."""
    one, other = _SHOWN[a.optimizer], _SHOWN[b.optimizer]
    if tokens.value is None:
        if tokens.bound is None:
            en = f"{one} and {other} cannot be compared: trials are missing, or all that keeps their losses apart may be noise."
            return [(en, f"{one} 与 {other} 无法比较：缺少试验，或损失之差可能只是噪声。")]
        side = ("less", "小于") if tokens.bound < 1 else ("more", "大于")
        bound = f"{tokens.bound:.3g}"
        en = (
            f"{one} and {other} reach no loss in common: for equal loss {other} needs {side[0]} than {bound} times the tokens. "
            "Add token counts to optim.tokens so that the curves overlap."
        )
        zh = (
            f"{one} 与 {other} 没有共同达到的损失：同等损失下 {other} 所需 token {side[1]} {one} 的 {bound} 倍。"
            "请增加 optim.tokens，使两条曲线重叠。"
        )
        return [(en, zh)]
    assert tokens.losses is not None
    assert tokens.ends is not None
    number, at = _shown(tokens), f"{tokens.losses[0]:.4f} .. {tokens.losses[1]:.4f}"
    ends = f"{tokens.ends[0]:.2f}", f"{tokens.ends[1]:.2f}"
    call = _call(less, a, b, edges)
    en = (
        f"For the same loss ({at} bits per byte) {other} needs {number} times the tokens of {one}: {ends[0]} times at the highest "
        f"of these losses, {ends[1]} at the lowest{call[0]}."
    )
    zh = (
        f"同等损失（每字节 {at} 比特）下，{other} 所需 token 为 {one} 的 {number} 倍："
        f"其中损失最高处 {ends[0]} 倍，最低处 {ends[1]} 倍{call[1]}。"
    )
    said = [(en, zh)]
    if seconds.value is not None:
        call = _call(sooner, a, b, edges)
        said.append(
            (
                f"In seconds of steps on this machine it needs {_shown(seconds)} times as much{call[0]}.",
                f"按本机上各步的秒数，为 {_shown(seconds)} 倍{call[1]}。",
            )
        )
    return said


def _shown(r: Ratio) -> str:
    assert r.value is not None
    interval = "" if r.low is None or r.high is None else f" ({r.low:.2f} .. {r.high:.2f})"
    return f"{r.value:.2f}{interval}"


def _call(v: Verdict, a: _Curve, b: _Curve, edges: set[str]) -> tuple[str, str]:
    if v.answer != "cannot tell":
        return ("; less", "；更少") if v.answer == "yes" else ("; more", "；更多")
    open_ = [c.optimizer for c in (a, b) if c.optimizer in edges]
    if v.interval == UNKNOWN and not open_:
        return "; the interval is not known, so which needs less cannot be told", "；区间未知，无法判断哪个更少"
    if not open_:
        return "; which needs less cannot be told", "；无法判断哪个更少"
    names = " / ".join(_SHOWN[name] for name in open_)
    return (
        f"; which needs less cannot be told, as {names} may do better at the rates to add",
        f"；{names} 用待加入的学习率可能更好，因此无法判断哪个更少",
    )


# --- the picture

_WORDS: dict[str, Text] = {
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "lr": {"en": "learning rate", "zh": "学习率"},
    "bpb": {"en": "bits per byte", "zh": "每字节比特"},
    "best": {"en": "at the best rate", "zh": "最佳学习率处"},
}


def _draw(figure: Figure, language: Language, curves: Sequence[_Curve], sweeps: Mapping[Key, Sweep]) -> None:
    """Left: loss over tokens at the best rates. Right: the sweeps over the rate, lighter for fewer tokens."""
    word = plot.words(_WORDS, language)
    left, right = figure.subplots(1, 2)
    for i, c in enumerate(curves):
        left.plot(c.D, c.loss, "os^"[i % 3] + "-", color=f"C{i}", label=_SHOWN[c.optimizer])
        here = sorted((D, s) for (name, D), s in sweeps.items() if name == c.optimizer)
        for j, (D, sweep) in enumerate(here):
            good = [(x, y) for x, y in zip(sweep.x, sweep.means, strict=True) if y < math.inf]
            right.plot(
                [x for x, _ in good], [y for _, y in good], ".-", color=f"C{i}", alpha=0.3 + 0.7 * (j + 1) / len(here),
                label=f"{_SHOWN[c.optimizer]} {D:,}",
            )  # fmt: skip
            if sweep.optimum is not None:
                right.plot(
                    sweep.optimum.best, sweep.optimum.loss, "*", color=f"C{i}", markersize=11, markeredgecolor="k"
                )
    left.set(title=word["best"], xlabel=word["D"], ylabel=word["bpb"])
    plot.log_ticks(left, [float(d) for c in curves for d in c.D])
    right.set(xlabel=word["lr"], ylabel=word["bpb"])
    plot.log_ticks(right, [x for sweep in sweeps.values() for x in sweep.x])
    plot.keep_minima_in_view(right, [sweep.means for sweep in sweeps.values()])
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    plot.legend_below(figure, right)
    plot.set_font(figure, language)

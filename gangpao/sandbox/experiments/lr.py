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
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gangpao.sandbox.experiments import plot
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import Language, Outcome, Submit, Text, join
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.verdict import Answer, Limits, Verdict
from gangpao.sandbox.trials.config import ExperimentTable, Rule, Size
from gangpao.sandbox.trials.field_types import Layers, Once, Positive, Rates, Seed, Some, Tokens, Width
from gangpao.sandbox.trials.trial import Lab, Result, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


# --- a sweep: one value is varied, for several seeds


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
        found: dict[str, Any] | None = None
        if best is not None:
            found = {"best": best.best, "loss": best.loss, "at_edge": best.at_edge, "measured": self.measured}
        means = [finite(v) for v in self.means]
        return {"x": list(self.x), "bpb": means, "bounds": [finite(v) for v in self.bounds], "optimum": found}


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


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


def excluded(results: Sequence[Result]) -> list[tuple[str, str]]:
    """What did not end well, and why."""
    bad = {r.key: r for r in results if r.bpb is None}
    return [(_name(r.spec), _why(r)) for r in bad.values()]


def _name(q: Spec) -> str:
    tokens = f"batch {q.batch_tokens:,}, {q.tokens:,} tokens"
    return f"{q.width}x{q.layers}, {q.rule}, {q.optimizer}, lr {q.lr:g}, {tokens}, seed {q.seed}"


def _why(r: Result) -> str:
    if r.state == "done":
        return "no held-out text to judge it by"
    return f"{r.state}: {r.why}" if r.why else r.state


def noise_said(noise: fit.Noise | None, table: str) -> tuple[str, str]:
    """How far seeds scatter. table: of the configuration."""
    if noise is None:
        en = f"With one seed the noise between seeds is not known: give {table}.seeds two values or more."
        return en, f"只有一个种子，种子间噪声未知：请给 {table}.seeds 两个以上的值。"
    return f"Noise between seeds: {noise.sigma:.4f} bits per byte.", f"种子间噪声：每字节 {noise.sigma:.4f} 比特。"


def span(low: float, high: float, form: str = ".3g") -> str:
    """An interval of a positive number as text; of an open one the end that is known."""
    return verdict.span(*opened(low, high), form)


def opened(low: float, high: float) -> Limits:
    """An interval of a positive number, where 0 means that nothing tells its lower end."""
    return (low if low > 0 else -math.inf), high


# --- the experiment


@dataclass(frozen=True, slots=True)
class _Series:
    """The sizes along which a rule's best rate is followed. axis: width or depth. key: where its rates are configured."""

    rule: str
    axis: str
    sizes: tuple[Size, ...]
    rates: Rates
    key: str


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
        en = f"Under {self.rule}, does the best rate stay within a step of the grid across {self.axis}s?"
        zh = f"{self.rule} 规则下，最佳学习率跨{_AXES[self.axis]['zh']}是否保持在网格一步之内？"
        limit = self.step * (1 + 1e-9)
        return Verdict((en, zh), self.factor, opened(self.low, self.high), (1 / limit, limit))

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
    return Shift(s.rule, s.axis, s.sizes[0], s.sizes[-1], step, factor, *_quotient(a, b))


def _quotient(a: Sweep, b: Sweep) -> tuple[float, float]:
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
    en = f"Under {s.rule}, does the small model's best rate cost the large one ({s.sizes[-1]}) at most {COSTS:g} % of its loss?"
    zh = f"{s.rule} 规则下，大模型（{s.sizes[-1]}）用小模型的最佳学习率，损失增量是否不超过 {COSTS:g} %？"
    allowed = (-math.inf, COSTS)
    if lost == math.inf:  # it diverges there
        return Verdict((en, zh), None, (math.inf, math.inf), allowed, " %")
    percent = 100 / large.optimum.loss
    interval = verdict.about(percent * lost, None if error is None else percent * error)
    return Verdict((en, zh), percent * lost, interval, allowed, " %")


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
    rows = [_row(s, size, sweeps, errors[s.rule]) for s in series for size in s.sizes]
    pairs = zip(shifts, series, strict=True)
    said = [sentence for shift, s in pairs for sentence in _said(shift, s, sweeps, errors[s.rule])]
    known = {rule: found for rule, found in noise.items() if found is not None}
    costs = [_cost(s, sweeps, errors[s.rule]) for s in series]
    return Outcome(
        name="lr",
        title={"en": "The best learning rate across sizes", "zh": "各尺寸的最佳学习率"},
        columns=_COLUMNS,
        rows=[row | {"axis": _AXES[row["axis"]]} for row in rows],
        verdicts=[v for shift, cost in zip(shifts, costs, strict=True) for v in (shift.verdict, cost) if v is not None],
        verdict=join([*said, *(_rule_noise_said(known) if known else [noise_said(None, "lr")])]),
        draw=lambda figure, language: _draw(figure, language, series, sweeps),
        facts={
            "conditions": conditions(lab),
            "noise": {rule: found.sigma for rule, found in known.items()},
            "optimum": {s.rule: _of_largest(s, sweeps) for s in reversed(series)},
            "shifts": [shift.json() for shift in shifts],
            "sweeps": [{"rule": rule, "size": str(size), **sweep.json()} for (rule, size), sweep in sweeps.items()],
            "rows": rows,
        },
        excluded=excluded(results),
        results=results,
    )


def _rule_noise_said(noise: Mapping[str, fit.Noise]) -> list[tuple[str, str]]:
    en = ", ".join(f"{rule} {found.sigma:.4f}" for rule, found in noise.items())
    return [(f"Noise between seeds, bits per byte: {en}.", f"种子间噪声（每字节比特）：{en}。")]


def _of_largest(s: _Series, sweeps: Mapping[tuple[str, Size], Sweep]) -> float | None:
    """The best rate of the largest size, None where the rates end too early: what a plan goes on from."""
    sweep = sweeps[s.rule, s.sizes[-1]]
    return None if sweep.optimum is None or sweep.more() else sweep.optimum.best


_COLUMNS: dict[str, Text] = {
    "rule": {"en": "rule", "zh": "迁移规则"},
    "axis": {"en": "along", "zh": "方向"},
    "size": {"en": "size", "zh": "尺寸"},
    "lr": {"en": "best rate", "zh": "最佳学习率"},
    "interval": {"en": "95 % interval", "zh": "95 % 区间"},
    "bpb": {"en": "bpb there, fitted", "zh": "该处 bpb（拟合）"},
    "measured": {"en": "lowest bpb measured", "zh": "测得的最低 bpb"},
    "lost": {"en": "lost at the small model's best", "zh": "用小模型最佳学习率的损失增量"},
    "noise": {"en": "noise of a difference (95 %)", "zh": "差的噪声（95 %）"},
    "diverged": {"en": "diverged from", "zh": "发散的最小学习率"},
}


def _row(s: _Series, size: Size, sweeps: Mapping[tuple[str, Size], Sweep], error: float | None) -> dict[str, Any]:
    sweep, best = sweeps[s.rule, size], sweeps[s.rule, size].optimum
    lost = _lost(sweeps[s.rule, s.sizes[0]], sweep)
    walls = [x for x, loss in zip(sweep.x, sweep.means, strict=True) if loss == math.inf]
    return {
        "rule": s.rule, "axis": s.axis, "size": str(size), "lr": best and best.best, "interval": span(*sweep.bounds),
        "bpb": best and best.loss, "measured": sweep.measured, "lost": "inf" if lost == math.inf else lost, "noise": error,
        "diverged": min(walls, default=None),
    }  # fmt: skip


_AXES: dict[str, Text] = {"width": {"en": "width", "zh": "宽度"}, "depth": {"en": "depth", "zh": "深度"}}


def _said(
    shift: Shift, s: _Series, sweeps: Mapping[tuple[str, Size], Sweep], error: float | None
) -> list[tuple[str, str]]:
    """What became of the promise of a rule along an axis."""
    en, zh = f"{s.rule} across {_AXES[s.axis]['en']}s", f"{s.rule} 跨{_AXES[s.axis]['zh']}"
    small, large = sweeps[s.rule, shift.small], sweeps[s.rule, shift.large]
    if small.optimum is None or large.optimum is None:
        en = f"{en}: a best rate cannot be told, too few trials ended well."
        return [(en, f"{zh}：正常结束的试验太少，定不出最佳学习率。")]
    pairs = ((shift.small, small, small.optimum), (shift.large, large, large.optimum))
    bests = ", ".join(f"{size}: {best.best:.3g} ({span(*sweep.bounds)})" for size, sweep, best in pairs)
    numbers, step = f"× {shift.factor:.2f} ({span(shift.low, shift.high, '.2f')})", f"× {shift.step:.2f}"
    answer = _ANSWERS[shift.answer]
    en = f"{en}: the best rate is at {bests}; it moves by {numbers}, one step of the grid is {step}: {answer[0]}."
    out = [(en, f"{zh}：最佳学习率为 {bests}；移动 {numbers}，网格一步为 {step}：{answer[1]}。")]
    for size in s.sizes:
        more = sweeps[s.rule, size].more()
        if more:
            add = f"{more[0]:.2g}"
            en = f"At {size} the best rate is at the edge of the grid: add {add} to {s.key}."
            out.append((en, f"{size} 的最佳学习率在网格边缘：请在 {s.key} 中加入 {add}。"))
    lost = _lost(small, large)
    if lost == math.inf:
        out.append(("The small model's best rate makes the large one diverge.", "小模型的最佳学习率使大模型发散。"))
    elif lost is not None:
        beside = "" if error is None else f" ± {error:.4f}"
        en = f"With the small model's best rate the large one loses {lost:.4f}{beside} bits per byte"
        zh = f"大模型若用小模型的最佳学习率，每字节多 {lost:.4f}{beside} 比特"
        within = error is not None and abs(lost) <= error
        end = (", which noise alone may be.", "，可能只是噪声。") if within else (".", "。")
        out.append((en + end[0], zh + end[1]))
    return out


_ANSWERS: dict[Answer, tuple[str, str]] = {
    "yes": ("yes, it stays within a step, all of the interval says so", "是，在一步之内，整个区间都如此"),
    "no": ("no, it moves by more than a step, all of the interval says so", "否，超过一步，整个区间都如此"),
    "cannot tell": ("that cannot be told, the interval holds both", "无法判断，区间两者都含"),
}  # fmt: skip


# --- the picture

_WORDS: dict[str, Text] = {
    "lr": {"en": "learning rate", "zh": "学习率"},
    "bpb": {"en": "bits per byte", "zh": "每字节比特"},
    "diverged": {"en": "diverged", "zh": "发散"},
    "width": {"en": "widths", "zh": "宽度"},
    "depth": {"en": "depths", "zh": "深度"},
}


def _draw(
    figure: Figure, language: Language, series: Sequence[_Series], sweeps: Mapping[tuple[str, Size], Sweep]
) -> None:
    """A panel for each rule (below them: over depths), a line for each size, the bottom of its
    parabola marked with its 95 % interval, × above where it diverged."""
    word = plot.words(_WORDS, language)
    rules, axes_names = list(dict.fromkeys(s.rule for s in series)), list(dict.fromkeys(s.axis for s in series))
    panels = figure.subplots(len(axes_names), len(rules), squeeze=False, sharey="row")
    for s in series:
        axes = panels[axes_names.index(s.axis)][rules.index(s.rule)]
        for size, colour in zip(s.sizes, plot.colours(len(s.sizes)), strict=True):
            sweep = sweeps[s.rule, size]
            points = [(x, y) for x, y in zip(sweep.x, sweep.means, strict=True)]
            good = [(x, y) for x, y in points if y < math.inf]
            axes.plot([x for x, _ in good], [y for _, y in good], "o-", color=colour, markersize=3, label=str(size))
            walls = [x for x, y in points if y == math.inf]
            if walls:
                axes.plot(walls, [0.97] * len(walls), "x", color=colour, transform=axes.get_xaxis_transform())
            if sweep.optimum is not None:
                best, (low, high) = sweep.optimum, sweep.closed
                axes.plot([low, high], [best.loss, best.loss], "-", color=colour, linewidth=1, alpha=0.6)
                axes.plot(best.best, best.loss, "*", color=colour, markersize=13, markeredgecolor="k")
        plot.log_ticks(axes, s.rates)
        axes.set(title=f"{s.rule}, {word[s.axis]}", xlabel=word["lr"], ylabel=word["bpb"])
        axes.legend(fontsize=8)
    for row, axis in zip(panels, axes_names, strict=True):
        here = [sweeps[s.rule, size].means for s in series if s.axis == axis for size in s.sizes]
        plot.keep_minima_in_view(row[0], here)
    plot.set_font(figure, language)

"""Loss against batch size at equal tokens, and the law of the best batch.

A small batch makes more steps of the same tokens, a large one has less noise in each; between them lies a best one, and it
grows as the loss falls. MiniCPM (arXiv:2404.06395, section 3.2) found 1.21e9 / L^6.24 tokens, L in nats a token on C4. Here the
best batch of each size gives a law over the loss in bits per byte, and one over tokens beside it. Sizes that the law does not see
test it: what does the law's batch lose against the best of their own grid?

The interval of a law comes from the intervals of the best batches, each drawn anew, widened where the points miss the law by more
than those allow: three sizes leave too little for an interval from the misses alone.

What it gives up: the learning rate is the common one, times what the rule says about batches, and is not tuned for each
batch. Loss and tokens rise together here, so the two laws cannot both be blamed for the same points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from gangpao.sandbox.experiments import plot
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.lr import Sweep, excluded, noise_said, span, sweeps_of
from gangpao.sandbox.experiments.outcome import Language, Outcome, Submit, Text, join
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.scaling_law import WIDE
from gangpao.sandbox.laws.verdict import BELOW_ZERO, UNKNOWN, Verdict
from gangpao.sandbox.trials.config import ExperimentTable, Size, of_each, pairs_once
from gangpao.sandbox.trials.field_types import Seed, Some, Tokens, filled
from gangpao.sandbox.trials.trial import Lab, Result, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL = 0.3  # percent of loss that the law's batch may cost
_UNEQUAL = 0.01  # share by which tokens may differ between batches
_DRAWS = 2000


class BatchConfig(ExperimentTable):
    """Loss against batch size at equal tokens, several sizes."""

    sizes: Annotated[tuple[Size, ...], AfterValidator(filled)] = (
        Size(width=64, layers=4),
        Size(width=96, layers=4),
        Size(width=128, layers=4),
    )
    check: tuple[Size, ...] = Field(default=(), description="Sizes that the law is not fitted to, to test it on.")
    batches: Some[Tokens] = (1024, 2048, 4096, 8192, 16384, 32768)
    tokens: tuple[Tokens, ...] = Field(default=(), description="Tokens of each size; empty: the common number for all.")
    check_tokens: tuple[Tokens, ...] = Field(default=(), description="The same for those of check.")
    seeds: Some[Seed] = (0,)

    @field_validator("tokens", "check_tokens")
    @classmethod
    def _belong(cls, tokens: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        return of_each(tokens, info, "sizes" if info.field_name == "tokens" else "check")

    @model_validator(mode="after")
    def _differ(self) -> BatchConfig:
        pairs_once("sizes", self.sizes, self.tokens)
        pairs_once("check", self.check, self.check_tokens)
        return self


class _Case(NamedTuple):
    """A size and the tokens that its trials see. check: the law is not fitted to it."""

    size: Size
    tokens: int
    check: bool


@dataclass(frozen=True)
class _Law:
    """batch = a x^b. draws: log a and b; scale: how much farther the points lie than their intervals say, at least 1."""

    law: fit.PowerLaw
    scale: float
    draws: np.ndarray[Any, np.dtype[np.float64]] = field(repr=False, compare=False)

    @property
    def exponent(self) -> tuple[float, float]:
        """95 % interval of b."""
        low, high = np.quantile(self.draws[:, 1], [0.025, 0.975])
        return float(low), float(high)

    def interval(self, x: float) -> tuple[float, float]:
        """95 % interval of the batch at x."""
        low, high = np.exp(np.quantile(self.draws @ np.array([1.0, math.log(x)]), [0.025, 0.975]))
        return float(low), float(high)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        spread: list[list[float]] = np.cov(self.draws.T).tolist()
        same = {"a": self.law.a, "b": self.law.b, "exponent": list(self.exponent), "scale": self.scale}
        return same | {"covariance": spread}


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for batches that cannot see equal tokens, and for a test on sizes that are fitted."""
    cases = _cases(lab)
    groups = {case: _specs(lab, case) for case in cases}
    order = sorted(groups, key=lambda case: -case.size.layers * case.size.width**2 * case.tokens)
    found = iter(submit([spec for case in order for row in groups[case].values() for spec in row]))
    results = {case: {b: [next(found) for _ in row] for b, row in groups[case].items()} for case in order}
    sweeps, noise = sweeps_of(results)
    fitted = [case for case in cases if not case.check and _inside(sweeps[case])]
    laws = {
        "loss": _law([_loss(sweeps[c]) for c in fitted], [sweeps[c] for c in fitted]),
        "tokens": _law([float(c.tokens) for c in fitted], [sweeps[c] for c in fitted]),
    }
    everything = [r for group in results.values() for row in group.values() for r in row]
    return _outcome(lab, cases, sweeps, laws, noise, everything)


def _cases(lab: Lab) -> list[_Case]:
    c, common = lab.config.table(BatchConfig), lab.config.common
    if len(set(c.batches)) < 3:
        raise ValueError(f"batch.batches: {len(set(c.batches))} different values; a minimum needs three, better six")
    unit = math.lcm(*c.batches)
    out: list[_Case] = []
    for name, sizes, tokens in (("sizes", c.sizes, c.tokens), ("check", c.check, c.check_tokens)):
        for size, asked in zip(sizes, tokens or [common.tokens] * len(sizes), strict=True):
            # Whole steps of every batch, so that all see the same number of tokens.
            equal = max(1, round(asked / unit)) * unit
            out.append(_Case(size, equal if abs(equal / asked - 1) <= 0.2 else asked, name == "check"))
    again = {case[:2] for case in out if case.check} & {case[:2] for case in out if not case.check}
    if again:
        which = min(str(size) for size, _ in again)
        raise ValueError(f"batch.check: {which} is also in batch.sizes, with the same tokens, so it tests nothing")
    return list(dict.fromkeys(out))


def _specs(lab: Lab, case: _Case) -> dict[float, list[Spec]]:
    """Batch -> a spec for each seed."""
    out = {}
    for batch in sorted(set(lab.config.table(BatchConfig).batches)):
        changes = {"width": case.size.width, "layers": case.size.layers, "batch_tokens": batch, "tokens": case.tokens}
        out[float(batch)] = [lab.spec(**changes, seed=seed) for seed in lab.config.table(BatchConfig).seeds]
        D = out[float(batch)][0].tokens
        if abs(D / case.tokens - 1) > _UNEQUAL:
            raise ValueError(
                f"batch.batches: steps of {batch:,} tokens make {D:,}, not {case.tokens:,}, and unequal tokens do not compare; "
                "let every batch divide the largest one, and give more tokens than that"
            )
    return out


def _inside(sweep: Sweep) -> bool:
    """Is a best batch known?"""
    return sweep.optimum is not None and not sweep.more()


def _loss(sweep: Sweep) -> float:
    assert sweep.optimum is not None
    return sweep.optimum.loss


# --- the law


def _law(x: Sequence[float], sweeps: Sequence[Sweep]) -> _Law | None:
    """None with fewer than three different x."""
    if len(set(x)) < 3:
        return None
    best = np.array([s.optimum.best for s in sweeps if s.optimum is not None])
    bounds = np.array([s.closed for s in sweeps])
    sigma = np.maximum(np.log(bounds[:, 1] / bounds[:, 0]) / (2 * WIDE), 1e-6)
    law = fit.fit_power(x, [float(b) for b in best]).law
    X = np.stack([np.ones(len(x)), np.log(x)], axis=1)
    missed = np.log(best) - X @ np.array([math.log(law.a), law.b])
    scale = max(1.0, math.sqrt(float(((missed / sigma) ** 2).sum()) / (len(x) - 2)))
    noise = np.random.default_rng(0).standard_normal((_DRAWS, len(x))) * sigma * scale
    # Around the law itself: the fit is robust, a draw's is not.
    draws = np.array([math.log(law.a), law.b]) + noise @ np.linalg.pinv(X).T
    return _Law(law, scale, draws)


def _test(case: _Case, sweep: Sweep, law: _Law, x: float, error: float | None) -> dict[str, Any]:
    """What the law's batch costs a size: percent of the best loss of its own grid. None outside the grid."""
    low, high = law.interval(x)
    batch = law.law.predict(x)
    best = min((v for v in sweep.means if v < math.inf), default=None)
    lost = None
    if best is not None and sweep.optimum is not None and sweep.x[0] <= batch <= sweep.x[-1]:
        try:
            lost = 100 * (sweep.optimum.loss_at(batch) / best - 1)
        except ValueError:  # it diverges there
            lost = None
    error = None if error is None or best is None else 100 * error / best
    where = {"size": str(case.size), "D": case.tokens, "batch": batch, "low": low, "high": high}
    return {**where, "lost": lost, "error": error}


# --- the outcome


def _outcome(
    lab: Lab,
    cases: Sequence[_Case],
    sweeps: Mapping[_Case, Sweep],
    laws: dict[str, _Law | None],
    noise: fit.Noise | None,
    results: list[Result],
) -> Outcome:
    error = noise and noise.between(len(lab.config.table(BatchConfig).seeds))
    tests = []
    for name, law in laws.items():
        for case in cases:
            sweep = sweeps[case]
            if law is not None and case.check and sweep.optimum is not None:
                x = _loss(sweep) if name == "loss" else float(case.tokens)
                tests.append({"law": name, **_test(case, sweep, law, x, error)})
    by_loss = laws["loss"]
    direction, goals = _direction(by_loss), [_goal(t) for t in tests]
    usable = by_loss is not None and direction.answer == "yes"
    said = [
        *_edges_said(cases, sweeps, lab.config.seq_len),
        *_laws_said(laws),
        *_tests_said(cases, tests, goals),
        noise_said(noise, "batch"),
    ]
    return Outcome(
        name="batch",
        title={"en": "The best batch size", "zh": "最佳批大小"},
        columns=_COLUMNS,
        rows=[_row(case, sweeps[case], by_loss, error) for case in cases],
        verdicts=[direction, *goals],
        verdict=join(said),
        draw=lambda figure, language: _draw(figure, language, cases, sweeps, by_loss),
        facts={
            "conditions": conditions(lab),
            "noise": noise and noise.sigma,
            "law": {"a": by_loss.law.a, "b": by_loss.law.b} if by_loss and usable else None,
            "laws": {name: law.json() if law else None for name, law in laws.items()},
            "checks": tests,
            "goal": GOAL,
            "sweeps": [{"size": str(c.size), "D": c.tokens, "check": c.check, **sweeps[c].json()} for c in cases],
        },
        excluded=excluded(results),
        results=results,
    )


_COLUMNS: dict[str, Text] = {
    "size": {"en": "size", "zh": "尺寸"},
    "check": {"en": "fitted", "zh": "参与拟合"},
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "batch": {"en": "best batch, tokens", "zh": "最佳批大小（token）"},
    "interval": {"en": "95 % interval", "zh": "95 % 区间"},
    "bpb": {"en": "bpb there, fitted", "zh": "该处 bpb（拟合）"},
    "measured": {"en": "lowest bpb measured", "zh": "测得的最低 bpb"},
    "grid": {"en": "batch measured there", "zh": "对应的批大小"},
    "law": {"en": "law of loss", "zh": "损失规律给出"},
    "noise": {"en": "noise of a difference in bpb (95 %)", "zh": "bpb 差的噪声（95 %）"},
}

_FITTED: dict[bool, Text] = {True: {"en": "yes", "zh": "是"}, False: {"en": "no", "zh": "否"}}


def _row(case: _Case, sweep: Sweep, law: _Law | None, error: float | None) -> dict[str, Any]:
    best, means = sweep.optimum, sweep.means
    return {
        "size": str(case.size), "check": _FITTED[not case.check], "D": case.tokens, "batch": best and best.best,
        "interval": span(*sweep.bounds, ",.0f"), "bpb": best and best.loss, "measured": sweep.measured,
        "grid": round(sweep.x[means.index(min(means))]) if best else None,
        "law": law.law.predict(best.loss) if law and best else None, "noise": error,
    }  # fmt: skip


def _edges_said(cases: Sequence[_Case], sweeps: Mapping[_Case, Sweep], row: int) -> list[tuple[str, str]]:
    """The best batch of each size. row: tokens of a sequence, and so the smallest batch."""
    said = []
    for case in cases:
        where, sweep = f"{case.size}", sweeps[case]
        if sweep.optimum is None:
            en = f"{where} has no best batch: too few trials ended well."
            said.append((en, f"{where} 正常结束的试验太少，没有最佳批大小。"))
        elif (more := sweep.more()) and more[0] < row:
            en = f"At {where} the best batch is the smallest that there can be, near one row of {row} tokens: shorten seq_len."
            said.append((en, f"{where} 的最佳批大小已接近最小值，即一行 {row} 个 token：请减小 seq_len。"))
        elif more:
            add = f"{more[0]:.0f}"
            en = f"At {where} the best batch is at the edge of the grid: add {add} to batch.batches."
            said.append((en, f"{where} 的最佳批大小在网格边缘：请在 batch.batches 中加入 {add}。"))
        else:
            numbers = f"{sweep.optimum.best:,.0f} ({span(*sweep.bounds, ',.0f')})"
            en = f"At {where} and {case.tokens:,} tokens the best batch is {numbers} tokens."
            said.append((en, f"{where}、{case.tokens:,} token 时最佳批大小为 {numbers} token。"))
    return said


def _laws_said(laws: dict[str, _Law | None]) -> list[tuple[str, str]]:
    said = []
    paper = -fit.MINICPM.batch.b
    if (law := laws["loss"]) is None:
        en = "Fewer than three sizes have a best batch inside the grid, so there is no law over the loss: add sizes or batches."
        zh = "最佳批大小在网格之内的尺寸不足三个，得不到随损失的规律：请增加尺寸或批大小。"
        said.append((en, zh))
    else:
        low, high = sorted(-v for v in law.exponent)
        formula = f"{law.law.a:.3g} / L^{-law.law.b:.2f} ({low:.2f} .. {high:.2f})"
        inside = ("inside", "内") if low <= paper <= high else ("outside", "外")
        en = (
            f"Over the loss L in bits per byte: batch = {formula}; the paper's exponent {paper:.2f} lies {inside[0]} the interval "
            "(its factor is for nats a token on C4, so only the exponents compare)."
        )
        zh = (
            f"随损失 L（每字节比特）：批大小 = {formula}；论文的指数 {paper:.2f} 在区间{inside[1]}"
            "（其系数针对 C4 上每 token 的 nat，只有指数可比）。"
        )
        said.append((en, zh))
        if law.exponent[0] <= 0 <= law.exponent[1]:
            en = (
                "The interval holds 0, so not even the direction is known and a plan will not use the law: add sizes that are "
                "farther apart, or seeds."
            )
            zh = "区间包含 0，连方向都不确定，规划不会使用它：请加入相差更大的尺寸，或更多种子。"
            said.append((en, zh))
    if (law := laws["tokens"]) is not None:
        low, high = law.exponent
        formula = f"{law.law.a:.3g} D^{law.law.b:.2f} ({low:.2f} .. {high:.2f})"
        said.append((f"Over the tokens: batch = {formula}.", f"随 token 数：批大小 = {formula}。"))
    elif laws["loss"] is not None:
        en = "Fewer than three token counts were seen, so there is no law over D: give batch.tokens."
        said.append((en, "token 数不足三种，得不到随 D 的规律：请给出 batch.tokens。"))
    return said


def _direction(law: _Law | None) -> Verdict:
    """Does the best batch grow as the loss falls?"""
    question = (
        "Does the best batch grow as the loss falls (exponent below 0)?",
        "最佳批大小是否随损失下降而增大（指数小于 0）？",
    )
    return Verdict(question, None if law is None else law.law.b, UNKNOWN if law is None else law.exponent, BELOW_ZERO)


def _goal(t: dict[str, Any]) -> Verdict:
    """Is the law's batch good enough at a size that it does not know?"""
    law = {"loss": ("law of loss", "损失规律"), "tokens": ("law of tokens", "token 规律")}[t["law"]]
    en = f"Does the batch of the {law[0]} cost {t['size']}, which was not fitted, at most {GOAL:g} % of its loss?"
    zh = f"{law[1]}给出的批大小，在未参与拟合的 {t['size']} 上，损失增量是否不超过 {GOAL:g} %？"
    return Verdict((en, zh), t["lost"], verdict.about(t["lost"], t["error"]), (-math.inf, GOAL), " %")


def _tests_said(
    cases: Sequence[_Case], tests: Sequence[dict[str, Any]], goals: Sequence[Verdict]
) -> list[tuple[str, str]]:
    if not any(case.check for case in cases):
        return [("No size tests the law: give batch.check.", "没有检验规律的尺寸：请给出 batch.check。")]
    said = []
    names = {"loss": ("the law of loss", "损失规律"), "tokens": ("the law of tokens", "token 规律")}
    for t, goal in zip(tests, goals, strict=True):
        size, (en, zh) = t["size"], names[t["law"]]
        numbers = f"{t['batch']:,.0f} ({t['low']:,.0f} .. {t['high']:,.0f})"
        en, zh = f"At {size}, which was not fitted, {en} says {numbers}", f"未参与拟合的 {size}：{zh}给出 {numbers}"
        if t["lost"] is None:
            said.append(
                (f"{en}, which was not measured: widen batch.batches.", f"{zh}，没有测过：请扩大 batch.batches。")
            )
            continue
        beside = "" if t["error"] is None else f" ± {t['error']:.2f}"
        ends = _ENDS[goal.answer]
        en = f"{en}: {t['lost']:+.2f} %{beside} against the best of its grid; the goal of {GOAL:g} % {ends[0]}."
        said.append((en, f"{zh}：比其网格最优 {t['lost']:+.2f} %{beside}；目标 {GOAL:g} % {ends[1]}。"))
    return said


_ENDS = {
    "yes": ("is met", "达到"), "no": ("is missed", "未达到"), "cannot tell": ("may be met or missed", "无法判断是否达到"),
}  # fmt: skip


# --- the picture

_WORDS: dict[str, Text] = {
    "batch": {"en": "batch, tokens", "zh": "批大小（token）"},
    "best": {"en": "best batch, tokens", "zh": "最佳批大小（token）"},
    "bpb": {"en": "bits per byte", "zh": "每字节比特"},
    "law": {"en": "law of loss", "zh": "损失规律"},
    "check": {"en": "not fitted", "zh": "未参与拟合"},
}


def _draw(
    figure: Figure, language: Language, cases: Sequence[_Case], sweeps: Mapping[_Case, Sweep], law: _Law | None
) -> None:
    """Left: a valley for each size, the law through their bottoms. Right: the best batch over the loss, with the law's interval."""
    word = plot.words(_WORDS, language)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for case, colour in zip(cases, plot.colours(len(cases)), strict=True):
        sweep, best = sweeps[case], sweeps[case].optimum
        name = f"{case.size}, {case.tokens:,}" + (f" ({word['check']})" if case.check else "")
        good = [(x, y) for x, y in zip(sweep.x, sweep.means, strict=True) if y < math.inf]
        line = "s--" if case.check else "o-"
        left.plot([x for x, _ in good], [y for _, y in good], line, color=colour, markersize=3, label=name)
        if best is None:
            continue
        left.plot(best.best, best.loss, "*", color=colour, markersize=13, markeredgecolor="k")
        low, high = sweep.closed
        bars = [[max(0.0, best.best - low)], [max(0.0, high - best.best)]]
        right.errorbar(
            [best.loss], [best.best], yerr=bars, fmt="s" if case.check else "*", color=colour, markersize=9, capsize=3
        )
    bottoms = [s.optimum.loss for s in sweeps.values() if s.optimum]
    if law is not None and bottoms:
        grid = np.geomspace(0.99 * min(bottoms), 1.01 * max(bottoms), 60)
        line_at = [law.law.predict(float(v)) for v in grid]
        left.plot(line_at, grid, "k--", linewidth=1, label=word["law"])
        right.plot(grid, line_at, "k--", linewidth=1)
        spans = np.array([law.interval(float(v)) for v in grid])
        right.fill_between(grid, spans[:, 0], spans[:, 1], color="0.85", zorder=0)
    tried = [x for sweep in sweeps.values() for x in sweep.x]
    left.set(xlabel=word["batch"], ylabel=word["bpb"])
    plot.log_ticks(left, tried)
    left.set_xlim(min(tried) / 1.3, 1.3 * max(tried))
    plot.keep_minima_in_view(left, [sweep.means for sweep in sweeps.values()])
    plot.legend_below(figure, left, 3)
    right.set(xlabel=word["bpb"], ylabel=word["best"], yscale="log", ylim=(min(tried) / 1.3, 1.3 * max(tried)))
    plot.set_font(figure, language)

"""WSD against cosine: one stable run with decays of several lengths and shapes, and cosine runs tuned for each horizon.

The claim (MiniCPM, arXiv:2404.06395, section 4): a run that keeps its rate and falls only at the end is as good as a cosine
made for exactly that length, and a tenth of the tokens is enough for the fall, a fortieth is not. So every decay branches off
the same stable run, and at each horizon the best of several cosine runs, each with another peak, is what it has to reach.

Only the schedule differs: every run sees the stable mixture to its end, in the same order, after the same number of warmup
steps. What it gives up: the stable run's own rate is not tuned, and the best of several cosines is lucky by some noise; both
favour cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from gangpao.sandbox.experiments import plot
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import Language, Outcome, Submit, Text, join
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.verdict import BELOW_ZERO, Answer, Verdict, decide
from gangpao.sandbox.trials.config import ExperimentTable
from gangpao.sandbox.trials.field_types import Positive, Seed, Share, Some, Tokens
from gangpao.sandbox.trials.trial import Lab, Result, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (0.1, 0.025)  # the share that the paper finds enough, and the one that it does not
MARGIN = 0.003  # of the loss: a share is enough that surely costs less than this against the best one


class ScheduleExperiment(ExperimentTable):
    """One stable run with decays of several shares and shapes, against cosine runs of the same lengths."""

    horizons: Some[Tokens] = Field(default=(1_000_000, 2_000_000, 4_000_000), description="Tokens.")
    decays: Some[Share] = (0.025, 0.05, 0.1, 0.2)
    shapes: Some[Literal["wsd", "wsd_linear"]] = ("wsd", "wsd_linear")
    cosine_rates: Some[Positive] = Field(default=(1.0,), description="Factors on lr for the cosine runs: a tuned one.")
    seeds: Some[Seed] = (0,)


class _Arm(NamedTuple):
    """What is compared: steps in all, schedule, share of the steps that decay (cosine: 0), factor on the rate (WSD: 1)."""

    steps: int
    kind: str
    share: float
    factor: float


@dataclass(frozen=True, slots=True)
class _Cell:
    """An arm with its mean loss over the seeds. before: held-out loss where its decay began."""

    arm: _Arm
    D: int
    bpb: float
    before: float | None
    losses: tuple[float, ...]
    flops: float


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for a horizon that is too short for a decay."""
    stables, arms = _grid(lab)
    specs = [*stables, *(spec for group in arms.values() for spec in group)]
    results = submit(specs)
    found = iter(results[len(stables) :])
    grouped = {arm: [next(found) for _ in group] for arm, group in arms.items()}
    curves = [r.curve for r in results[: len(stables)]]
    cells, excluded = _cells(grouped, curves)
    return _outcome(lab, cells, excluded, results, sum(r.flops for r in results[: len(stables)]))


def _grid(lab: Lab) -> tuple[list[Spec], dict[_Arm, list[Spec]]]:
    """A stable run for each seed, and for each arm a spec for each seed."""
    c, common = lab.config.table(ScheduleExperiment), lab.config.common
    horizons = sorted({lab.spec(tokens=tokens).steps for tokens in c.horizons})
    starts = {(h, share): h - _decay_steps(h, share, common.batch_tokens) for h in horizons for share in c.decays}
    warmup = round(common.warmup * horizons[-1])
    if min(starts.values()) <= warmup:
        raise ValueError(
            f"schedule.horizons: with the longest decay the shortest one begins to decay at step {min(starts.values())}, within "
            f"the {warmup} steps of warmup (common.warmup of the longest horizon): take longer horizons or a shorter warmup"
        )
    stables = [lab.stable_run(starts.values(), warmup, schedule="wsd", seed=seed) for seed in c.seeds]
    mixture = dict(lab.stable) or {name: float(shards.num_tokens) for name, shards in lab.built.train.items()}
    arms: dict[_Arm, list[Spec]] = {}
    for h in reversed(horizons):  # long trials first: the last ones to end are then short
        for factor in sorted(set(c.cosine_rates)):
            changes: dict[str, Any] = {"lr": common.lr * factor, "steps": h, "decay": 0.0, "warmup": warmup / h}
            arms[_Arm(h, "cosine", 0.0, factor)] = [lab.spec(schedule="cosine", seed=s, **changes) for s in c.seeds]
    for (h, share), start in starts.items():
        for shape in c.shapes:
            arm = [lab.branch(p, start, h - start, schedule=shape, mixture=mixture) for p in stables]
            arms[_Arm(h, shape, share, 1.0)] = arm
    return stables, arms


def _decay_steps(horizon: int, share: float, batch_tokens: int) -> int:
    steps = round(share * horizon)
    if not 1 <= steps < horizon:
        raise ValueError(
            f"schedule.decays: {share:g} of {horizon} steps is no decay: take a share below 1, and horizons of at least "
            f"{math.ceil(1 / max(share, 1e-9)) * batch_tokens:,} tokens"
        )
    return steps


def _cells(
    grouped: dict[_Arm, list[Result]], curves: Sequence[dict[int, float]]
) -> tuple[list[_Cell], list[tuple[str, str]]]:
    """Means over the seeds. An arm that lacks a seed is left out: its mean would be over other seeds than its neighbours'."""
    cells, excluded = [], []
    for arm, group in grouped.items():
        bad = [r for r in group if r.bpb is None]
        if bad:
            name = f"{arm.kind} {group[0].D:,} {arm.share or arm.factor:g} seed {bad[0].spec.seed}"
            excluded.append((name, f"{bad[0].state}: {bad[0].why}" if bad[0].why else bad[0].state))
            continue
        losses = tuple(r.bpb for r in group if r.bpb is not None)
        at = group[0].spec.parent_step * group[0].spec.batch_tokens
        befores = [curve[at] for curve in curves if at in curve] if arm.share else []
        before = sum(befores) / len(befores) if befores else None
        cells.append(
            _Cell(arm, group[0].D, sum(losses) / len(losses), before, losses, sum(r.flops for r in group) / len(group))
        )
    return cells, excluded


# --- what follows from the losses


def _judge(lab: Lab, cells: list[_Cell], noise: fit.Noise | None) -> dict[str, Any]:
    """For each horizon the best cosine, the best of each shape, and the smallest share that is enough."""
    wide = noise and noise.between(len(lab.config.table(ScheduleExperiment).seeds))
    horizons = []
    for steps in sorted({cell.arm.steps for cell in cells}):
        here = [cell for cell in cells if cell.arm.steps == steps]
        cosine = min((cell for cell in here if cell.arm.kind == "cosine"), key=lambda cell: cell.bpb, default=None)
        shapes = {}
        for shape in lab.config.table(ScheduleExperiment).shapes:
            of_shape = [cell for cell in here if cell.arm.kind == shape]
            if of_shape:
                best = min(of_shape, key=lambda cell: cell.bpb)
                above = {cell.arm.share: cell.bpb - best.bpb for cell in of_shape}
                shapes[shape] = {"best_share": best.arm.share, "bpb": best.bpb, "above_best": above}
        horizons.append(
            {
                "D": here[0].D,
                "cosine": cosine.bpb if cosine else None,
                "cosine_factor": cosine.arm.factor if cosine else None,
                "shapes": shapes,
                "best": min(((s["bpb"], name) for name, s in shapes.items()), default=(None, None))[1],
            }
        )
    told = {shape: told_apart(horizons, shape, wide) for shape in lab.config.table(ScheduleExperiment).shapes}
    enough = {shape: found.enough for shape, found in told.items()}
    return {"wide": wide, "horizons": horizons, "enough": enough, "margin": MARGIN, "told": told}


class Told(NamedTuple):
    """What each share of the decay costs against the best one, of the loss, in the mean over the horizons. noise: half the 95 %
    interval of such a difference; None where it is not known, or trials are missing. MARGIN is the most that is enough."""

    costs: dict[float, float]
    noise: float | None

    def answer(self, share: float) -> Answer:
        """Is a share enough?"""
        return decide(*verdict.about(self.costs.get(share), self.noise), (-math.inf, MARGIN))

    @property
    def enough(self) -> float | None:
        """The smallest share that surely is; what noise hides is not taken to be nothing."""
        return next((share for share in self.costs if self.answer(share) == "yes"), None)

    @property
    def noisy(self) -> bool:
        """Is the noise alone more than the margin, so that no share can be told to be enough?"""
        return self.noise is not None and self.noise >= MARGIN


def told_apart(horizons: Sequence[dict[str, Any]], shape: str, wide: float | None) -> Told:
    """From the horizons of an outcome, also as JSON has them."""
    here = [h["shapes"][shape] for h in horizons if shape in h["shapes"]]
    if wide is None or not here or len(here) < len(horizons):
        return Told({}, None)
    above = [{float(share): value for share, value in h["above_best"].items()} for h in here]
    shares = sorted(set.intersection(*(set(a) for a in above)))
    means = {share: sum(a[share] for a in above) / len(above) for share in shares}
    best = min(means.values(), default=0.0)
    loss = sum(h["bpb"] for h in here) / len(here) + best
    return Told({share: (mean - best) / loss for share, mean in means.items()}, wide / math.sqrt(len(here)) / loss)


def _outcome(
    lab: Lab, cells: list[_Cell], excluded: list[tuple[str, str]], results: list[Result], stable_flops: float
) -> Outcome:
    noise = fit.seed_noise([list(cell.losses) for cell in cells])
    judged = _judge(lab, cells, noise)
    cosines = {h["D"]: h["cosine"] for h in judged["horizons"]}
    rows = [
        {
            "D": cell.D,
            "schedule": cell.arm.kind,
            "decay": cell.arm.share or None,
            "factor": cell.arm.factor if cell.arm.kind == "cosine" else None,
            "before": cell.before,
            "bpb": cell.bpb,
            "difference": None if cosines[cell.D] is None else cell.bpb - cosines[cell.D],
            "noise": judged["wide"],
            "flops": cell.flops,
        }
        for cell in sorted(cells, key=lambda cell: (cell.D, cell.arm.kind, cell.arm.share, cell.arm.factor))
    ]
    cost = _cost(lab, cells, stable_flops)
    return Outcome(
        name="schedule",
        title={"en": "WSD against cosine", "zh": "WSD 与余弦学习率的比较"},
        columns=_COLUMNS,
        rows=rows,
        verdicts=[*(v for h in judged["horizons"] if (v := _against(lab, h, judged["wide"]))), *_asked(lab, judged)],
        verdict=_verdict(lab, judged, cost),
        draw=lambda figure, language: _draw(figure, language, lab, cells, judged),
        facts={
            "conditions": conditions(lab),
            "noise": noise and noise.sigma,
            "wide": judged["wide"],
            "seeds": len(lab.config.table(ScheduleExperiment).seeds),
            "horizons": judged["horizons"],
            "enough": judged["enough"],
            "margin": judged["margin"],
            "cost": cost,
        },
        excluded=excluded,
        results=results,
    )


_COLUMNS: dict[str, Text] = {
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "schedule": {"en": "schedule", "zh": "学习率曲线"},
    "decay": {"en": "decay share", "zh": "退火比例"},
    "factor": {"en": "rate ×", "zh": "学习率倍数"},
    "before": {"en": "bpb before decay", "zh": "退火前 bpb"},
    "bpb": {"en": "bpb", "zh": "bpb"},
    "difference": {"en": "to the best cosine", "zh": "与最佳余弦之差"},
    "noise": {"en": "noise of a difference (95 %)", "zh": "差的噪声（95 %）"},
    "flops": {"en": "FLOPs", "zh": "FLOPs"},
}


def _cost(lab: Lab, cells: list[_Cell], stable_flops: float) -> dict[str, float]:
    """FLOPs of one stable run with a decay of the usual share at every horizon, and of one cosine run for each."""
    seeds, shape = len(lab.config.table(ScheduleExperiment).seeds), lab.config.table(ScheduleExperiment).shapes[0]
    share = _usual(lab)
    decays = sum(cell.flops for cell in cells if (cell.arm.kind, cell.arm.share) == (shape, share))
    cosines = {cell.D: cell.flops for cell in cells if cell.arm.kind == "cosine"}
    return {"wsd": stable_flops / seeds + decays, "cosine": sum(cosines.values())}


def _usual(lab: Lab) -> float:
    """The tried share that is nearest to the sandbox's own."""
    return min(lab.config.table(ScheduleExperiment).decays, key=lambda share: abs(share - lab.config.common.decay))


def _against(lab: Lab, h: dict[str, Any], wide: float | None) -> Verdict | None:
    """Does WSD with the usual share end below the best cosine of a horizon? None where trials are missing."""
    share, shape = _usual(lab), lab.config.table(ScheduleExperiment).shapes[0]
    found = h["shapes"].get(shape, {})
    above = found.get("above_best", {}).get(share)
    if above is None or h["cosine"] is None:
        return None
    d = found["bpb"] + above - h["cosine"]
    en = f"At {h['D']:,} tokens, does {shape} with a decay of {share:.3g} end at or below the best cosine?"
    zh = f"{h['D']:,} token 处，{shape}（退火比例 {share:.3g}）是否不高于最佳余弦？"
    return Verdict((en, zh), d, verdict.about(d, wide), BELOW_ZERO)


def _asked(lab: Lab, judged: dict[str, Any]) -> list[Verdict]:
    """Is a share of the decay enough? For every shape and share that was tried."""
    out = []
    for shape in lab.config.table(ScheduleExperiment).shapes:
        told = judged["told"][shape]
        for share in sorted(set(lab.config.table(ScheduleExperiment).decays)):
            cost, percent = told.costs.get(share), None if told.noise is None else 100 * told.noise
            value = None if cost is None else 100 * cost
            en = f"{shape}: does a decay of {share:.1%} cost at most {MARGIN:.1%} of the loss against the best share?"
            zh = f"{shape}：退火比例 {share:.1%} 与最佳比例相比，损失增量是否不超过 {MARGIN:.1%}？"
            out.append(Verdict((en, zh), value, verdict.about(value, percent), (-math.inf, 100 * MARGIN), " %"))
    return out


def _verdict(lab: Lab, judged: dict[str, Any], cost: dict[str, float]) -> Text:
    said = [*_ends(lab, judged), *_shares(lab, judged)]
    if cost["wsd"] and cost["cosine"]:
        ratio = cost["cosine"] / cost["wsd"]
        said.append(
            (
                f"One stable run with a decay for each horizon costs {cost['wsd']:.3g} FLOPs, one cosine run for each "
                f"{cost['cosine']:.3g}: {ratio:.2f} times as much, before any cosine is tuned.",
                f"一条稳定段加每个长度各一次退火共 {cost['wsd']:.3g} FLOPs，每个长度各跑一条余弦共 {cost['cosine']:.3g}："
                f"是前者的 {ratio:.2f} 倍，还没有算调余弦的开销。",
            )
        )
    if judged["wide"] is None:
        said.append(
            (
                "With one seed the noise between seeds is not known, so no difference is called real and no share sufficient: "
                "give schedule.seeds two values or more.",
                "只有一个种子，种子间的噪声未知，因此不判定任何差异为真，也不判定哪个比例足够：请给 schedule.seeds 两个以上的值。",
            )
        )
    return join(said)


def _ends(lab: Lab, judged: dict[str, Any]) -> list[tuple[str, str]]:
    """Where WSD with the usual share ends against the best cosine, horizon by horizon."""
    share, shape, wide = _usual(lab), lab.config.table(ScheduleExperiment).shapes[0], judged["wide"]
    said = []
    for h in judged["horizons"]:
        found = h["shapes"].get(shape, {})
        above = found.get("above_best", {}).get(share)
        if above is None or h["cosine"] is None:
            said.append(
                (
                    f"At {h['D']:,} tokens there is nothing to compare: trials are missing.",
                    f"{h['D']:,} token 处缺少试验，无法比较。",
                )
            )
            continue
        bpb = found["bpb"] + above
        judged_here = _against(lab, h, wide)
        assert judged_here is not None
        d = bpb - h["cosine"]
        en, zh = _call(judged_here.answer, wide)
        said.append(
            (
                f"At {h['D']:,} tokens {shape} with {share:.3g} of them for the decay ends at {bpb:.4f} bits per byte, the best "
                f"cosine (rate × {h['cosine_factor']:g}) at {h['cosine']:.4f}: {d:+.4f}{en}.",
                f"{h['D']:,} token 处，{shape}（退火比例 {share:.3g}）为每字节 {bpb:.4f} 比特，最佳余弦"
                f"（学习率 × {h['cosine_factor']:g}）为 {h['cosine']:.4f}：相差 {d:+.4f}{zh}。",
            )
        )
    factors, used = (
        sorted(set(lab.config.table(ScheduleExperiment).cosine_rates)),
        {h["cosine_factor"] for h in judged["horizons"]},
    )
    if len(factors) == 1:
        said.append(
            (
                "The cosine runs had one rate only and are not tuned: add schedule.cosine_rates.",
                "余弦只试了一个学习率，未经调优：请增加 schedule.cosine_rates。",
            )
        )
    elif used & {factors[0], factors[-1]}:
        low, high = factors[0] in used, factors[-1] in used
        more = [f"{factors[0] ** 2 / factors[1]:.3g}"] * low + [f"{factors[-1] ** 2 / factors[-2]:.3g}"] * high
        said.append(
            (
                f"A best cosine lies at the edge of the rates, so a better one may exist: add {', '.join(more)} to "
                "schedule.cosine_rates.",
                f"有的最佳余弦位于所试学习率的边缘，可能还有更好的：请在 schedule.cosine_rates 中加入 {'、'.join(more)}。",
            )
        )
    return said


def _call(answer: Answer, wide: float | None) -> tuple[str, str]:
    if wide is None:
        return "", ""
    en, zh = {
        "yes": ("better than cosine", "优于余弦"), "no": ("worse than cosine", "不如余弦"),
        "cannot tell": ("no difference beyond noise, so it cannot tell", "没有超出噪声的差异，无法判断"),
    }[answer]  # fmt: skip
    return f" ± {wide:.4f}, {en}", f" ± {wide:.4f}，{zh}"


def _shares(lab: Lab, judged: dict[str, Any]) -> list[tuple[str, str]]:
    """Which share of decay is enough, for each shape, and what becomes of the paper's two."""
    said: list[tuple[str, str]] = []
    for shape in lab.config.table(ScheduleExperiment).shapes:
        here = [h["shapes"][shape] for h in judged["horizons"] if shape in h["shapes"]]
        for share in PAPER:
            above = [s["above_best"][share] for s in here if share in s["above_best"]]
            if not above:
                continue
            answer = verdict.WORDS[judged["told"][shape].answer(share)]
            within, zh = f"; enough: {answer[0]}", f"；是否足够：{answer[1]}"
            said.append(
                (
                    f"{shape}: a decay of {share:.1%} is at most {max(above):.4f} above the best share{within}.",
                    f"{shape}：退火比例 {share:.1%} 比最佳比例最多高 {max(above):.4f}{zh}。",
                )
            )
        enough = judged["enough"][shape]
        said += _enough_said(shape, judged["told"][shape], len(lab.config.table(ScheduleExperiment).seeds))
        largest = max(lab.config.table(ScheduleExperiment).decays)
        if here and all(s["best_share"] == largest for s in here) and enough in (None, largest):
            said.append(
                (
                    f"{shape}: the longest decay, {largest:.1%}, was the best everywhere, so a longer one may be better still: "
                    f"add {min(0.8, 2 * largest):g} to schedule.decays.",
                    f"{shape}：最长的退火 {largest:.1%} 处处最好，更长的也许更好："
                    f"请在 schedule.decays 中加入 {min(0.8, 2 * largest):g}。",
                )
            )
    return said


def _enough_said(shape: str, told: Told, seeds: int) -> list[tuple[str, str]]:
    if told.enough is not None:
        en = f"{shape}: the smallest share that surely costs less than {MARGIN:.1%} of the loss, in the mean over the horizons, is"
        zh = f"{shape}：对各长度取平均，可以确定损失增量小于 {MARGIN:.1%} 的最小比例是"
        return [(f"{en} {told.enough:.1%}.", f"{zh} {told.enough:.1%}。")]
    if told.noise is None or not told.noisy:
        return []
    more = math.ceil(seeds * (told.noise / MARGIN) ** 2) + 1
    en = (
        f"{shape}: the noise between seeds, {told.noise:.2%} of the loss, is too large to tell which share costs less than "
        f"{MARGIN:.1%}, so none is called enough; more seeds would help, about {more}."
    )
    zh = (
        f"{shape}：种子间的噪声为损失的 {told.noise:.2%}，太大，无法分辨哪个比例的代价小于 {MARGIN:.1%}，"
        f"因此不判定任何比例足够；增加种子会有帮助，约需 {more} 个。"
    )
    return [(en, zh)]


# --- the picture

_WORDS: dict[str, Text] = {
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "bpb": {"en": "bits per byte", "zh": "每字节比特"},
    "share": {"en": "share of the tokens that decay", "zh": "退火所占 token 比例"},
    "above": {"en": "bpb above the best cosine", "zh": "高出最佳余弦的 bpb"},
    "cosine": {"en": "best cosine", "zh": "最佳余弦"},
    "before": {"en": "stable, before the decay", "zh": "稳定段，退火之前"},
    "noise": {"en": "noise (95 %)", "zh": "噪声（95 %）"},
}


def _draw(figure: Figure, language: Language, lab: Lab, cells: list[_Cell], judged: dict[str, Any]) -> None:
    """Left: loss against the horizon. Right: what each share of decay costs against the best cosine."""
    word = plot.words(_WORDS, language)
    left, right = figure.subplots(1, 2)
    horizons = judged["horizons"]
    cosine = {h["D"]: h["cosine"] for h in horizons if h["cosine"] is not None}
    left.plot(list(cosine), list(cosine.values()), "k^--", label=word["cosine"])
    share = _usual(lab)
    for i, shape in enumerate(lab.config.table(ScheduleExperiment).shapes):
        here = sorted((c.D, c.bpb, c.before) for c in cells if (c.arm.kind, c.arm.share) == (shape, share))
        left.plot([d for d, _, _ in here], [b for _, b, _ in here], f"C{i}o-", label=f"{shape} {share:.3g}")
        if i == 0 and here and all(b is not None for _, _, b in here):
            left.plot([d for d, _, _ in here], [b for _, _, b in here if b is not None], "C7.:", label=word["before"])
        for h, marker in zip(horizons, "osDv^<>P*X" * len(horizons), strict=False):
            if h["D"] not in cosine:
                continue
            line = sorted((c.arm.share, c.bpb - cosine[h["D"]]) for c in cells if (c.D, c.arm.kind) == (h["D"], shape))
            right.plot(
                [s for s, _ in line], [b for _, b in line], f"C{i}{marker}-", label=f"{shape} {h['D']:,}", alpha=0.8
            )
    if judged["wide"] is not None:
        right.axhspan(-judged["wide"], judged["wide"], color="0.85", label=word["noise"])
    right.axhline(0.0, color="k", linewidth=0.8)
    for axes, x, y in ((left, "D", "bpb"), (right, "share", "above")):
        axes.set_xscale("log")
        axes.set(xlabel=word[x], ylabel=word[y])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    shares = sorted(set(lab.config.table(ScheduleExperiment).decays))
    right.set_xticks(shares, [f"{s:g}" for s in shares])
    right.minorticks_off()
    plot.set_font(figure, language)

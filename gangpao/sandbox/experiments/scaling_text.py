"""What a scaling study found, as a table, sentences and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gangpao.sandbox.experiments import plot
from gangpao.sandbox.experiments.chinese import chinese
from gangpao.sandbox.experiments.outcome import Language, Text, listed
from gangpao.sandbox.experiments.scaling_study import Fitted, Study, points_of, size_of
from gangpao.sandbox.laws import doubts, fit, verdict
from gangpao.sandbox.laws.coupled import CoupledFit
from gangpao.sandbox.laws.verdict import Verdict
from gangpao.sandbox.trials.trial import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS: dict[str, Text] = {
    "kind": {"en": "run", "zh": "训练"},
    "size": {"en": "size", "zh": "尺寸"},
    "N": {"en": "N", "zh": "N"},
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "bpb": {"en": "bpb", "zh": "bpb"},
    "law": {"en": "the law says", "zh": "规律给出"},
    "error": {"en": "law's error, %", "zh": "规律误差（%）"},
    "interval": {"en": "95 % interval", "zh": "95 % 区间"},
    "flops": {"en": "FLOPs", "zh": "FLOPs"},
}
# Trials, and laws by the trials that they come from.
_SHORT: dict[str, Text] = {
    "wsd": {"en": "wsd", "zh": "退火"},
    "coupled": {"en": "coupled", "zh": "相互制约"},
    "cosine": {"en": "cosine", "zh": "余弦"},
    "equal": {"en": "equal", "zh": "同等开销余弦"},
}


def rows(study: Study, fits: dict[str, Fitted], tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every run with what the law says of it, then the targets."""
    fitted = [*_rows("wsd", study.branch, fits["wsd"]), *_rows("cosine", study.cosine, fits.get("cosine"))]
    return fitted + [_target_row(t) for t in tests]


def _rows(kind: str, results: Sequence[Result], fitted: Fitted | None) -> list[dict[str, Any]]:
    rows = []
    for r in sorted(results, key=lambda r: (r.N, r.D, r.spec.seed)):
        law = fitted.law.predict(r.N, r.D) if fitted and fitted.law else None
        error = 100 * (law / r.bpb - 1) if law is not None and r.bpb is not None else None
        row = {"kind": _SHORT[kind], "size": size_of(r), "N": r.N, "D": r.D, "bpb": r.bpb}
        rows.append({**row, "law": law, "error": error, "flops": r.flops})
    return rows


def _target_row(t: dict[str, Any]) -> dict[str, Any]:
    law = _SHORT[t["law"]]
    kind: Text = {"en": f"target, law {law['en']}", "zh": f"目标（{law['zh']}规律）"}
    row = {"kind": kind, "bpb": t["actual"], "law": t["predicted"]}
    interval = f"{t['low']:.4f} .. {t['high']:.4f}"
    return {**row, "interval": interval, **{key: t[key] for key in ("size", "N", "D", "error", "flops")}}


# --- what is said

GOAL = 1.0  # percent that a prediction may miss by


def verdicts(fits: dict[str, Fitted], tests: list[dict[str, Any]], noise: fit.Noise | None) -> list[Verdict]:
    """Of the law that a plan goes by: its targets, its floor, its best D / N."""
    name = "coupled" if "coupled" in fits else "wsd"
    out = []
    for t in tests:
        if t["law"] != name:
            continue
        wide = None if noise is None or t["actual"] is None else 100 * noise.wide() * t["predicted"] / t["actual"] ** 2
        en = f"Is {t['size']} after {t['D']:,} tokens predicted within {GOAL:g} %?"
        zh = f"{t['size']} 训练 {t['D']:,} token 后的预测误差是否在 {GOAL:g} % 以内？"
        out.append(Verdict((en, zh), t["error"], verdict.about(t["error"], wide), (-GOAL, GOAL), " %"))
    law = fits[name].law
    return [*out, *(doubts.verdicts(law) if law else [])]


def told(study: Study, fits: dict[str, Fitted], tests: list[dict[str, Any]], noise: fit.Noise | None) -> Text:
    """A list: what was predicted and came, then the laws, then what it cost."""
    return listed([*_tests_said(tests, noise), *_law_said(fits, noise), *_cost_said(study, fits)])


_NAMES = {
    "wsd": ("Decays of stable runs", "由稳定段的退火"),
    "coupled": ("Terms that limit each other", "两项相互制约的规律"),
    "total": ("With N of all parameters", "若 N 取全部参数"),
    "cosine": ("All cosine runs", "由全部余弦训练"),
    "equal": ("Cosine runs of equal cost", "由同等开销的余弦训练"),
}


def _law_said(fits: dict[str, Fitted], noise: fit.Noise | None) -> list[tuple[str, str]]:
    said = []
    for name, f in fits.items():
        en, zh = _NAMES[name]
        if f.law is None:
            said.append((f"{en} give no law: {f.why}.", f"{zh}得不到规律：{chinese(f.why)}。"))
            continue
        if isinstance(f.law, CoupledFit):
            said += [_coupled_said(f.law), *doubts.of_law(f.law)]
            continue
        law, C = f.law.law, max(6 * p.N * p.D for p in f.law.points)
        formula = f"L = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}"
        ranges = ", ".join(
            f"{key} {low:.3f} .. {high:.3f}" for key in ("alpha", "beta") for low, high in [f.law.bounds(key)]
        )
        ratio = "{:.3g} ({:.3g} .. {:.3g})".format(law.ratio(C), *f.law.ratio_interval(C))
        at, bound = f"6ND = {C:.3g}", ", ".join(f.law.undetermined)
        en = f"{en} ({len(f.law.points)} points): {formula}, 95 % intervals {ranges}; the best D/N at {at} is {ratio}."
        zh = f"{zh}（{len(f.law.points)} 个点）：{formula}，95 % 区间 {ranges}；{at} 时最优 D/N 为 {ratio}。"
        en += f" The points do not determine {bound}: run a wider range." if bound else ""
        said.append((en, zh + (f"这些点定不出 {bound}：请扩大范围。" if bound else "")))
        said += doubts.of_law(f.law) if name == "wsd" else []
    said += _held_out_said(fits["wsd"])
    if noise is None:
        en = "One seed: the noise between seeds is not known, and the intervals come from the scatter around the law."
        return [*said, (en, "只有一个种子：种子间噪声未知，区间来自各点对规律的离散。")]
    return [
        *said,
        (f"Noise between seeds: {noise.sigma:.4f} bits per byte.", f"种子间噪声：每字节 {noise.sigma:.4f} 比特。"),
    ]


def _coupled_said(law: CoupledFit) -> tuple[str, str]:
    (en, zh), known = _NAMES["coupled"], law.floor
    ranges = ", ".join(
        f"{k} {low:.3f} .. {high:.3f}" for k in ("E", "p", "alpha", "beta") for low, high in [law.bounds(k)]
    )
    prior = f"{known[0]:g} ± {known[1]:g}" if known else "0 .. min"
    en = f"{en} ({len(law.points)} points): 95 % intervals {ranges}, with E taken to be {prior} before."
    return en, f"{zh}（{len(law.points)} 个点）：95 % 区间 {ranges}；事先假定 E 为 {prior}。"


def _held_out_said(f: Fitted) -> list[tuple[str, str]]:
    """Evidence that does not rest on the intervals, where there are sizes enough."""
    try:
        h = fit.held_out(points_of(f.results))
    except ValueError:
        return []
    worst, inside = f"{100 * h.worst:.2f} %", f"{h.inside:.0%}"
    en = f"Fitted without the largest size, the law misses it by at most {worst}; {inside} of its points lie in the intervals."
    return [(en, f"不用最大尺寸拟合时，规律对它的误差最大 {worst}，其中 {inside} 的点落在区间内。")]


def _cost_said(study: Study, fits: dict[str, Fitted]) -> list[tuple[str, str]]:
    one, each = study.flops, study.separate_flops
    en = f"Stable runs and decays cost {one:.3g} FLOPs, a run for every point {each:.3g}: {each / one:.2f} times as much."
    zh = f"稳定段与退火共 {one:.3g} FLOPs，每个点单独训练共 {each:.3g}：是前者的 {each / one:.2f} 倍。"
    said = [(en, zh)]
    if "equal" in fits:
        f = fits["equal"]
        tokens: dict[str, list[str]] = {}
        for r in f.results:
            tokens.setdefault(size_of(r), []).append(f"{r.D:,}")
        which, n = "; ".join(f"{size} {' '.join(counts)}" for size, counts in tokens.items()), len(f.results)
        en = f"Of the cosine runs, {n} ({f.flops:.3g} FLOPs) cost no more and determine a law best: {which}."
        said.append((en, f"余弦训练中取 {n} 个（{f.flops:.3g} FLOPs），开销不超过前者且最能确定规律：{which}。"))
    return said


def _tests_said(tests: list[dict[str, Any]], noise: fit.Noise | None) -> list[tuple[str, str]]:
    if not tests:
        en = "No larger run was predicted: name scaling.targets to test the law."
        return [(en, "没有预测更大的训练：请给出 scaling.targets 来检验规律。")]
    said = []
    for t in tests:
        en, zh = _NAMES[t["law"]]
        where = f"{t['size']} {t['D']:,}"
        if t["actual"] is None:
            said.append((f"The target {where} did not end well.", f"目标 {where} 没有正常结束。"))
            continue
        numbers = f"{t['predicted']:.4f} ({t['low']:.4f} .. {t['high']:.4f})"
        inside = ("inside", "之内") if t["inside"] else ("outside", "之外")
        late = ("", "") if t["before"] else (" Said after the run, it is no prediction.", "在训练之后给出，不算预测。")
        share, error = f"{t['study_share']:.1%}", f"{t['error']:+.2f} %"
        under = _under(t)
        en, zh = en + under[0], zh + under[1]
        en = f"Target {where}, {en}: predicted {numbers}, came {t['actual']:.4f}, error {error}, {inside[0]} the interval;"
        zh = f"目标 {where}，{zh}：预测 {numbers}，实际 {t['actual']:.4f}，误差 {error}，在区间{inside[1]}；"
        en = f"{en} the study cost {share} of this run.{late[0]}"
        said.append((en, f"{zh}研究的开销为该训练的 {share}。{late[1]}"))
    if noise is not None:
        two = f"{noise.wide():.4f}"
        en = f"A target is one run, so {two} of a difference may be its seed."
        said.append((en, f"每个目标只训练一次，{two} 的差异可能来自种子。"))
    return said


def _under(t: dict[str, Any]) -> tuple[str, str]:
    """When a prediction was made, and of the law with a floor under which."""
    en, zh = f" (said {t['said']}", f"（{t['said']} 给出"
    if t["law"] == "coupled":
        known = t["floor"]
        en += f" with E taken to be {known[0]:g} ± {known[1]:g}" if known else " under a floor that was not written"
        zh += f"，事先假定 E 为 {known[0]:g} ± {known[1]:g}" if known else "，未写明当时的下限"
    return f"{en})", f"{zh}）"


# --- the picture

_WORDS: dict[str, Text] = {
    "D": {"en": "D, tokens", "zh": "D（token）"},
    "bpb": {"en": "bits per byte", "zh": "每字节比特"},
    "predicted": {"en": "predicted bits per byte", "zh": "预测的每字节比特"},
    "actual": {"en": "actual bits per byte", "zh": "实际的每字节比特"},
    "came": {"en": "came", "zh": "实际"},
    "target": {"en": "target", "zh": "目标"},
    "law": {"en": "Lines: law", "zh": "曲线：规律"},
}
_MARKS = (("wsd", "o"), ("coupled", "D"), ("cosine", "x"), ("equal", "+"))


def draw(figure: Figure, language: Language, fits: dict[str, Fitted], tests: list[dict[str, Any]]) -> None:
    """Left: loss against D for each size with the law that a plan goes by, dashed for the targets. Right: what every law says of
    the targets with its 95 % intervals and what came; without targets, what the law says of its own points."""
    word = plot.words(_WORDS | _SHORT, language)
    left, right = figure.subplots(1, 2)
    name = "coupled" if "coupled" in fits else "wsd"
    law, results = fits[name].law, fits[name].results
    assert law is not None
    ends = [min(r.D for r in results) / 1.3, 1.3 * max([r.D for r in results] + [t["D"] for t in tests])]
    grid = np.geomspace(ends[0], ends[1], 50)
    sizes = [(r.N, size_of(r)) for r in {r.N: r for r in sorted(results, key=lambda r: r.N)}.values()]
    for i, (N, size) in enumerate(sizes):
        here = [r for r in results if r.N == N]
        left.plot([r.D for r in here], [r.bpb for r in here if r.bpb is not None], f"C{i}o")
        left.plot(grid, [law.predict(N, float(D)) for D in grid], f"C{i}-", label=f"{size}  N = {N:,}")
    mine = sorted((t for t in tests if t["law"] == name), key=lambda t: int(t["N"]))
    for t, shade in zip(mine, plot.colours(len(mine)), strict=True):
        label = f"{word['target']} {t['size']}"
        left.plot(grid, [law.predict(t["N"], float(D)) for D in grid], "--", color=shade, linewidth=1, label=label)
        if t["actual"] is not None:
            left.plot(t["D"], t["actual"], "k*", markersize=10)
    left.set(xlabel=word["D"], ylabel=word["bpb"], xscale="log", title=f"{word['law']} {word[name]}")
    left.legend(fontsize=8)
    done = [t for t in tests if t["actual"] is not None]
    if done:
        _draw_targets(right, done, word)
    else:
        said = [law.predict(r.N, r.D) for r in results]
        right.plot(said, [r.bpb for r in results], "C7.")
        right.plot([min(said), max(said)], [min(said), max(said)], "k:", linewidth=0.8)
        right.set(xlabel=word["predicted"], ylabel=word["actual"])
    plot.set_font(figure, language)


def _draw_targets(axes: Axes, done: Sequence[dict[str, Any]], word: dict[str, str]) -> None:
    """A column for each target: an interval for each law, and a star for what came."""
    sizes = list(dict.fromkeys((t["size"], t["D"], t["actual"]) for t in sorted(done, key=lambda t: int(t["N"]))))
    laws = [(name, mark) for name, mark in _MARKS if any(t["law"] == name for t in done)]
    for k, (name, mark) in enumerate(laws):
        mine = [t for t in done if t["law"] == name]
        x = [sizes.index((t["size"], t["D"], t["actual"])) + 0.13 * (k - (len(laws) - 1) / 2) for t in mine]
        spread = [[t["predicted"] - t["low"] for t in mine], [t["high"] - t["predicted"] for t in mine]]
        y = [t["predicted"] for t in mine]
        axes.errorbar(x, y, yerr=np.maximum(spread, 0), fmt=mark, color=f"C{k}", capsize=2, label=word[name])
    x = [i + 0.13 * (len(laws) + 1) / 2 for i in range(len(sizes))]
    axes.plot(x, [actual for _, _, actual in sizes], "k*", markersize=11, label=word["came"])
    axes.set_xticks(range(len(sizes)), [f"{size}\n{D / 1e6:.3g} M" for size, D, _ in sizes])
    axes.set(ylabel=word["bpb"])
    axes.legend(fontsize=8)

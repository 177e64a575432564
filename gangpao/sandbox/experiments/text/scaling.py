"""What a scaling study found, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gangpao.sandbox.bilingual import Language, Text, listed
from gangpao.sandbox.experiments.text import plot
from gangpao.sandbox.experiments.text.page import Facts, Words
from gangpao.sandbox.reasons import Reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = Text("The law of loss over size and tokens", "损失随规模与 token 数的规律")
_COLUMNS = {
    "kind": Text("run", "训练"),
    "size": Text("size", "尺寸"),
    "N": Text("N", "N"),
    "D": Text("D, tokens", "D（token）"),
    "bpb": Text("bpb", "bpb"),
    "law": Text("the law says", "规律给出"),
    "error": Text("law's error, %", "规律误差（%）"),
    "interval": Text("95 % interval", "95 % 区间"),
    "flops": Text("FLOPs", "FLOPs"),
}
# Trials, and laws by the trials that they come from.
_SHORT = {
    "wsd": Text("wsd", "退火"),
    "coupled": Text("coupled", "相互制约"),
    "cosine": Text("cosine", "余弦"),
    "equal": Text("equal", "同等开销余弦"),
}
_NAMES = {
    "wsd": Text("Decays of stable runs", "由稳定段的退火"),
    "coupled": Text("Terms that limit each other", "两项相互制约的规律"),
    "total": Text("With N of all parameters", "若 N 取全部参数"),
    "cosine": Text("All cosine runs", "由全部余弦训练"),
    "equal": Text("Cosine runs of equal cost", "由同等开销的余弦训练"),
}
_QUESTIONS = {
    "predicted": Text(
        "Is {size} after {D:,} tokens predicted within {goal:g} %?",
        "{size} 训练 {D:,} token 后的预测误差是否在 {goal:g} % 以内？",
    ),
    "floor": Text(
        "Do the points tell the loss E that no model gets below (E above 0)?",
        "这些点能否定出任何模型都不会低于的损失 E（E 大于 0）？",
    ),
    "ratio": Text(
        "At 6ND = {C:.3g}, is the best D/N above Chinchilla's {chinchilla:g}?",
        "6ND = {C:.3g} 时，最优 D/N 是否大于 Chinchilla 的 {chinchilla:g}？",
    ),
}


def asked(verdict: Facts) -> Text:
    """The question of a verdict."""
    return _QUESTIONS[verdict["asks"]].fill(verdict["about"])


def words(facts: Facts) -> Words:
    """A list of sentences: what was predicted and came, then the laws, then what it cost. Every run, then the targets."""
    rows = [{**run, "kind": _SHORT[run["kind"]]} for run in facts["runs"]] + [_target_row(t) for t in facts["targets"]]
    said = listed([*_tests_said(facts), *_laws_said(facts), *_cost_said(facts)])
    return Words(_TITLE, _COLUMNS, rows, said, lambda figure, language: draw(figure, language, facts))


def _target_row(t: Facts) -> dict[str, Any]:
    law = _SHORT[t["law"]]
    kind = Text(f"target, law {law.en}", f"目标（{law.zh}规律）")
    row = {"kind": kind, "bpb": t["actual"], "law": t["predicted"]}
    interval = f"{t['low']:.4f} .. {t['high']:.4f}"
    return {**row, "interval": interval, **{key: t[key] for key in ("size", "N", "D", "error", "flops")}}


# --- the laws


def _laws_said(facts: Facts) -> list[Text]:
    said = []
    for name, law in facts["laws"].items():
        if "reason" in law:
            why, of = Reason.model_validate(law["reason"]).text(), _NAMES[name]
            said.append(Text(f"{of.en} give no law: {why.en}.", f"{of.zh}得不到规律：{why.zh}。"))
            continue
        said.append(_coupled_said(law) if name == "coupled" else _additive_said(name, law))
        said += [Reason.model_validate(doubt).text() for doubt in law.get("doubts", ())]
    return [*said, *_held_out_said(facts["held_out"]), _noise_said(facts["noise"])]


def _additive_said(name: str, law: Facts) -> Text:
    of, best = _NAMES[name], law["optimum"]
    formula = f"L = {law['E']:.4g} + {law['A']:.4g} / N^{law['alpha']:.3f} + {law['B']:.4g} / D^{law['beta']:.3f}"
    ratio = "{} ({} .. {})".format(*(_shown(best[key]) for key in ("ratio", "low", "high")))
    ranges, at = _ranges(law, ("alpha", "beta")), f"6ND = {best['C']:.3g}"
    en = f"{of.en} ({law['points']} points): {formula}, 95 % intervals {ranges}; the best D/N at {at} is {ratio}."
    zh = f"{of.zh}（{law['points']} 个点）：{formula}，95 % 区间 {ranges}；{at} 时最优 D/N 为 {ratio}。"
    if unknown := ", ".join(law["undetermined"]):
        en += f" The points do not determine {unknown}: run a wider range."
        zh += f"这些点定不出 {unknown}：请扩大范围。"
    return Text(en, zh)


def _shown(value: float | None) -> str:
    return "inf" if value is None else f"{value:.3g}"


def _ranges(law: Facts, keys: Sequence[str]) -> str:
    return ", ".join("{} {:.3f} .. {:.3f}".format(key, *law["bounds"][key]) for key in keys)


def _coupled_said(law: Facts) -> Text:
    of, floor = _NAMES["coupled"], law["floor"]
    ranges = _ranges(law, ("E", "p", "alpha", "beta"))
    prior = f"{floor[0]:g} ± {floor[1]:g}" if floor else "0 .. min"
    en = f"{of.en} ({law['points']} points): 95 % intervals {ranges}, with E taken to be {prior} before."
    return Text(en, f"{of.zh}（{law['points']} 个点）：95 % 区间 {ranges}；事先假定 E 为 {prior}。")


def _held_out_said(h: Facts | None) -> list[Text]:
    if h is None:
        return []
    worst, inside = f"{100 * h['worst']:.2f} %", f"{h['inside']:.0%}"
    en = f"Fitted without the largest size, the law misses it by at most {worst}; {inside} of its points lie in the intervals."
    return [Text(en, f"不用最大尺寸拟合时，规律对它的误差最大 {worst}，其中 {inside} 的点落在区间内。")]


def _noise_said(noise: float | None) -> Text:
    if noise is None:
        en = "One seed: the noise between seeds is not known, and the intervals come from the scatter around the law."
        return Text(en, "只有一个种子：种子间噪声未知，区间来自各点对规律的离散。")
    return Text(f"Noise between seeds: {noise:.4f} bits per byte.", f"种子间噪声：每字节 {noise:.4f} 比特。")


def _cost_said(facts: Facts) -> list[Text]:
    flops = facts["flops"]
    one, each = flops["wsd"], flops["separate"]
    en = f"Stable runs and decays cost {one:.3g} FLOPs, a run for every point {each:.3g}: {each / one:.2f} times as much."
    zh = f"稳定段与退火共 {one:.3g} FLOPs，每个点单独训练共 {each:.3g}：是前者的 {each / one:.2f} 倍。"
    said = [Text(en, zh)]
    if facts["equal"] is not None:
        tokens: dict[str, list[str]] = {}
        for size, D in facts["equal"]:
            tokens.setdefault(size, []).append(f"{D:,}")
        which = "; ".join(f"{size} {' '.join(counts)}" for size, counts in tokens.items())
        n, cost = len(facts["equal"]), f"{flops['equal']:.3g}"
        en = f"Of the cosine runs, {n} ({cost} FLOPs) cost no more and determine a law best: {which}."
        said.append(Text(en, f"余弦训练中取 {n} 个（{cost} FLOPs），开销不超过前者且最能确定规律：{which}。"))
    return said


# --- the targets


def _tests_said(facts: Facts) -> list[Text]:
    if not facts["targets"]:
        en = "No larger run was predicted: name scaling.targets to test the law."
        return [Text(en, "没有预测更大的训练：请给出 scaling.targets 来检验规律。")]
    said = [_test_said(t) for t in facts["targets"]]
    if facts["noise_of_one"] is not None:
        two = f"{facts['noise_of_one']:.4f}"
        en = f"A target is one run, so {two} of a difference may be its seed."
        said.append(Text(en, f"每个目标只训练一次，{two} 的差异可能来自种子。"))
    return said


def _test_said(t: Facts) -> Text:
    of, where, when = _NAMES[t["law"]], f"{t['size']} {t['D']:,}", _when(t)
    if t["actual"] is None:
        return Text(f"The target {where} did not end well.", f"目标 {where} 没有正常结束。")
    numbers = f"{t['predicted']:.4f} ({t['low']:.4f} .. {t['high']:.4f})"
    inside = Text("inside", "之内") if t["inside"] else Text("outside", "之外")
    late = Text(" Said after the run, it is no prediction.", "在训练之后给出，不算预测。")
    end = Text("", "") if t["unknown_then"] else late
    share, error, actual = f"{t['study_share']:.1%}", f"{t['error']:+.2f} %", f"{t['actual']:.4f}"
    en = f"Target {where}, {of.en}{when.en}: predicted {numbers}, came {actual}, error {error}, {inside.en} the interval;"
    zh = f"目标 {where}，{of.zh}{when.zh}：预测 {numbers}，实际 {actual}，误差 {error}，在区间{inside.zh}；"
    return Text(f"{en} the study cost {share} of this run.{end.en}", f"{zh}研究的开销为该训练的 {share}。{end.zh}")


def _when(t: Facts) -> Text:
    """When a prediction was made, and of the law with a floor under which."""
    en, zh = f" (said {t['when']}", f"（{t['when']} 给出"
    if floor := t["floor"]:
        en += f" with E taken to be {floor[0]:g} ± {floor[1]:g}"
        zh += f"，事先假定 E 为 {floor[0]:g} ± {floor[1]:g}"
    return Text(f"{en})", f"{zh}）")


# --- the picture

_WORDS = {
    "D": Text("D, tokens", "D（token）"),
    "bpb": Text("bits per byte", "每字节比特"),
    "predicted": Text("predicted bits per byte", "预测的每字节比特"),
    "actual": Text("actual bits per byte", "实际的每字节比特"),
    "came": Text("came", "实际"),
    "target": Text("target", "目标"),
    "law": Text("Lines: law", "曲线：规律"),
}
_MARKS = (("wsd", "o"), ("coupled", "D"), ("cosine", "x"), ("equal", "+"))


def draw(figure: Figure, language: Language, facts: Facts) -> None:
    """Left: loss against D for each size with the law that a plan goes by, dashed for the targets. Right: what every law says of
    the targets with its 95 % intervals and what came; without targets, what the law says of its own points.

    facts: of them only `picture` and `targets`.
    """
    word, picture = plot.words(_WORDS | _SHORT, language), facts["picture"]
    left, right = figure.subplots(1, 2)
    for i, size in enumerate(picture["sizes"]):
        left.plot(*_columns(size["points"]), f"C{i}o")
        left.plot(*_columns(size["line"]), f"C{i}-", label=f"{size['size']}  N = {size['N']:,}")
    for t, shade in zip(picture["targets"], plot.colours(len(picture["targets"])), strict=True):
        label = f"{word['target']} {t['size']}"
        left.plot(*_columns(t["line"]), "--", color=shade, linewidth=1, label=label)
        if t["actual"] is not None:
            left.plot(t["D"], t["actual"], "k*", markersize=10)
    left.set(xlabel=word["D"], ylabel=word["bpb"], xscale="log", title=f"{word['law']} {word[picture['law']]}")
    left.legend(fontsize=8)
    done = [t for t in facts["targets"] if t["actual"] is not None]
    if done:
        _draw_targets(right, done, word)
    else:
        said, came = _columns(picture["fitted"])
        right.plot(said, came, "C7.")
        right.plot([min(said), max(said)], [min(said), max(said)], "k:", linewidth=0.8)
        right.set(xlabel=word["predicted"], ylabel=word["actual"])
    plot.set_font(figure, language)


def _columns(pairs: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _draw_targets(axes: Axes, done: Sequence[Facts], word: Mapping[str, str]) -> None:
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

"""The best learning rate across sizes, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language, Text, join
from gangpao.sandbox.experiments.text import plot
from gangpao.sandbox.experiments.text.page import Facts, Words
from gangpao.sandbox.experiments.text.sweeps import good, interval, losses, noise_said, span, walls
from gangpao.sandbox.laws.verdict import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sweeps = Mapping[tuple[str, str], Mapping[str, Any]]  # of (rule, size)

_TITLE = Text("The best learning rate across sizes", "各尺寸的最佳学习率")
_COLUMNS = {
    "rule": Text("rule", "迁移规则"),
    "axis": Text("along", "方向"),
    "size": Text("size", "尺寸"),
    "lr": Text("best rate", "最佳学习率"),
    "interval": Text("95 % interval", "95 % 区间"),
    "bpb": Text("bpb there, fitted", "该处 bpb（拟合）"),
    "measured": Text("lowest bpb measured", "测得的最低 bpb"),
    "lost": Text("lost at the small model's best", "用小模型最佳学习率的损失增量"),
    "noise": Text("noise of a difference (95 %)", "差的噪声（95 %）"),
    "diverged": Text("diverged from", "发散的最小学习率"),
}
_AXES = {"width": Text("width", "宽度"), "depth": Text("depth", "深度")}
_QUESTIONS = {
    "stays": Text(
        "Under {rule}, does the best rate stay within a step of the grid across {axis}s?",
        "{rule} 规则下，最佳学习率跨{axis}是否保持在网格一步之内？",
    ),
    "costs": Text(
        "Under {rule}, does the small model's best rate cost the large one ({size}) at most {most:g} % of its loss?",
        "{rule} 规则下，大模型（{size}）用小模型的最佳学习率，损失增量是否不超过 {most:g} %？",
    ),
}
_ANSWERS: dict[Answer, Text] = {
    "yes": Text("yes, it stays within a step, all of the interval says so", "是，在一步之内，整个区间都如此"),
    "no": Text("no, it moves by more than a step, all of the interval says so", "否，超过一步，整个区间都如此"),
    "cannot tell": Text("that cannot be told, the interval holds both", "无法判断，区间两者都含"),
}


def asked(verdict: Facts) -> Text:
    """The question of a verdict."""
    about = verdict["about"]
    return _QUESTIONS[verdict["asks"]].fill({**about, "axis": _AXES.get(about.get("axis", ""))})


def words(facts: Facts) -> Words:
    """All of it."""
    sweeps = {(s["rule"], s["size"]): s for s in facts["sweeps"]}
    pairs = zip(facts["shifts"], facts["series"], strict=True)
    said = [sentence for shift, s in pairs for sentence in _said(shift, s, sweeps, facts)]
    noise = facts["noise"]
    return Words(
        _TITLE,
        _COLUMNS,
        [_row(row, sweeps[row["rule"], row["size"]]) for row in facts["rows"]],
        join([*said, _rule_noise_said(noise) if noise else noise_said(None, "lr")]),
        lambda figure, language: _draw(figure, language, facts["series"], sweeps),
    )


def _row(row: Facts, sweep: Facts) -> dict[str, Any]:
    best = sweep["optimum"] or {"best": None, "loss": None}
    own = {"axis": _AXES[row["axis"]], "lr": best["best"], "bpb": best["loss"], "interval": interval(sweep)}
    return {**row, **own, "measured": sweep["measured"], "diverged": min(walls(sweep), default=None)}


def _rule_noise_said(noise: Mapping[str, float]) -> Text:
    each = ", ".join(f"{rule} {sigma:.4f}" for rule, sigma in noise.items())
    return Text(f"Noise between seeds, bits per byte: {each}.", f"种子间噪声（每字节比特）：{each}。")


def _said(shift: Facts, s: Facts, sweeps: Sweeps, facts: Facts) -> list[Text]:
    """What became of the promise of a rule along an axis."""
    axis = _AXES[s["axis"]]
    en, zh = f"{s['rule']} across {axis.en}s", f"{s['rule']} 跨{axis.zh}"
    ends = {size: sweeps[s["rule"], size] for size in (shift["small"], shift["large"])}
    if any(sweep["optimum"] is None for sweep in ends.values()):
        en = f"{en}: a best rate cannot be told, too few trials ended well."
        return [Text(en, f"{zh}：正常结束的试验太少，定不出最佳学习率。")]
    bests = ", ".join(f"{size}: {sw['optimum']['best']:.3g} ({interval(sw)})" for size, sw in ends.items())
    numbers = f"× {shift['factor']:.2f} ({span(shift['low'], shift['high'], '.2f')})"
    step, answer = f"× {shift['step']:.2f}", _ANSWERS[shift["answer"]]
    en = f"{en}: the best rate is at {bests}; it moves by {numbers}, one step of the grid is {step}: {answer.en}."
    out = [Text(en, f"{zh}：最佳学习率为 {bests}；移动 {numbers}，网格一步为 {step}：{answer.zh}。")]
    for size in s["sizes"]:
        if more := sweeps[s["rule"], size]["more"]:
            add, key = f"{more[0]:.2g}", s["key"]
            en = f"At {size} the best rate is at the edge of the grid: add {add} to {key}."
            out.append(Text(en, f"{size} 的最佳学习率在网格边缘：请在 {key} 中加入 {add}。"))
    rows = {(row["rule"], row["axis"], row["size"]): row for row in facts["rows"]}
    return [*out, *_lost_said(rows[s["rule"], s["axis"], shift["large"]])]


def _lost_said(row: Facts) -> list[Text]:
    """What the small model's rate costs the large one, whose row this is."""
    lost, error = row["lost"], row["noise"]
    if lost is None:
        return []
    if lost == "inf":
        return [Text("The small model's best rate makes the large one diverge.", "小模型的最佳学习率使大模型发散。")]
    beside = "" if error is None else f" ± {error:.4f}"
    within = error is not None and abs(lost) <= error
    end = Text(", which noise alone may be.", "，可能只是噪声。") if within else Text(".", "。")
    return [
        Text(
            f"With the small model's best rate the large one loses {lost:.4f}{beside} bits per byte{end.en}",
            f"大模型若用小模型的最佳学习率，每字节多 {lost:.4f}{beside} 比特{end.zh}",
        )
    ]


# --- the picture

_WORDS = {
    "lr": Text("learning rate", "学习率"),
    "bpb": Text("bits per byte", "每字节比特"),
    "diverged": Text("diverged", "发散"),
    "width": Text("widths", "宽度"),
    "depth": Text("depths", "深度"),
}


def _draw(figure: Figure, language: Language, series: Sequence[Facts], sweeps: Sweeps) -> None:
    """A panel for each rule (below them: over depths), a line for each size, the bottom of its
    parabola marked with its 95 % interval, × above where it diverged."""
    word = plot.words(_WORDS, language)
    rules, axes_names = list(dict.fromkeys(s["rule"] for s in series)), list(dict.fromkeys(s["axis"] for s in series))
    panels = figure.subplots(len(axes_names), len(rules), squeeze=False, sharey="row")
    for s in series:
        axes = panels[axes_names.index(s["axis"])][rules.index(s["rule"])]
        for size, colour in zip(s["sizes"], plot.colours(len(s["sizes"])), strict=True):
            sweep = sweeps[s["rule"], size]
            axes.plot(*good(sweep), "o-", color=colour, markersize=3, label=size)
            if high := walls(sweep):
                axes.plot(high, [0.97] * len(high), "x", color=colour, transform=axes.get_xaxis_transform())
            if best := sweep["optimum"]:
                axes.plot(sweep["closed"], [best["loss"]] * 2, "-", color=colour, linewidth=1, alpha=0.6)
                axes.plot(best["best"], best["loss"], "*", color=colour, markersize=13, markeredgecolor="k")
        plot.log_ticks(axes, s["rates"])
        axes.set(title=f"{s['rule']}, {word[s['axis']]}", xlabel=word["lr"], ylabel=word["bpb"])
        axes.legend(fontsize=8)
    for row, axis in zip(panels, axes_names, strict=True):
        here = [losses(sweeps[s["rule"], size]) for s in series if s["axis"] == axis for size in s["sizes"]]
        plot.keep_minima_in_view(row[0], here)
    plot.set_font(figure, language)
